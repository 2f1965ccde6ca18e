"""The table of a request's keys: what each means, how it is read and what it becomes."""
