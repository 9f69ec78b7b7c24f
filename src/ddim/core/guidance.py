"""Classifier-free guidance and classifier guidance: denoisers that are led by a condition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName, is_dict, is_number, is_range, is_whole
from .._utils.tensors import per_sample, quantile_of
from .conditioning import EMBEDDED, Conditioning, PromptConditioning, equal_rows
from .denoiser import PLAIN, Call, Denoiser, ModelDenoiser, Network
from .grid import Grid
from .path import Node
from .prediction import NO_HOLD, Hold, Pair, to_pair, with_x0

Prompts = PromptConditioning | Callable[[Node], PromptConditioning]
"""The two conditions of guidance: one value for all nodes, or a function that returns the value for a node."""


@dataclass(frozen=True)
class SkipLayers:
    """The settings of skip-layer guidance, which Stable Diffusion 3.5 uses beside classifier-free guidance.

    In some steps the network is called a third time, under the condition of the image, with some of its layers left
    out. The difference to its whole output is added: output += scale (cond - skipped).

    Args:
        layers: the indices of the layers that are left out, from 0.
        scale: the factor of the difference.
        interval: (start, stop) as parts of the S steps in [0, 1]: the step i takes part if S start < i < S stop. The
            defaults of both are those of the pipeline of diffusers.
        window: (low, high): the steps that take part as times, low < t <= high, so that it does not depend on the
            direction in which a grid is stepped. ``on`` sets it.

    Raises:
        InputError: a value is out of its range.
    """

    layers: tuple[int, ...]
    scale: float = 2.8
    interval: tuple[float, float] = (0.01, 0.2)
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        listed: Any = self.layers
        layers: tuple[Any, ...] = tuple(cast("Sequence[Any]", listed)) if isinstance(listed, (tuple, list)) else ()
        if not layers or len(set(layers)) < len(layers) or not all(is_whole(k) and k >= 0 for k in layers):
            raise InputError(
                f"{self.layers!r} is no list of different layers; (7, 8, 9) is usual.", parameter="skip_layers"
            )
        if not is_number(self.scale):
            raise InputError(f"{self.scale!r} is not a number; 2.8 is usual.", parameter="skip_scale")
        if not is_range(self.interval) or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise InputError(f"{self.interval} is no part of [0, 1]; (0.01, 0.2) is usual.", parameter="skip_steps")
        if self.window is not None and not is_range(self.window):
            raise InputError(f"{self.window} is not a pair of times; leave it out.", parameter="window")
        object.__setattr__(self, "layers", tuple(int(k) for k in layers))

    def on(self, grid: Grid) -> "SkipLayers":
        """Returns a copy with the window of a grid. A window that is set already is kept.

        Raises:
            InputError: no step of the grid takes part.
        """
        if self.window is not None:
            return self
        start, stop = self.interval
        inside = [i for i in range(grid.steps) if grid.steps * start < i < grid.steps * stop]
        if not inside:
            raise InputError(
                f"({start:g}, {stop:g}) holds none of {grid.steps} steps; use a later stop, or more steps.",
                parameter="skip_steps",
            )
        return replace(self, window=(grid[inside[-1] + 1].t, grid[inside[0]].t))

    def applies(self, node: Node) -> bool:
        """Whether the layers are skipped in the step that begins at a node, or that the node lies in.

        Raises:
            InputError: the window is not set.
        """
        if self.window is None:
            raise InputError(
                "its steps are those of a grid, which is not known here; use guidance.on(grid).", parameter="skip"
            )
        low, high = self.window
        return low < node.t <= high

    @property
    def options(self) -> dict[str, Any]:
        """The settings as JSON values by name."""
        values: dict[str, Any] = {"layers": list(self.layers), "scale": float(self.scale)}
        values["interval"] = [float(part) for part in self.interval]
        return values if self.window is None else {**values, "window": [float(t) for t in self.window]}

    @staticmethod
    def of(options: Any) -> "SkipLayers":
        """Makes a ``SkipLayers`` from what its property ``options`` returned. Raises InputError for anything else."""
        if not is_dict(options) or not {"layers"} <= set(options) <= {"layers", "scale", "interval", "window"}:
            raise InputError(f"{options!r} are no settings of skip-layer guidance.", parameter="skip")
        values: dict[str, Any] = {**options}
        values |= {key: tuple(options[key]) for key in ("interval", "window") if is_range(options.get(key))}
        return SkipLayers(**values)


PROXIMAL_KINDS = ("l0", "l1")


@dataclass(frozen=True)
class Proximal:
    """The settings of proximal guidance, which ignores small differences between the two branches.

    Guidance adds a multiple of the difference d = cond - uncond of the network's outputs. Here d is replaced by its
    proximal operator, with a threshold that is a quantile of |d| in each sample: elements of at most the threshold
    become 0 ("l0"), and with "l1" the others also shrink by the threshold. An edit then leaves the places alone that
    the prompt hardly concerns. For a given x, the differences of all kinds of prediction are multiples of each other,
    so that the elements that remain do not depend on the kind.

    "Reconstruction guidance" adds to it: in the last steps, the elements of x0 where d became 0 are moved towards the
    encoded image that an edit began with. Only a code that stores its image has one, such as one of ``prox-npi``.

    Source: Han et al. 2024, arXiv 2306.05414, section 3.2.

    Args:
        kind: ``"l0"`` (a hard threshold) or ``"l1"`` (a soft one).
        quantile: in (0, 1): the share of the elements that become 0. 0.7 is the default of the authors.
        pull: in [0, 1]: how far x0 is moved; 0 is no reconstruction guidance.
        until: in (0, 1]: t / T below which x0 is moved.
        dilation: an odd number of latent pixels: the width of the square that is spared around each element that is
            not 0; 1 is the element alone.

    Raises:
        InputError: a value is unknown or out of its range.
    """

    kind: str = "l0"
    quantile: float = 0.7
    pull: float = 0.0
    until: float = 0.4
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.kind not in PROXIMAL_KINDS:
            raise UnknownName("proximal operator", str(self.kind), PROXIMAL_KINDS, parameter="proximal")
        if not is_number(self.quantile) or not 0 < self.quantile < 1:
            raise InputError(f"{self.quantile!r} lies outside (0, 1); 0.7 is usual.", parameter="proximal_quantile")
        if not is_number(self.pull) or not 0 <= self.pull <= 1:
            raise InputError(f"{self.pull!r} lies outside [0, 1]; 0 does not pull.", parameter="pull")
        if not is_number(self.until) or not 0 < self.until <= 1:
            raise InputError(f"{self.until!r} lies outside (0, 1]; 0.4 is usual.", parameter="until")
        if not is_whole(self.dilation) or self.dilation < 1 or self.dilation % 2 == 0:
            raise InputError(f"{self.dilation!r} is not an odd number; 1 does not dilate.", parameter="dilation")

    def __call__(self, difference: Tensor) -> Tensor:
        """Applies the operator to each sample of a difference, [N, ...]."""
        size = difference.abs()
        threshold = quantile_of(size.detach(), self.quantile)
        if self.kind == "l0":
            return torch.where(size > threshold, difference, torch.zeros_like(difference))
        return difference.sign() * (size - threshold).clamp(min=0)

    def pulls(self, node: Node, t_max: float) -> bool:
        """Whether x0 is moved at a node of a path that ends at ``t_max``."""
        return self.pull > 0 and node.t < self.until * t_max

    def pulled(self, pair: Pair, difference: Tensor, anchor: Tensor, x: Tensor, node: Node) -> Pair:
        """Moves x0 towards an image where the operator made the difference 0, and recomputes eps.

        Args:
            pair: the guided prediction.
            difference: cond - uncond before the operator, [N, ...].
            anchor: the encoded images, [N, ...].
            x, node: where the network was called.
        """
        spared = (self(difference) != 0).to(pair.x0)
        if self.dilation > 1:
            spared = torch.nn.functional.max_pool2d(spared, self.dilation, 1, self.dilation // 2)
        return with_x0(pair, torch.lerp(pair.x0, anchor.to(pair.x0), self.pull * (1 - spared)), x, node)

    @property
    def options(self) -> dict[str, Any]:
        """The settings as JSON values by name; those of reconstruction guidance only if it acts."""
        more = {"pull": float(self.pull), "until": float(self.until), "dilation": self.dilation} if self.pull else {}
        return {"kind": self.kind, "quantile": float(self.quantile), **more}

    @staticmethod
    def of(options: Any) -> "Proximal":
        """Makes a ``Proximal`` from what its property ``options`` returned. Raises InputError for anything else."""
        needed = {"kind", "quantile"}
        if not is_dict(options) or set(options) not in (needed, needed | {"pull", "until", "dilation"}):
            raise InputError(f"{options!r} are no settings of proximal guidance.", parameter="proximal")
        return Proximal(**options)


@dataclass(frozen=True)
class Guidance:
    """The settings of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    Args:
        weight: the weight w; 1 is the conditional model, 0 the unconditional one.
        rescale: phi in [0, 1]: how far the standard deviation of the guided output is moved back to that of the
            conditional output; 0 does not rescale (Lin et al. 2024, arXiv 2305.08891, Eq. 14-16).
        interval: (low, high) of t / T in [0, 1]; outside it w is 1 (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        embedded: the guidance scale that a guidance-distilled network takes as an input, besides ``weight``. None is
            the scale in the conditions: for samples ``ModelInfo.embedded``, and 1 for an inversion.
        batched_cfg: whether both branches are evaluated in one batch; False evaluates them one after the other, which
            needs half the memory.
        skip: skip-layer guidance, for networks that can leave out layers; None does without.
        proximal: proximal guidance, which ignores small differences between the two branches; None does without.

    Raises:
        InputError: a value is out of its range.
    """

    weight: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    embedded: float | None = None
    batched_cfg: bool = True
    skip: SkipLayers | None = None
    proximal: Proximal | None = None

    def __post_init__(self) -> None:
        if not is_number(self.weight):
            raise InputError(
                f"{self.weight} is not a number; 1 is the conditional model, 7.5 is usual.", parameter="guidance"
            )
        if not is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise InputError(
                f"{self.rescale} lies outside [0, 1]; 0 switches it off, 0.7 is usual.", parameter="rescale"
            )
        if not is_range(self.interval):
            raise InputError(f"{self.interval} is not a pair of numbers; (0, 1) is all of it.", parameter="interval")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(f"({low:g}, {high:g}) is no part of [0, 1]; (0, 1) is all of it.", parameter="interval")
        if self.embedded is not None and not is_number(self.embedded):
            raise InputError(f"{self.embedded} is not a number; 3.5 is usual.", parameter="embedded")
        skip: Any = self.skip
        if skip is not None and not isinstance(skip, SkipLayers):
            raise InputError(f"a {type(skip).__name__} is not what it takes; use ddim.SkipLayers.", parameter="skip")
        proximal: Any = self.proximal
        if proximal is not None and not isinstance(proximal, Proximal):
            raise InputError(
                f"a {type(proximal).__name__} is not what it takes; use ddim.Proximal.", parameter="proximal"
            )

    def on(self, grid: Grid) -> "Guidance":
        """Returns a copy whose skip-layer guidance knows its steps on a grid; see ``SkipLayers.on``."""
        return self if self.skip is None else replace(self, skip=self.skip.on(grid))

    def at(self, weight: float) -> "Guidance":
        """Returns a copy with another weight."""
        return replace(self, weight=weight)

    def applies(self, node: Node, t_max: float) -> bool:
        """Whether the unconditional branch is needed at a node: the weight is not 1 and t lies in the interval."""
        return self.weight != 1 and self.covers(node, t_max)

    def covers(self, node: Node, t_max: float) -> bool:
        """Whether t of a node lies in the interval."""
        low, high = self.interval
        return low <= node.t / t_max <= high

    @property
    def options(self) -> dict[str, Any]:
        """The settings as JSON values by name, as a ``LatentCode`` stores them; without ``batched_cfg``."""
        more: dict[str, Any] = {} if self.embedded is None else {"embedded": float(self.embedded)}
        low, high = self.interval
        more |= {} if self.skip is None else {"skip": self.skip.options}
        more |= {} if self.proximal is None else {"proximal": self.proximal.options}
        interval = [float(low), float(high)]
        return {"weight": float(self.weight), "rescale": float(self.rescale), "interval": interval, **more}

    @staticmethod
    def of(options: Mapping[str, Any] | None, batched_cfg: bool = True) -> "Guidance":
        """Makes a ``Guidance`` from what its property ``options`` returned; empty options are the conditional model."""
        if not options:
            return Guidance(batched_cfg=batched_cfg)
        low, high = options.get("interval", (0.0, 1.0))
        return Guidance(
            float(options["weight"]),
            float(options.get("rescale", 0.0)),
            (low, high),
            options.get("embedded"),
            batched_cfg,
            SkipLayers.of(options["skip"]) if "skip" in options else None,
            Proximal.of(options["proximal"]) if "proximal" in options else None,
        )


def combine(cond: Tensor, uncond: Tensor, guidance: Guidance) -> Tensor:
    """Returns uncond + w (cond - uncond), rescaled if ``guidance.rescale`` is not 0.

    Source: Ho & Salimans 2022, Eq. 6, with w = (their w) + 1; the rescaling is of Lin et al. 2024, Eq. 14-16.

    Args:
        cond, uncond: the outputs of the network under the two conditions, [N, ...].
        guidance: the weight and the rescaling.
    """
    output = uncond + guidance.weight * (cond - uncond)
    if not guidance.rescale:
        return output
    ratio = _spread(cond) / _spread(output).clamp(min=1e-12)
    return output * (guidance.rescale * ratio + (1 - guidance.rescale))


def combined(network: Network, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
    """Returns the guided output of a network, in its own way, after proximal guidance if it is set.

    Args:
        network: the model, which combines the outputs of the two branches.
        cond, uncond: its outputs under the two conditions, [N, ...].
        guidance: the settings of guidance.
        node: the node of the call.
    """
    if guidance.proximal is not None:
        cond = uncond + guidance.proximal(cond - uncond)
    return network.combine(cond, uncond, guidance, node)


def skip_term(
    network: Network, guidance: Guidance, x: Tensor, node: Node, cond: Conditioning, output: Tensor, call: Call
) -> Tensor | None:
    """Returns what skip-layer guidance adds to the guided output at a node, [N, ...]; None if it does not act there.

    Args:
        network: the model.
        guidance: the settings of guidance.
        x: the sample, [N, ...].
        node: its node.
        cond: the condition of the image.
        output: the whole output of the network under ``cond``.
        call: the other arguments of network calls. The third call is not controlled: it has other layers.
    """
    skip = guidance.skip
    if skip is None or not guidance.applies(node, network.schedule.path.t_max) or not skip.applies(node):
        return None
    (skipped,) = network.ask(x, node, cond, call=replace(call, branches=("cond",), controller=None, skip=skip.layers))
    return skip.scale * (output - skipped)


def with_embedded(prompts: PromptConditioning, scale: float | None) -> PromptConditioning:
    """Sets the guidance scale that a guidance-distilled network takes as an input, in all rows of both branches.

    Args:
        prompts: the conditions of such a network, which contain a scale.
        scale: ``Guidance.embedded``; None leaves the conditions as they are.

    Raises:
        InputError: the conditions contain no scale, because they are of another network.
    """
    if scale is None:
        return prompts
    if EMBEDDED not in prompts.cond:
        raise InputError(
            f"{scale:g} is an input of guidance-distilled networks, and these conditions are of another; leave it out.",
            parameter="embedded",
        )

    def told(cond: Conditioning) -> Conditioning:
        return cond.replace(**{EMBEDDED: torch.full_like(cond.tensors[EMBEDDED], scale)})

    return PromptConditioning(told(prompts.cond), None if prompts.uncond is None else told(prompts.uncond))


def _spread(x: Tensor) -> Tensor:
    return per_sample(x.flatten(1).std(dim=1), x)


def nothing_to_lead_away_from(guidance: Guidance) -> InputError:
    """Returns the error for a weight other than 1 without an unconditional branch."""
    return InputError(
        f"{guidance.weight:g} needs something to lead away from, and this model has none; use 1.", parameter="guidance"
    )


def guided(
    network: Network,
    guidance: Guidance,
    prompts: Prompts,
    *,
    hold: Hold = NO_HOLD,
    call: Call = PLAIN,
    anchor: Tensor | None = None,
) -> ModelDenoiser:
    """Makes a denoiser from a network and classifier-free guidance. Where w = 1, only the conditional branch is used.

    ``guidance.embedded`` replaces the scale in the conditions; see ``with_embedded``.

    Args:
        network: the model.
        guidance: the settings of guidance.
        prompts: the two conditions of each sample, or a function that returns them for a node.
        hold: limits x0 after guidance.
        call: the other arguments of every network call. The denoiser takes the attention controller from its own call.
        anchor: the encoded images that reconstruction guidance pulls to, [N, ...]; see ``Proximal``.

    Raises:
        InputError: during a call, if the weight is not 1 and there is no unconditional branch, if
            ``guidance.embedded`` is set and the network does not take it, or if there is no ``anchor`` to pull to.
    """
    schedule, proximal = network.schedule, guidance.proximal

    def denoise(x: Tensor, node: Node, own: Call = PLAIN) -> Pair:
        at = with_embedded(prompts(node) if callable(prompts) else prompts, guidance.embedded)
        arguments = replace(call, controller=own.controller)
        if guidance.applies(node, schedule.path.t_max):
            if at.uncond is None:
                raise nothing_to_lead_away_from(guidance)
            if proximal is not None and proximal.pull and anchor is None:
                raise InputError(
                    f"{proximal.pull:g} needs the image of a code of 'prox-npi', and there is none here; leave it 0.",
                    parameter="pull",
                )
            arguments = replace(arguments, branches=("uncond", "cond"), batched=guidance.batched_cfg)
            uncond, cond = network.ask(x, node, at.uncond, at.cond, call=arguments)
            output = combined(network, cond, uncond, guidance, node)
            term = skip_term(network, guidance, x, node, at.cond, cond, arguments)
            output = output if term is None else output + term
            pair = to_pair(schedule.prediction, output, x, node, sigma_data=schedule.sigma_data)
            if proximal is not None and anchor is not None and proximal.pulls(node, schedule.path.t_max):
                # Predictions under equal conditions can differ by rounding, of which a quantile would spare a part.
                differ = per_sample(~equal_rows(at.cond, at.uncond), x)
                pair = proximal.pulled(pair, (cond - uncond) * differ, anchor, x, node)
        else:
            (output,) = network.ask(x, node, at.cond, call=arguments)
            pair = to_pair(schedule.prediction, output, x, node, sigma_data=schedule.sigma_data)
        return hold(pair, x, node) if hold.acts else pair

    return denoise


class Classifier(Protocol):
    """A classifier of noisy samples, such as ``ddim.load_classifier`` returns."""

    def __call__(self, x: Tensor, node: Node, labels: Tensor) -> Tensor:
        """Returns log p(label | x) for each sample x [N, ...] and its own label, [N]; differentiable in x."""
        ...


def classifier_guided(denoise: Denoiser, classifier: Classifier, labels: Tensor, weight: float) -> Denoiser:
    """Wraps a denoiser with classifier guidance: eps' = eps - sigma w grad_x log p(label | x).

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), Eq. 14, with the scale w of their Algorithm 2. x0 is recomputed,
    so that x = alpha x0 + sigma eps still holds. The formula holds on every Gaussian path, because the score is
    -eps / sigma on all of them. The gradient is that of the classifier alone, and it is computed even if the caller
    records no gradients. The pair does not change where sigma = 0, where the gradient has the factor 0, and where
    alpha = 0, where x contains no information about the label.

    Args:
        denoise: the model.
        classifier: a classifier of the same images and noise levels.
        labels: the class of each sample, int64 [N].
        weight: the weight w. 1 samples p(x | label) by Bayes' rule, 0 is the unguided model, and larger weights follow
            the class more closely with less variety.

    Raises:
        InputError: ``weight`` is not a number.
    """
    check_classifier_weight(weight)

    def guided_by_classifier(x: Tensor, node: Node) -> Pair:
        pair = denoise(x, node)
        if weight == 0 or node.sigma == 0 or node.alpha == 0:
            return pair
        with torch.inference_mode(False), torch.enable_grad():
            # A clone: x may be an inference tensor, which autograd cannot record.
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(classifier(at, node, labels).sum(), at)
        eps = pair.eps - node.sigma * weight * slope
        return Pair((x - node.sigma * eps) / node.alpha, eps)

    return guided_by_classifier


def check_classifier_weight(weight: float) -> None:
    """Raises InputError if the weight of classifier guidance is not a number."""
    if not is_number(weight):
        raise InputError(f"{weight} is not a number; 1 is Bayes' rule, 3 is usual.", parameter="classifier_weight")
