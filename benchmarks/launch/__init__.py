"""From `gemfleet train` to the first training step."""
