"""What a page may ask for; the command takes its usual values from here, without torch."""

from dataclasses import dataclass

from .._utils.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a page may ask for.

    Args:
        max_megabytes: the largest file that is taken.
        max_megapixels: the largest picture.
        queue: jobs that may wait.
        max_steps: the largest number of steps.
        keep_models: models that stay in memory; another one, once it is loaded, takes the place of the one that was not
            used for longest.

    Raises:
        InputError: a number is below 1.
    """

    max_megabytes: int = 20
    max_megapixels: int = 32
    queue: int = 16
    max_steps: int = 200
    keep_models: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{value} is too few; use 1 or more.", parameter=name)
