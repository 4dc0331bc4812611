"""Articles to packed, sharded token ids. Runs on a CPU, without torch."""
