"""Fine-tuning. The only room that names trl, deepspeed and accelerate."""

import pressroom.console  # noqa: F401  first: it quiets libraries that log when imported
