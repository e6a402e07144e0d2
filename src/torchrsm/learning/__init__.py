"""How systems learn, one update at a time."""
