"""The public functions of the library: sample, invert, reconstruct, interpolate and edit."""
