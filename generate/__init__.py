"""From adapters to text: merge, evaluate, generate."""

import pressroom.console  # noqa: F401  first: it quiets libraries that log when imported
