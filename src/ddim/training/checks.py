"""Checks the values of a training config: each value by itself, and values that depend on each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._utils.errors import InputError

if TYPE_CHECKING:
    from .config import SourceConfig, TrainConfig

# (section, key, test of the value, what the value must be)
_LIMITS: Sequence[tuple[str, str, Any, str]] = (
    ("schedule", "steps", lambda v: v >= 2, "at least 2"),
    ("data", "size", lambda v: v >= 1, "at least 1 pixel"),
    ("data", "background", lambda v: 0 <= v <= 255, "from 0 to 255"),
    ("data", "memory_gib", lambda v: v >= 0, "at least 0"),
    ("data", "workers", lambda v: v >= 0, "at least 0"),
    ("pixel", "label_dropout", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("autoencoder", "kl", lambda v: v >= 0, "at least 0"),
    ("autoencoder", "gradient", lambda v: v >= 0, "at least 0"),
    ("text", "vocabulary", lambda v: v >= 300, "at least 300 (256 are single bytes)"),
    ("text", "length", lambda v: v >= 3, "at least 3 (start, a word, end)"),
    ("text", "empty", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("text", "guidance", lambda v: 0 <= v < float("inf"), "a weight of guidance, or 0 for none"),
    ("flow", "length", lambda v: v >= 3, "at least 3 (start, a word, end)"),
    ("flow", "empty", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("flow", "guidance", lambda v: 0 <= v < float("inf"), "a weight of guidance, or 0 for none"),
    ("flow", "zeros", lambda v: v and all(0 <= n <= 512 for n in v), "a list of whole numbers from 0 to 512"),
    ("flow", "shift", lambda v: 0 < v < float("inf"), "above 0"),
    ("classifier", "shift", lambda v: v >= 0, "at least 0 pixels"),
    ("loss", "min_snr_k", lambda v: v > 0, "above 0"),
    ("train", "steps", lambda v: v >= 1, "at least 1"),
    ("train", "batch", lambda v: v >= 1, "at least 1"),
    ("train", "accumulate", lambda v: v >= 1, "at least 1"),
    ("train", "lr", lambda v: 0 < v < float("inf"), "above 0"),
    ("train", "warmup", lambda v: v >= 0, "at least 0"),
    ("train", "decay", lambda v: v >= 0, "at least 0"),
    ("train", "betas", lambda v: all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    ("train", "weight_decay", lambda v: v >= 0, "at least 0"),
    ("train", "grad_clip", lambda v: v >= 0, "at least 0"),
    ("train", "ema", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train", "seed", lambda v: 0 <= v < 2**63, "a whole number from 0"),
    ("train", "threads", lambda v: v >= 0, "at least 0"),
    ("train", "processes", lambda v: v >= 1, "at least 1"),
    ("output", "folder", lambda v: v != "", "a folder"),
    ("output", "log_every", lambda v: v >= 1, "at least 1"),
    ("output", "checkpoint_every", lambda v: v >= 1, "at least 1"),
    ("output", "keep", lambda v: v >= 1, "at least 1"),
    ("output", "sample_every", lambda v: v >= 0, "at least 0"),
    ("output", "samples", lambda v: v >= 1, "at least 1"),
    ("output", "sample_steps", lambda v: v >= 1, "at least 1"),
)


def check(config: "TrainConfig") -> None:
    """Raises InputError for the first value that is out of range or contradicts another value."""
    for section, key, holds, wanted in _LIMITS:
        value = getattr(getattr(config, section), key)
        if not holds(value):
            raise InputError(f"it must be {wanted}, not {value!r}.", parameter=f"{section}.{key}")
    # Only the task of the same name reads one of these sections.
    for section in ("pixel", "autoencoder", "text", "flow", "classifier"):
        if config.task != section and getattr(config, section) != type(getattr(config, section))():
            raise InputError(
                f"task = {config.task!r} does not use this section; remove it, or set task = {section!r}.",
                parameter=section,
            )
    _check_flow(config)
    labels = config.pixel.condition == "labels"
    for key in ("label_dropout", "classes"):
        value = getattr(config.pixel, key)
        if value and not labels:
            raise InputError(
                f"{_plain(value)!r} needs a network with labels; remove it, or set pixel.condition = 'labels'.",
                parameter=f"pixel.{key}",
            )
    for name in config.pixel.classes:
        if not name.strip() or config.pixel.classes.count(name) > 1:
            raise InputError(
                f"each class needs a name of its own, but {name!r} is empty or occurs twice.", parameter="pixel.classes"
            )
    sections = ("data", *["data.more"] * len(config.data.more))
    for section, source in zip(sections, config.data.sources, strict=True):
        _check_source(section, source)
    if config.train.decay and config.train.lr_schedule != "constant":
        raise InputError(
            f"{config.train.decay} can be used only with train.lr_schedule = 'constant'.", parameter="train.decay"
        )
    if config.train.batch % config.train.accumulate:
        raise InputError(
            f"{config.train.batch} does not divide into {config.train.accumulate} micro-batches.",
            parameter="train.batch",
        )
    if config.train.processes > 1 and config.train.device != "cpu":
        raise InputError(
            f"{config.train.processes} processes share the CPUs; set train.device = 'cpu', or start one process for "
            "each GPU with accelerate launch.",
            parameter="train.processes",
        )
    if config.schedule.zero_terminal_snr and config.loss.prediction == "eps":
        raise InputError(
            "with zero terminal SNR the last level is pure noise, where predicting eps determines nothing; use 'v'.",
            parameter="loss.prediction",
        )
    if config.schedule.zero_terminal_snr and config.loss.weight == "min_snr":
        raise InputError("'min_snr' never trains a last level of zero SNR; use 'ones'.", parameter="loss.weight")
    if config.output.sample_steps > config.schedule.steps:
        raise InputError(
            f"{config.output.sample_steps} exceeds schedule.steps = {config.schedule.steps}.",
            parameter="output.sample_steps",
        )
    if config.task == "flow":
        return
    fixed = {"sample_size": config.data.size, "in_channels": config.data.channels}
    fixed["out_channels"] = fixed["in_channels"]
    for key, value in config.model.items():
        if key == "class_embed_type" and value is not None:
            raise InputError(
                f"{value!r} is not supported, because only a table of labels can be trained; remove it.",
                parameter="model.class_embed_type",
            )
        if key == "num_class_embeds" and value is not None and not labels:
            raise InputError(
                f"{value!r} asks for labels, but training is unconditional; remove it, or set task = 'pixel' and "
                "pixel.condition = 'labels'.",
                parameter="model.num_class_embeds",
            )
        if key in fixed and value != fixed[key]:
            raise InputError(f"{value!r} contradicts [data], which says {fixed[key]}.", parameter=f"model.{key}")


def _check_flow(config: "TrainConfig") -> None:
    """Raises InputError if the loss is one of rectified flow and the task is not, or the other way round."""
    loss = config.loss
    if config.task != "flow":
        for key, value in (("prediction", "flow"), ("times", "logit_normal")):
            if getattr(loss, key) == value:
                raise InputError(
                    f"{value!r} belongs to rectified flow, and task = {config.task!r} trains on a noise schedule; use "
                    f"another value, or set task = 'flow'.",
                    parameter=f"loss.{key}",
                )
        return
    for key, value in (("prediction", "flow"), ("times", "logit_normal"), ("weight", "ones")):
        if getattr(loss, key) != value:
            raise InputError(
                f"task = 'flow' trains on rectified flow, which needs {value!r}, not {_plain(getattr(loss, key))!r}.",
                parameter=f"loss.{key}",
            )
    if loss.min_snr_k != type(loss)().min_snr_k:
        raise InputError("task = 'flow' does not weight the noise levels; remove it.", parameter="loss.min_snr_k")
    if config.schedule != type(config.schedule)():
        raise InputError(
            "task = 'flow' trains on rectified flow, which has no betas; remove this section.", parameter="schedule"
        )


def _plain(value: Any) -> Any:
    """Returns a tuple as a list, as it is written in TOML."""
    return list(value) if isinstance(value, tuple) else value


def _check_source(section: str, source: "SourceConfig") -> None:
    """Raises InputError for the first value of a source of images that is out of range."""
    if not source.path:
        raise InputError("it must be a path or a hub id, not ''.", parameter=f"{section}.path")
    if source.repeat < 1:
        raise InputError(f"it must be at least 1, not {source.repeat}.", parameter=f"{section}.repeat")
    for pair in source.rewrite:
        if len(pair) != 2:
            raise InputError(
                f"it must consist of pairs (regular expression, replacement), not {list(pair)}.",
                parameter=f"{section}.rewrite",
            )
