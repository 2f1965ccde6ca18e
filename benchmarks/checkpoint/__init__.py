"""What saving costs a run: how long a step is held up, and how fast bytes arrive on the head's disk."""
