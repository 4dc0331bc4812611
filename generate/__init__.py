"""From adapters to text: merge, evaluate, generate."""
