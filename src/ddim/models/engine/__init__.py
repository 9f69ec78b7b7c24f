"""What makes a network quick without changing what it answers."""
