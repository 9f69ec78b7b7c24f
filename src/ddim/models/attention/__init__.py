"""Where each architecture's attention can be controlled, and the processors that heed a controller."""
