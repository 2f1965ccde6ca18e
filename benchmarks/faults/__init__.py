"""What a fault in the middle of a run costs."""
