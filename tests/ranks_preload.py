"""What the server of `ranks.py` imports before it forks: it must start no threads."""

import train.sft  # noqa: F401
