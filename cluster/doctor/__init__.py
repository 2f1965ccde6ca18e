"""`gemfleet doctor`: reads and measures (`facts`, `probe`, `measure`), then judges by pure functions (`check_*`)."""
