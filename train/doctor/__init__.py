"""The doctor: facts of a machine gathered once, findings as pure functions of them."""
