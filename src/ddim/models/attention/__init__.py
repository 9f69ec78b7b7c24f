"""Attention control for each network architecture: its attention layers, and a processor that follows a controller."""
