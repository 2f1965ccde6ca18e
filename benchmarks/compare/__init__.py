"""Two sets of records: what got slower, what faster, and what is noise."""
