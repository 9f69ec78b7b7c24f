"""What a picture shows, said by a local model."""

from dataclasses import dataclass

from .._utils.errors import DDIMError
from ..data.images import flatten, open_image
from .desk import Desk
from .jobs import Job
from .pictures import Upload


@dataclass(eq=False)
class DescribeWork:
    """A description that a job makes.

    Args:
        desk: the server, which has a captioner.
        upload: the picture.
    """

    desk: Desk
    upload: Upload

    def __call__(self, job: Job) -> str:
        """Describes the picture in one line.

        Raises:
            InputError: the captioner cannot be loaded.
            DDIMError: it failed, or says nothing.
            KeyboardInterrupt: it was stopped.
        """
        captioner = self.desk.captioner
        assert captioner is not None  # else there is no button
        if not captioner.loaded:
            job.say(f"loading {captioner.name}")
            captioner.load()
        job.say("describing the picture")
        image = flatten(open_image(self.upload.path), "RGB", name=self.upload.name)
        words = captioner.describe(image, lambda: job.say("describing the picture"))
        if not words:
            raise DDIMError("it says nothing about this picture; describe it yourself.", parameter="captioner")
        return words
