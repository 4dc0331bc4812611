"""Where it runs. Safe on a login node: no torch."""
