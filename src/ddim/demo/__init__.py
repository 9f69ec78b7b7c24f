"""The demo: the main job on one model, as a static page with its pictures and numbers."""

from .run import run

__all__ = ["run"]
