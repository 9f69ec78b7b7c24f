"""Writes checkpoints atomically, and reads them without pickles.

A folder is filled under a temporary name, flushed to disk and renamed; only then is an older one removed. So a process
that is killed at any moment leaves either the old folder or the new one under the final name, and never a partial one.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._utils.error_text import first_line
from .._utils.errors import DDIMError, InputError, is_whole
from .._utils.temporary import remove_stale
from ..models.weights import must_fit, unwrapped
from .config_file import differing_keys
from .ema import EMA

_T = TypeVar("_T")

TEMPORARY, REPLACED = ".ddim-tmp-", ".ddim-old-"
_MODEL, _STEP = re.compile("model"), re.compile(r"step-(\d{8}|[1-9]\d{8,})")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder, which is renamed to ``target`` when the block ends without an error.

    An existing ``target`` is replaced.

    Raises:
        DDIMError: the disk is full or fails; the temporary folder is removed, and ``target`` is as it was.
    """
    temporary = target.with_name(TEMPORARY + target.name)
    replaced = target.with_name(REPLACED + target.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        # safetensors makes files that only their owner can read; give them the permissions that the umask allows.
        readers = temporary.stat().st_mode & 0o666
        for folder, _, files in os.walk(temporary):
            for file in files:
                Path(folder, file).chmod(readers)
                _sync(Path(folder, file))
            _sync(Path(folder))
        # A folder cannot be renamed onto one that is not empty, so the old one is moved aside first. A process killed
        # between the two renames leaves it there, and ``clean`` moves it back.
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not target.exists():
            with suppress(OSError):  # if this fails, ``clean`` tries again at the next start
                replaced.rename(target)
        if isinstance(error, (OSError, SafetensorError)):
            raise DDIMError(f"Could not write {target}: {_reason(error)}; its old content was kept.") from error
        raise


def _reason(error: BaseException) -> str:
    """Describes why writing failed; safetensors reports a full disk only in its message."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return "the disk is full" if full else first_line(error)


def _sync(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own(folder: Path, name: re.Pattern[str], prefix: str = "") -> list[Path]:
    """Returns the folders in ``folder`` whose names a run makes, oldest first.

    Copies that a user has made, such as ``step-00000003-good``, do not match.

    Args:
        folder: where to look.
        name: matches the whole name, after ``prefix``.
        prefix: ``TEMPORARY``, ``REPLACED`` or empty.
    """
    found = (path for path in folder.glob(f"{prefix}*") if name.fullmatch(path.name.removeprefix(prefix)))
    return sorted((path for path in found if path.is_dir()), key=lambda path: (len(path.name), path.name))


def clean(folder: Path) -> None:
    """Removes temporary folders that a killed process has left in ``folder``.

    A folder that was moved aside to be replaced is moved back, if its replacement is missing.
    """
    for name in (_MODEL, _STEP):
        for stale in _own(folder, name, TEMPORARY):
            shutil.rmtree(stale, ignore_errors=True)
        for replaced in _own(folder, name, REPLACED):
            target = replaced.with_name(replaced.name.removeprefix(REPLACED))
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(target)


def clean_run(folder: Path) -> None:
    """Cleans a run's folder and its subfolders; see ``clean``."""
    clean(folder)
    clean(folder / "checkpoints")
    remove_stale(folder / "samples")


def holds_run(folder: Path) -> bool:
    """Whether ``folder`` contains checkpoints or a model, including those that a killed process has moved aside."""
    checkpoints = (_own(folder / "checkpoints", _STEP, prefix) for prefix in ("", REPLACED))
    return (folder / "model").exists() or bool(_own(folder, _MODEL, REPLACED)) or any(checkpoints)


class Checkpoints:
    """The checkpoints of a run: folders named ``step-NNNNNNNN``.

    Folders with other names belong to the user, and are neither read nor removed.

    Args:
        folder: the run's folder ``checkpoints``.
        keep: how many checkpoints to keep; older ones are removed.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Returns all complete checkpoints, oldest first."""
        return _own(self.folder, _STEP)

    def save(self, step: int, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, about: Any) -> Path:
        """Writes a checkpoint, then removes the oldest ones.

        Args:
            step: how many steps have been made.
            network, ema, optimizer: the state to save.
            about: JSON values to save beside it, such as the config.

        Returns:
            The checkpoint's folder.

        Raises:
            DDIMError: it could not be written; the earlier checkpoints are kept.
        """
        target = self.folder / f"step-{step:08d}"
        with whole_folder(target) as folder:
            save_file(_plain(network.state_dict()), folder / "weights.safetensors")
            save_file(_plain(ema.average), folder / "ema.safetensors")
            save_file(_plain(_optimizer_tensors(optimizer)), folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, **about}, indent=2), encoding="utf-8")
        for old in self.all()[: -self.keep]:
            # Renamed first, so that a process killed while removing leaves no partial checkpoint under its name.
            stale = old.with_name(TEMPORARY + old.name)
            with suppress(OSError):
                old.rename(stale)
            shutil.rmtree(stale, ignore_errors=True)
        return target

    def about(self, path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Reads the ``state.json`` of a checkpoint.

        Args:
            path: the checkpoint's folder.
            config: the config of this run.

        Returns:
            The content, and the keys of its config that differ from ``config``.

        Raises:
            InputError: the file is damaged.
        """

        def read() -> tuple[dict[str, Any], list[str]]:
            about = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if not (isinstance(about, dict) and isinstance(about.get("config"), dict)):
                raise ValueError("it contains no config")
            step = about.get("step")
            if step is None or not is_whole(step) or path.name != f"step-{step:08d}":
                raise ValueError(f"it says that it is of step {step!r}")
            return about, differing_keys(about["config"], config, step)

        return _reading(path, "state.json", read)

    def load(self, path: Path, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
        """Loads a checkpoint's weights, EMA and optimiser state into the given objects.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another network.
        """
        parts: dict[str, Callable[[dict[str, Tensor]], object]] = {
            "weights": lambda found: network.load_state_dict(_like(_plain(network.state_dict()), found)),
            "ema": lambda found: ema.load(_like(ema.average, found)),
            "optimizer": lambda found: _load_optimizer(optimizer, found),
        }
        for name, put in parts.items():
            file = f"{name}.safetensors"
            _reading(path, file, lambda put=put, file=file: put(load_file(path / file)))


def _like(wanted: Mapping[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes of wrappers from names of tensors, and raises InputError unless they match ``wanted``."""
    found = unwrapped(found)
    must_fit(wanted, found, "it", parameter=None)
    return found


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimiser's state as tensors named ``<index of parameter>.<name of moment>``.

    They are saved as safetensors, because torch.save would write a pickle, and hides a full disk behind another error.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restores AdamW's state from tensors of ``_optimizer_tensors``, after checking their shapes."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    met = {key.partition(".")[0] for key in tensors}  # a weight that has never had a gradient has no state
    wanted: dict[str, Tensor] = {}
    for index, weight in enumerate(weights):
        if str(index) in met:
            moments = {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
            wanted |= {f"{index}.{name}": like for name, like in moments.items()}
    if not tensors:
        raise ValueError("it is empty")
    _like(wanted, tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if name != "step":  # fused AdamW needs moments in the memory layout of their weight
            value = torch.empty_like(weights[int(index)]).copy_(value)
        state.setdefault(int(index), {})[name] = value
    # Options such as betas come from the config, and the loop sets the learning rate in each step: neither is loaded.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors as safetensors can save them: detached, contiguous and on the CPU."""
    return {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}


def _reading(path: Path, part: str, read: Callable[[], _T]) -> _T:
    """Calls ``read``, and turns every error into an InputError that says which part of a checkpoint is damaged."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # JSON, safetensors and torch each raise their own types of errors
        raise InputError(
            f"Cannot continue from {path}: {part} is damaged ({first_line(error)}). Remove this folder to continue "
            "from the checkpoint before it."
        ) from error
