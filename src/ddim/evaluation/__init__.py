"""Measured: how near pictures are, and whether an edit is what was asked for."""
