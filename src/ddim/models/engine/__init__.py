"""Makes networks faster on a CPU; their outputs stay the same except for rounding."""
