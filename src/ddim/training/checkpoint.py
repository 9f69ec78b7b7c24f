"""Checkpoints, written whole or not at all, and read without pickles.

A folder is filled under a temporary name, synced to disk and renamed; only then is an older one removed. So a
process killed at any moment leaves either the old folder or the new one, never half of one under its name.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import DDIMError, InputError
from .ema import EMA

TEMPORARY, REPLACED = ".ddim-tmp-", ".ddim-old-"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the name ``target`` when the block ends without an error.

    Raises:
        DDIMError: the disk is full or fails; the temporary folder is gone then and ``target`` as it was.
    """
    temporary = target.with_name(TEMPORARY + target.name)
    replaced = target.with_name(REPLACED + target.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        readers = temporary.stat().st_mode & 0o666  # what the umask leaves; safetensors writes for the owner alone
        for folder, _, files in os.walk(temporary):
            for file in files:
                Path(folder, file).chmod(readers)
                _sync(Path(folder, file))
            _sync(Path(folder))
        if target.exists():  # a folder cannot be renamed onto a full one
            target.rename(replaced)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not target.exists():
            with suppress(OSError):  # ``clean`` tries once more
                replaced.rename(target)
        if isinstance(error, (OSError, SafetensorError)):
            raise DDIMError(f"Could not write {target}: {_reason(error)}; what was there before is kept.") from error
        raise


def _reason(error: BaseException) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return "the disk is full" if full else f"{error}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(folder: Path) -> None:
    """Removes what a killed process left in ``folder``; puts a folder back that it had only just moved aside."""
    for stale in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)
    for replaced in folder.glob(f"{REPLACED}*"):
        target = replaced.with_name(replaced.name.removeprefix(REPLACED))
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(target)


def clean_run(folder: Path) -> None:
    """``clean`` for all that a run writes into its folder."""
    clean(folder)
    clean(folder / "checkpoints")
    for stale in (folder / "samples").glob(".step-*.png.*.tmp"):  # of write_whole
        stale.unlink()


def holds_run(folder: Path) -> bool:
    """Whether there are checkpoints or a model in ``folder``, be it only moved aside by a killed process."""
    places = ("model", f"{REPLACED}model", "checkpoints/step-*", f"checkpoints/{REPLACED}*")
    return any(True for place in places for _ in folder.glob(place))


class Checkpoints:
    """The folder ``checkpoints/`` of a run: one folder ``step-NNNNNNNN`` each, of which the last ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """The whole ones, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, about: Any) -> Path:
        """Writes the state after ``step`` steps, with ``about`` (JSON values), and drops the oldest.

        Raises:
            DDIMError: it could not be written; the earlier ones are kept.
        """
        target = self.folder / f"step-{step:08d}"
        with whole_folder(target) as folder:
            save_file(_plain(network.state_dict()), folder / "weights.safetensors")
            save_file(_plain(ema.average), folder / "ema.safetensors")
            save_file(_plain(_optimizer_tensors(optimizer)), folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, **about}, indent=2), encoding="utf-8")
        for old in self.all()[: -self.keep]:
            stale = old.with_name(TEMPORARY + old.name)  # a process killed while removing leaves no half of ``old``
            with suppress(OSError):
                old.rename(stale)
            shutil.rmtree(stale, ignore_errors=True)
        return target

    def about(self, path: Path) -> dict[str, Any]:
        """``state.json`` of a checkpoint."""
        return _reading(path, lambda: json.loads((path / "state.json").read_text(encoding="utf-8")))

    def load(self, path: Path, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
        """Puts a checkpoint's weights, EMA and optimiser state in place.

        Raises:
            InputError: it is damaged, or belongs to another network.
        """

        def read() -> None:
            network.load_state_dict(load_file(path / "weights.safetensors"))
            ema.load(load_file(path / "ema.safetensors"))
            _load_optimizer(optimizer, load_file(path / "optimizer.safetensors"))

        _reading(path, read)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state under names ``<parameter>.<moment>``.

    torch.save would write a pickle, and garble the error of a full disk.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    # The groups are the config's; their learning rate is set anew at each step.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # three file formats, each with errors of its own
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"Cannot continue from {path}: {first} Remove this folder to continue from the one before."
        ) from error
