"""What a training run is: frozen dataclasses, whose values are checked before anything is loaded or written."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import check


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule; see ``ddim.core.path`` for the formulas.

    Attributes:
        kind: ``linear`` (DDPM), ``scaled_linear`` (latent diffusion) or ``cosine`` (which reads no betas).
        steps: T, the number of noise levels.
        beta_start, beta_end: first and last beta.
        zero_terminal_snr: rescale so that the last level has no signal (Lin et al. 2024); not for eps.
    """

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """A set of images, and which of its rows are taken.

    Attributes:
        path: a folder of images, a parquet file (or a folder of them), MNIST-type idx files (a folder or one
            ``*-images-idx3-ubyte[.gz]``), or the id of a data set on the Hugging Face hub. Relative paths start
            where the command runs. Of a folder of images everything beneath counts, but what is hidden.
        split: which part; for idx files ``train`` or ``test``, of a folder of images the folder of that name in it. A
            folder ``train`` among others is a split where they are named like splits too, and a class otherwise.
        column: the column with the images; empty: the first one that holds images.
        prompt: how a row's words are put together, from its columns: ``"{style} {name}"``; without braces the same for
            all. A folder of images has the columns of its ``metadata.jsonl``, ``.csv`` or ``.parquet``, which name each
            picture as ``file_name``, or ``text``, from a text file beside each picture. A column that is empty in
            all rows is refused.
        rewrite: pairs (regular expression, replacement), applied in their order to every prompt.
        where: column -> the values of the rows to take, each of which occurs; empty: all rows.
        without: a CSV file whose header names columns; rows that equal one of its lines in all of them are left
            out, and so are rows with the same image under another name.
        repeat: how often an epoch visits each image.
        label: the column with the class of each image, a whole number from 0; idx files, which have no columns, know
            the labels file beside them as ``label``. Empty: no classes.
    """

    path: str
    split: str = "train"
    column: str = ""
    prompt: str = ""
    rewrite: tuple[tuple[str, ...], ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: str = ""
    repeat: int = 1
    label: str = ""


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and what is done to each.

    Attributes:
        path, split, column, prompt, rewrite, where, without, repeat, label: the first set; see ``SourceConfig``.
        more: further sets, which follow it.
        size: side of the square the network sees, in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: how an image becomes square: ``crop`` (shorter side to ``size``, centre), ``resize`` (stretch) or
            ``pad`` (shrunk if larger, then centred on ``background``).
        background: grey value 0..255 of the padding, and behind transparent pixels.
        flip: mirror half of the images left to right.
        memory_gib: sets up to this size, decoded, are kept in memory; larger ones are read as they are needed.
        workers: processes that decode images of a set too large for memory.
    """

    path: str
    size: int
    split: str = "train"
    column: str = ""
    channels: Literal[1, 3] = 3
    fit: Literal["crop", "resize", "pad"] = "crop"
    background: int = 0
    flip: bool = False
    memory_gib: float = 4.0
    workers: int = 2
    prompt: str = ""
    rewrite: tuple[tuple[str, ...], ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: str = ""
    repeat: int = 1
    label: str = ""
    more: tuple[SourceConfig, ...] = ()

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """All sets, the first one first."""
        first = SourceConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SourceConfig)})
        return (first, *self.more)


@dataclass(frozen=True)
class LossConfig:
    """What the network learns to say, and how much each noise level counts.

    Attributes:
        prediction: ``eps``, ``x0`` or ``v``.
        weight: ``ones`` (L_gamma with gamma = 1, the plain mean squared error of the prediction), ``min_snr``
            (Hang et al. 2023; not with zero terminal SNR), a list of T numbers, or the path of a .json or .txt file
            with T numbers.
        min_snr_k: where min-SNR caps the weight.
        times: ``uniform`` draws every t alone; ``stratified`` draws one from each of ``batch`` equal strata.
    """

    prediction: Literal["eps", "x0", "v"] = "eps"
    weight: str | tuple[float, ...] = "ones"
    min_snr_k: float = 5.0
    times: Literal["uniform", "stratified"] = "uniform"


@dataclass(frozen=True)
class PixelConfig:
    """What a denoiser of images is told beside the noise level.

    Attributes:
        condition: ``none``, or ``labels``: the class of each image, from the column ``data.label``.
        label_dropout: share of the labels that are replaced by the null class, for classifier-free guidance (Ho &
            Salimans 2022, arXiv 2207.12598). Above 0 the network has one label more than there are classes: the last
            one is the null class, which stands for no label. At 0 there is no null class.
        classes: the names of the classes, in the order of their numbers. Empty: the names that the data set itself
            gives its label column, where it does.
    """

    condition: Literal["none", "labels"] = "none"
    label_dropout: float = 0.0
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoencoderConfig:
    """What an autoencoder is trained for: |e| + gradient * |differences of e| + kl * KL, e the error of a pixel.

    Attributes:
        kl: weight of the divergence of the codes from N(0, 1), in nats a number of the code.
        gradient: weight of the error's differences between neighbouring pixels, which keep edges sharp.
    """

    kl: float = 1e-3
    gradient: float = 0.5


@dataclass(frozen=True)
class TextConfig:
    """What a text-to-image model is made of, beside the network in ``[model]``.

    Attributes:
        autoencoder: the folder of an AutoencoderKL, as ``task = "autoencoder"`` writes it to ``<folder>/model``.
        encoder: options of transformers' ``CLIPTextConfig``.
        vocabulary: how many tokens the tokenizer learns from the prompts, at most.
        length: tokens a prompt has, with its start and end.
        empty: share of the prompts that are left empty, for classifier-free guidance (Ho & Salimans 2022).
    """

    autoencoder: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 4096
    length: int = 77
    empty: float = 0.1


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is shown of an image.

    Attributes:
        noise: noised images and their level, for guidance; false: the images themselves, for features.
        shift: the image moves by up to so many pixels each way, drawn anew every time; ``background`` moves in.
    """

    noise: bool = True
    shift: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """How it learns. AdamW; every number a function of the step, so that a resumed run repeats the unbroken one.

    Attributes:
        steps: optimiser steps in all.
        batch: images per optimiser step, over all processes and micro-batches together.
        accumulate: micro-batches a process makes of its share (less memory, same result).
        lr: peak learning rate.
        lr_schedule: ``constant`` or ``cosine`` (0 one step after the last), after ``warmup`` steps of linear rise.
        decay: the last steps of a constant rate, in which it falls linearly to 0 one step after the last.
        betas, weight_decay: AdamW's.
        grad_clip: largest gradient norm; 0 switches clipping off.
        ema: decay of the averaged weights, which are the ones exported; 0 exports the weights themselves.
        ema_warmup: the decay starts at 0.1 and rises as (1 + step) / (10 + step) until it reaches ``ema``.
        precision: ``bfloat16`` runs the network under autocast; weights, EMA and loss stay float32.
        seed: every random draw is a function of this, the step and the place in the batch.
        threads: CPU threads; 0 leaves torch's choice. Another number may round differently.
        device: ``auto`` or ``cpu``.
    """

    steps: int
    batch: int = 64
    accumulate: int = 1
    lr: float = 1e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 500
    decay: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema: float = 0.9999
    ema_warmup: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    threads: int = 0
    device: Literal["auto", "cpu"] = "auto"


@dataclass(frozen=True)
class OutputConfig:
    """Where the results go, and how often.

    Attributes:
        folder: holds ``checkpoints/``, ``samples/``, ``tensorboard/`` and, at the end, ``model/`` (diffusers format).
        export_dtype: ``float32`` or ``float16``, of the weights in ``model/``.
        log_every: steps between two lines of TensorBoard (and of the log, where there is no terminal).
        checkpoint_every: steps between two checkpoints; there is always one at the end.
        keep: how many checkpoints are kept, newest first.
        sample_every: steps between two sample sheets; 0 for none.
        samples: pictures on a sheet.
        sample_steps: DDIM steps for a sheet.
        tensorboard: write TensorBoard event files.
    """

    folder: str
    export_dtype: Literal["float32", "float16"] = "float32"
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    sample_every: int = 1000
    samples: int = 36
    sample_steps: int = 20
    tensorboard: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        task: ``pixel``, a denoiser of images (UNet2DModel); ``autoencoder`` (AutoencoderKL); or ``text``, a denoiser
            of an autoencoder's codes under a prompt (CLIPTextModel and UNet2DConditionModel, trained together); or
            ``classifier``, of noisy images or clean ones (ResNetForImageClassification).
        model: options of that class of diffusers, or of transformers' ResNetConfig; ``train`` asks them for the names.
        pixel, autoencoder, text, classifier: what only the task of that name reads.
    """

    data: DataConfig
    train: OptimConfig
    output: OutputConfig
    task: Literal["pixel", "autoencoder", "text", "classifier"] = "pixel"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only (tuples become lists), as JSON would return them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
