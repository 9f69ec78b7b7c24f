"""Counts the steps of all phases of an edit together."""

from ..core.contracts import OnStep
from .common import Report
from .events import EngineEvent, Event, LossEvent, OnEvent, StepEvent


class Phases:
    """Counts the steps of the inversion, of the replay of an exact code and of each sampling together.

    The number of steps of a phase is known only when it begins. Until then the phases to come count as equal to the
    present one; ``count`` is their number.
    """

    def __init__(self, on_event: OnEvent, count: int) -> None:
        self.on_event, self.before, self.count = on_event, 0, count

    def before_sampling(self) -> OnEvent:
        """The ``on_event`` of a phase before sampling. Its codes are not passed on; ``on_code`` gets the whole one."""
        done, left = self.before, self.count
        self.count -= 1

        def on_event(event: Event) -> None:
            if isinstance(event, StepEvent):
                self.before = done + event.total
                self.on_event(StepEvent(done + event.done, done + event.total * left))
            elif isinstance(event, (LossEvent, EngineEvent)):
                self.on_event(event)

        return on_event

    def sampling(self, total: int) -> OnStep:
        """What sampling calls after each of its ``total`` steps."""
        return Report(self.before_sampling(), total, 1, 1)
