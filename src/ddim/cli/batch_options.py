"""The options of ``ddim batch``: the data and their columns, where the results go, and what computes them."""

from dataclasses import dataclass
from pathlib import Path

from .._utils.errors import InputError
from . import options as o
from .command import MACHINE
from .groups import Options, option

DATA = "Data"


@dataclass(frozen=True)
class Data(Options):
    """Where the pictures are."""

    data: str | None = option(
        None,
        "--data",
        "A folder of pictures, a parquet file or a tar file (WebDataset), a folder of these, or hf:ID for a data set "
        "on the Hugging Face hub.",
        DATA,
        metavar="DIR|FILE|hf:ID",
    )
    column: str = option("", "--column", "The column of the pictures; by default the first that has some.", DATA)
    split: str = option("train", "--split", "The split of the data, such as test or train[:1000].", DATA)
    count: int | None = option(
        None, "--count -n", "Take the first so many; or without --data, draw so many.", DATA, min=1
    )

    def required(self) -> str:
        """The data. Raises InputError where none were named."""
        if self.data is None:
            raise InputError("it is missing; name a folder, a parquet or tar file, or hf:ID.", parameter="data")
        return self.data


@dataclass(frozen=True)
class Captions(Options):
    """What the pictures show."""

    prompt: str | None = option(
        None,
        "--prompt -p",
        'What the pictures show: a text for all, or a template of columns such as "{text}".',
        o.PROMPTS,
        callback=o.check_utf8,
    )
    label: str | None = option(
        None,
        "--label",
        "For a class-conditional model: a class for all, or the column of the classes.",
        o.PROMPTS,
        metavar="CLASS|COLUMN",
    )


@dataclass(frozen=True)
class EditCaptions(Options):
    """What the pictures show, and what they are to show."""

    from_: str | None = option(
        None,
        "--from",
        'What the pictures show: a text for all, or a template of columns such as "{text}".',
        o.PROMPTS,
        callback=o.check_utf8,
    )
    to: str | None = option(
        None,
        "--to",
        "What they are to show: a text or a template; (word:2) gives a word more weight.",
        o.PROMPTS,
        callback=o.check_utf8,
    )
    from_label: str | None = option(
        None,
        "--from-label",
        "For a class-conditional model: their own class, or the column of the classes.",
        o.PROMPTS,
        metavar="CLASS|COLUMN",
    )
    to_label: str | None = option(
        None, "--to-label", "The class to edit to, or the column of these.", o.PROMPTS, metavar="CLASS|COLUMN"
    )

    def check(self, needs_source: bool) -> None:
        """Raises InputError, before anything is opened, where they do not say what to edit to.

        Args:
            needs_source: whether the method needs to know what the pictures show.
        """
        if self.to and self.to_label:
            raise InputError("it does not go with --to; use one of the two.", parameter="to_label")
        if not self.to and not self.to_label:
            raise InputError(
                'it is missing; say what the pictures are to show, such as "{text} with sunglasses".', parameter="to"
            )
        if (self.to and self.from_label) or (self.to_label and self.from_):
            wrong = "from_label" if self.to else "source_prompt"
            raise InputError("it is of the other kind of edit, by words or by class; leave it out.", parameter=wrong)
        if self.to_label and not self.from_label:
            raise InputError("it is missing; name the class of the pictures, or its column.", parameter="from_label")
        if needs_source and self.to and not self.from_:
            raise InputError('it is missing; say what the pictures show, such as "{text}".', parameter="source_prompt")


@dataclass(frozen=True)
class Solving(Options):
    """The solver of samples."""

    solver: str | None = option(
        None,
        "--solver",
        f"{', '.join(o.SOLVERS)}; by default ddim, or the one of a distilled model (lcm, tcd).",
        o.SAMPLING,
        autocompletion=lambda: list(o.SOLVERS),
    )
    eta: float = option(0.0, "--eta", "Noise of the solver ddim: 0 is DDIM, 1 is DDPM.", o.SAMPLING)


@dataclass(frozen=True)
class Run(Options):
    """Where the results go, and what computes them."""

    out: Path | None = option(
        None, "--out", "The folder of the results; a run that was stopped goes on there.", o.FILES, metavar="DIR"
    )
    dry_run: bool = option(False, "--dry-run", "Only say how much work there is; the model is not loaded.", o.FILES)
    ray: str | None = option(
        None,
        "--ray",
        "Compute on a Ray cluster: its address, auto for the one of this machine, or local to start one here.",
        MACHINE,
        metavar="ADDRESS",
    )
    workers: int | None = option(
        None, "--workers", "Workers on Ray; by default one for each GPU, else for each --threads CPUs.", MACHINE, min=1
    )
    threads: int = option(1, "--threads", "CPU threads of each worker; they decide the last bits.", MACHINE, min=1)
    timeout: float = option(
        3600.0,
        "--timeout",
        "On Ray, the most seconds without a finished batch; then the run ends with an error.",
        MACHINE,
    )

    def folder(self) -> Path:
        """The output. Raises InputError where none was named, or where it is a file."""
        if self.out is None:
            raise InputError("it is missing; name a folder for the results.", parameter="out")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is not a folder.", parameter="out")
        return self.out
