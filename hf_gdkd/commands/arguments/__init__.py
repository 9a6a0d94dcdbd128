"""The arguments of a run: from flags, a file of settings or the paper's recipes, checked before anything runs."""
