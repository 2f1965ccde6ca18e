"""`gemfleet doctor`: what is measured on every node (`facts`, `probe`), and what follows from it (`check_*`, pure)."""
