"""The config of a training run: frozen dataclasses, whose values are checked before anything is loaded or written."""

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
        kind: ``linear`` (DDPM), ``scaled_linear`` (latent diffusion) or ``cosine`` (which ignores the betas).
        steps: the number of noise levels, T.
        beta_start, beta_end: the first and the last beta.
        zero_terminal_snr: rescale the levels so that the last one is pure noise (Lin et al. 2024). It cannot be used
            with eps prediction.
    """

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class SourceConfig:
    """A set of images, and which of its rows are used.

    Attributes:
        path: a folder of images, a parquet file (or a folder of them), a tar file as WebDataset has them (or a folder
            of them), MNIST-like idx files (a folder, or one file ``*-images-idx3-ubyte[.gz]``), or the id of a data set
            on the Hugging Face hub, with or without ``hf:`` before it. Relative paths are relative
            to the working directory. Of a folder of images, all subfolders are read, except hidden ones.
        split: the split to use. For idx files it is ``train`` or ``test``; for a folder of images it is the subfolder
            of that name. A subfolder named like a split is one only if another subfolder, or every one, is named so
            too; otherwise it is a class.
        column: the column with the images. Empty: the first column that contains images.
        prompt: a template for the prompt of each row, which names columns, such as ``"{style} {name}"``; without
            braces, all rows have the same prompt. A folder of images has the columns of its ``metadata.jsonl``,
            ``.csv`` or ``.parquet``, whose column ``file_name`` names each picture. If they have no
            column ``text``, text files beside the pictures become that column. A column that is empty in all rows is
            refused.
        rewrite: pairs (regular expression, replacement), which are applied to every prompt in their order.
        where: column -> values: only rows with one of these values are used; each value must occur. Empty: all rows.
        without: a CSV file whose header names columns. Rows that equal one of its lines in all of these columns are
            left out, and so are rows with the same image under another name.
        repeat: how often an epoch visits each image.
        label: the column with the class of each image, a whole number from 0. For idx files, which have no columns,
            ``label`` means the labels file beside them. Empty: no classes.
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
    """The images of a run, and how they are prepared.

    Attributes:
        path, split, column, prompt, rewrite, where, without, repeat, label: the first set of images; see
            ``SourceConfig``.
        more: further sets of images.
        size: side of the square images that the network sees, in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: how an image becomes square: ``crop`` (scale the shorter side to ``size`` and cut out the centre),
            ``resize`` (stretch) or ``pad`` (shrink it if it is larger, then centre it on ``background``).
        background: grey value (0..255) of the padding and behind transparent pixels.
        flip: mirror a random half of the images left to right.
        memory_gib: keep the decoded images in memory if they take at most so much (in GiB); larger sets are decoded
            when they are needed.
        workers: number of processes that decode images of a set that is too large for memory.
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
        """All sets of images: the first one, then those of ``more``."""
        first = SourceConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SourceConfig)})
        return (first, *self.more)


@dataclass(frozen=True)
class LossConfig:
    """What the network learns to predict, and the weight of each noise level in the loss.

    Attributes:
        prediction: ``eps``, ``x0`` or ``v``, on the noise schedule; or ``flow``, the velocity eps - x0 of rectified
            flow, which the task ``flow`` learns.
        weight: ``ones`` (L_gamma with gamma = 1, the mean squared error of the prediction), ``min_snr`` (Hang et al.
            2023; not with zero terminal SNR), a list of T numbers, or the path of a .json or .txt file with T numbers.
        min_snr_k: the cap on the SNR in the min-SNR weight.
        times: how noise levels t are drawn: ``uniform`` draws each independently; ``stratified`` draws one from each
            of ``batch`` equal intervals; ``logit_normal`` draws the levels of rectified flow, see
            ``draws.logit_normal``.
    """

    prediction: Literal["eps", "x0", "v", "flow"] = "eps"
    weight: str | tuple[float, ...] = "ones"
    min_snr_k: float = 5.0
    times: Literal["uniform", "stratified", "logit_normal"] = "uniform"


@dataclass(frozen=True)
class PixelConfig:
    """The condition of a pixel model.

    Attributes:
        condition: ``none``, or ``labels``: the class of each image, from the column ``data.label``.
        label_dropout: the share of labels that are replaced by the null class, for classifier-free guidance (Ho &
            Salimans 2022, arXiv 2207.12598). If it is above 0, the network has one label more than there are classes:
            the last one is the null class, which stands for no class. If it is 0, there is no null class.
        classes: the names of the classes, in the order of their numbers. Empty: the names in the data set, if it has
            any.
    """

    condition: Literal["none", "labels"] = "none"
    label_dropout: float = 0.0
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AutoencoderConfig:
    """The loss of an autoencoder: |e| + gradient * |differences of e| + kl * KL, where e is the error of a pixel.

    Attributes:
        kl: weight of the KL divergence of the latents from N(0, 1), in nats per number of the latent.
        gradient: weight of the differences of the error between neighbouring pixels, which keeps edges sharp.
    """

    kl: float = 1e-3
    gradient: float = 0.5


@dataclass(frozen=True)
class TextConfig:
    """The parts of a text-to-image model other than the U-Net, which ``[model]`` describes.

    Attributes:
        autoencoder: the folder of an AutoencoderKL, such as ``<folder>/model`` of a run with ``task = "autoencoder"``.
        encoder: options of transformers' ``CLIPTextConfig``.
        vocabulary: the largest number of tokens that the tokenizer learns from the prompts.
        length: the number of tokens of a prompt, with start and end token.
        empty: the share of prompts that are replaced by the empty prompt, for classifier-free guidance (Ho & Salimans
            2022).
        guidance: the usual guidance of the model's samples, which ``ddim.json`` in its folder then names; 0 names none,
            and the model has the usual guidance of its family. Training does not depend on it.
    """

    autoencoder: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 4096
    length: int = 77
    empty: float = 0.1
    guidance: float = 0.0


@dataclass(frozen=True)
class FlowConfig:
    """The parts of a flow model other than the transformer, which ``[model]`` describes.

    Attributes:
        base: a text-to-image model, by the name of a bundled one or its folder. Its autoencoder, text encoder and
            tokenizer are used and not trained.
        length: the number of tokens of a prompt, with start and end token.
        empty: the share of prompts that are replaced by the empty prompt, for classifier-free guidance (Ho & Salimans
            2022).
        guidance: the usual guidance of the model's samples, which ``ddim.json`` in its folder then names; 0 names none,
            and the model has the usual guidance of its family. Training does not depend on it.
        zeros: the numbers of zero tokens that follow a prompt; the images of a batch take turns. Where a pipeline of SD
            3 has no T5 encoder, diffusers puts zeros in place of its tokens: ``max_sequence_length`` of them, 256 by
            default, and before version 0.36 as many as a prompt has.
        shift: the shift of the noise levels that the exported scheduler samples with. Training does not depend on it.
    """

    base: str = ""
    length: int = 77
    empty: float = 0.1
    guidance: float = 0.0
    zeros: tuple[int, ...] = (256,)
    shift: float = 1.0


@dataclass(frozen=True)
class ClassifierConfig:
    """The inputs of a classifier.

    Attributes:
        noise: true trains on noisy images and their noise level, for classifier guidance; false trains on clean
            images, for features.
        shift: images are moved randomly by up to so many pixels in each direction; the gap is filled with
            ``background``.
    """

    noise: bool = True
    shift: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """The optimisation, with AdamW. Each setting depends on the step only, so a resumed run repeats an unbroken one.

    Attributes:
        steps: the number of optimiser steps.
        batch: images per optimiser step, over all processes and micro-batches together.
        accumulate: into how many micro-batches each process divides its share (less memory, same result).
        lr: the peak learning rate.
        lr_schedule: ``constant``, or ``cosine``, which reaches 0 one step after the last; both begin with a linear
            rise.
        warmup: the number of steps of the linear rise.
        decay: with a constant rate, the number of last steps in which it falls linearly, to reach 0 one step after the
            last; 0 for none.
        betas, weight_decay: options of AdamW.
        grad_clip: the largest gradient norm; 0 switches clipping off.
        ema: the decay of the exponential moving average of the weights, which is exported; 0 exports the last weights.
        ema_warmup: let the decay start at 0.1 and rise as (1 + step) / (10 + step) until it reaches ``ema``.
        precision: ``bfloat16`` runs the network under autocast; weights, EMA and loss stay in float32.
        seed: all random numbers are functions of this seed, the step and the position in the batch.
        threads: the number of CPU threads; 0 uses torch's number, but at most the cores that the process may use.
            Another number may round differently. On a machine that does other work too, 1 is often the fastest.
        processes: the number of processes that share each batch, on the CPUs of this machine; the run starts the others
            itself. Each uses ``threads`` threads. It is ignored under ``accelerate launch`` and ``torchrun``, which
            have a number of their own.
        device: ``auto`` (a GPU if available) or ``cpu``.
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
    processes: int = 1
    device: Literal["auto", "cpu"] = "auto"


@dataclass(frozen=True)
class OutputConfig:
    """What a run writes, where and how often.

    Attributes:
        folder: contains ``checkpoints/``, ``samples/``, ``tensorboard/`` and, at the end, ``model/``.
        export_dtype: the dtype of the weights in ``model/``: ``float32`` or ``float16``.
        log_every: steps between two entries of TensorBoard (and of the log, if stderr is not a terminal).
        checkpoint_every: steps between two checkpoints; there is always one at the end.
        keep: how many checkpoints are kept; the oldest are removed.
        sample_every: steps between two sample sheets; 0 for none.
        samples: the number of images on a sample sheet.
        sample_steps: the number of DDIM steps for a sample sheet.
        tensorboard: whether to write TensorBoard event files.
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
    """The config of a training run. Its sections are the attributes.

    Attributes:
        data: the images.
        train: the optimisation.
        output: the results.
        task: what is trained: ``pixel``, a diffusion model on pixels (UNet2DModel); ``autoencoder`` (AutoencoderKL);
            ``text``, a text-to-image model on an autoencoder's latents (CLIPTextModel and UNet2DConditionModel, trained
            together); ``flow``, a text-to-image model on rectified flow (SD3Transformer2DModel); or ``classifier``, of
            noisy or clean images (ResNetForImageClassification).
        schedule: the noise levels.
        loss: prediction type and weights.
        pixel, autoencoder, text, flow, classifier: options that only the task of the same name reads.
        model: options of the network's class in diffusers, or of transformers' ResNetConfig; ``train`` checks their
            names.
    """

    data: DataConfig
    train: OptimConfig
    output: OutputConfig
    task: Literal["pixel", "autoencoder", "text", "flow", "classifier"] = "pixel"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pixel: PixelConfig = field(default_factory=PixelConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    def as_dict(self) -> dict[str, Any]:
        """Returns the config as plain values, as they would be read from JSON (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
