"""The demo: edits, round trips, interpolations and samples of two models, as a static page with pictures and numbers.

It is written as a user of the library would write it: on ``import ddim``. The command ``ddim demo`` opens the models,
checks the files, draws the progress bars, and calls ``run``.
"""

from .context import DemoModel
from .jobs import Progress
from .run import output_files, run, source_pictures

__all__ = ["DemoModel", "Progress", "output_files", "run", "source_pictures"]
