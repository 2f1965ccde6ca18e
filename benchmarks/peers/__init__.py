"""Side by side on one machine: the same model, examples, adapter and optimizer, stepped by different trainers."""
