"""What a user calls: sample, invert, reconstruct, interpolate, edit."""
