"""Checkpoints, written whole or not at all, and read without pickles.

A folder is filled under a temporary name, synced to disk and renamed; only then is an older one removed. So a
process killed at any moment leaves either the old folder or the new one, never half of one under its name.
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
    return "the disk is full" if full else first_line(error)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own(folder: Path, name: re.Pattern[str], prefix: str = "") -> list[Path]:
    """The folders in ``folder`` that a run wrote under ``name``, oldest first. A user's copies beside them, such as
    ``step-00000003-good``, are none."""
    found = (path for path in folder.glob(f"{prefix}*") if name.fullmatch(path.name.removeprefix(prefix)))
    return sorted((path for path in found if path.is_dir()), key=lambda path: (len(path.name), path.name))


def clean(folder: Path) -> None:
    """Removes what a killed process left in ``folder``; puts a folder back that it had only just moved aside."""
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
    """``clean`` for all that a run writes into its folder."""
    clean(folder)
    clean(folder / "checkpoints")
    remove_stale(folder / "samples")


def holds_run(folder: Path) -> bool:
    """Whether there are checkpoints or a model in ``folder``, be it only moved aside by a killed process."""
    checkpoints = (_own(folder / "checkpoints", _STEP, prefix) for prefix in ("", REPLACED))
    return (folder / "model").exists() or bool(_own(folder, _MODEL, REPLACED)) or any(checkpoints)


class Checkpoints:
    """The folder ``checkpoints/`` of a run: one folder ``step-NNNNNNNN`` each, of which the last ``keep`` stay. Other
    names in it are the user's, and are neither read nor removed."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """The whole ones, oldest first."""
        return _own(self.folder, _STEP)

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

    def about(self, path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """``state.json`` of a checkpoint, and the keys of its config that differ from ``config``.

        Raises:
            InputError: it is damaged.
        """

        def read() -> tuple[dict[str, Any], list[str]]:
            about = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if not (isinstance(about, dict) and isinstance(about.get("config"), dict)):
                raise ValueError("it holds no config")
            step = about.get("step")
            if not is_whole(step) or path.name != f"step-{step:08d}":
                raise ValueError(f"it is of step {step!r}")
            return about, differing_keys(about["config"], config)

        return _reading(path, "state.json", read)

    def load(self, path: Path, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
        """Puts a checkpoint's weights, EMA and optimiser state in place.

        Raises:
            InputError: it is damaged, or belongs to another network.
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
    """``found`` without what wrappers leave in the names; InputError unless it has the tensors of ``wanted``."""
    found = unwrapped(found)
    must_fit(wanted, found, "it", parameter=None)
    return found


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state under names ``<parameter>.<moment>``.

    torch.save would write a pickle, and garble the error of a full disk.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    met = {key.partition(".")[0] for key in tensors}  # a weight that no gradient has reached has no state
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
        state.setdefault(int(index), {})[name] = value
    # The groups are the config's; their learning rate is set anew at each step.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}


def _reading(path: Path, part: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # three file formats, each with errors of its own
        raise InputError(
            f"Cannot continue from {path}: {part} is damaged ({first_line(error)}). Remove this folder to continue "
            "from the one before."
        ) from error
