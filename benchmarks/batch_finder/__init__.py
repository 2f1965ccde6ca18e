"""How long finding the micro-batch takes, and how good what is found is."""
