"""How the status API answers under load."""
