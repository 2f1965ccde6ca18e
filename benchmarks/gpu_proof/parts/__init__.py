"""One module for each part; `prove(stage)` is its whole interface."""
