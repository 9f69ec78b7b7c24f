"""``ComfyModel``: a MODEL of ComfyUI as a model of the library, whose pictures are latents."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddim import Call, Conditioning, InputError, Model, ModelInfo, Node, PromptConditioning
from ddim.editing.tokens import PromptTokens, Tokens
from ddim.models.attention.unet import following_features
from ddim.models.engine.run import run

from .attention import Patches, Place, feature_site, patches_of, sites_of
from .conditions import TEXT, entries_of
from .schedules import levels_of

Ask = Callable[[Tensor, Tensor, list[Any], str, Patches | None], Tensor]
"""What asks ComfyUI: ``(x, sigma [N], CONDITIONING, branch, patches) -> denoised``, in ComfyUI's convention."""
_OF_GUIDANCE = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
    "context_handler",
)


class ComfyModel(Model):
    """A MODEL of ComfyUI, with its LoRAs, patches and quantisation, as a model of the library.

    Its pictures are latents as LATENT holds them, [N, C, h, w], and ``encode`` and ``decode`` are the scaling between
    these and what the network sees. VAE nodes make them from pictures. Each branch of guidance is asked in a call of
    its own: ComfyUI would join them only while its memory lasts, and the rows of a call decide the last bits.

    Args:
        patcher: the MODEL.
        ask: what asks the network; see ``session``.
        shape: (C, h, w) of the latents.
        prompts: the conditions that the images may have, by their names.
        negative: the condition that guidance leads away from; None if there is none.
        words: the tokens of prompts whose text is known, by the names of their conditions.
        engine: what computes the attention, and in which version of ComfyUI.

    Raises:
        InputError: the model is on no path that the library knows, or a patch of the MODEL replaces guidance.
    """

    def __init__(
        self,
        patcher: Any,
        ask: Ask,
        *,
        shape: tuple[int, int, int],
        prompts: Mapping[str, Conditioning] | None = None,
        negative: Conditioning | None = None,
        words: Mapping[str, PromptTokens] | None = None,
        engine: str = "",
    ) -> None:
        _refuse_guidance_patches(patcher.model_options)
        base = patcher.model
        self.patcher, self._ask, self._engine = patcher, ask, engine
        self.network = base.diffusion_model
        self.levels = levels_of(patcher.get_model_object("model_sampling"))
        self.schedule = self.levels.schedule
        self.latent_format = patcher.get_model_object("latent_format")
        self.prompts = dict(prompts or {})
        self.negative, self.words = negative, dict(words or {})
        self.threads = False  # ComfyUI casts and moves weights during a call
        self._known_fingerprint: str | None = None
        self.info = ModelInfo(
            name=type(base).__name__,
            family="ComfyUI",
            shape=shape,
            picture=shape,
            parameters=sum(p.numel() for p in self.network.parameters()),
            dtype=getattr(base, "manual_cast_dtype", None) or patcher.model_dtype(),
            device=torch.device(patcher.load_device),
            multiple=1,
            text=True,
            guidance_kinds=frozenset() if negative is None else frozenset({"cfg"}),
        )

    @property
    def fingerprint(self) -> str:
        """A hash over the noise levels, the weights before patches, and the patches with their strengths."""
        if self._known_fingerprint is None:
            self._known_fingerprint = _fingerprint(self.patcher, self.schedule.predicts())
        return self._known_fingerprint

    @property
    def engine(self) -> str:
        """What computes the attention, and in which version of ComfyUI."""
        return self._engine

    # --- the network ------------------------------------------------------------------------------------------------

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = Call()) -> Sequence[Tensor]:
        """Returns the outputs under each condition, which are computed one after the other; see ``Model.ask``."""
        return super().ask(x, node, *conditionings, call=replace(call, batched=False))

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Asks ComfyUI once for each group of rows that can stand in one call; see ``Model.forward``.

        Raises:
            InputError: attention control has rows that cannot stand in one call.
        """
        at, branch = self.levels.asked(node), call.branches[0]
        groups = list(entries_of(cond, self.device))
        patches, control = None, None
        if call.controller is not None:
            if len(groups) > 1:
                raise InputError(
                    "the prompts of source and target have texts of unequal lengths or unequal settings, so that the "
                    "target cannot follow the source's attention; use the kind 'none'.",
                    parameter="control",
                )
            patches = patches_of(self._sites(), call.controller, branch)
            control = {"control": call.controller, "cfg_branch": branch}

        def denoised(rows: Tensor, sigma: Tensor) -> Tensor:
            whole = torch.empty_like(rows)
            for which, entries in groups:
                part = self._ask(self._dims(rows[which]), sigma[which], entries, branch, patches)
                whole[which] = self._flat(part).to(rows.dtype)
            return whole

        own = self.levels.sample(x, at)
        sigma = torch.full((len(x),), self.levels.sigma(at), dtype=torch.float32, device=x.device)
        # Not split: a layout still fixes the number of threads that torch uses, and so the last bits of the output.
        settings = {"call": call, "graphs": None, "tf32": self.tf32, "row_work": None, "split": False}
        with following_features(self.network, control):
            return self.levels.output(run(denoised, own, sigma, **settings), x, at)

    def _dims(self, x: Tensor) -> Tensor:
        """Adds the axis of frames that latents of some families have."""
        return x.unsqueeze(2) if getattr(self.latent_format, "latent_dimensions", 2) == 3 else x

    def _flat(self, x: Tensor) -> Tensor:
        return x.squeeze(2) if x.ndim == 5 else x

    # --- attention --------------------------------------------------------------------------------------------------

    def _sites(self) -> dict[tuple[str, Place], Any]:
        replaced = self.patcher.model_options.get("transformer_options", {}).get("patches_replace", {})
        if any(replaced.get(part) for part in ("attn1", "attn2")):
            raise InputError(
                "the MODEL has a patch that replaces its attention, so that it cannot be controlled too; connect the "
                "MODEL without that patch, or use the kind 'none'.",
                parameter="control",
            )
        return sites_of(self.network)

    def attention_sites(self) -> tuple[Any, ...]:
        """Returns the attention layers of a U-Net; see ``Model.attention_sites``."""
        return tuple(self._sites().values())

    def feature_sites(self) -> tuple[str, ...]:
        """Returns the module of a U-Net whose output plug-and-play takes over; see ``Model.feature_sites``."""
        return (feature_site(self.network),)

    # --- conditions -------------------------------------------------------------------------------------------------

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Returns the conditions of these names, and the negative one; by default the first one for all images."""
        names = [prompts] if isinstance(prompts, str) else list(prompts or ())
        names = [name for name in names if name] or list(self.prompts)[:1]
        cond = self.encode_prompt(names * count if len(names) == 1 else names).to(self.device)
        uncond = None if self.negative is None else Conditioning.cat([self.negative] * count).to(self.device)
        return PromptConditioning(cond, uncond)

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Returns the conditions of these names, one row each.

        Raises:
            InputError: no condition has this name.
        """
        for name in prompts:
            if name not in self.prompts:
                raise InputError(f"no condition that is connected has the name {name!r}.", parameter="prompt")
        return Conditioning.cat([self.prompts[name] for name in prompts]).to(self.device)

    def tokens(self, prompt: str) -> PromptTokens:
        """Returns the tokens of a condition: those of its text if that is known, else tokens without words."""
        if prompt in self.words:
            return self.words[prompt]
        text = self.prompts[prompt].tensors.get(TEXT)
        length = 1 if text is None else text.shape[1]
        return Tokens(prompt, (), tuple(range(length)), (), 0, 0, length, length)

    # --- latents ----------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Scales latents of LATENT, [N, C, h, w], to those that the network sees."""
        latents = self._dims(images.to(device=self.device, dtype=self.state_dtype))
        return self._flat(self.latent_format.process_in(latents))

    def decode(self, x0: Tensor) -> Tensor:
        """Scales latents that the network sees to those of LATENT, on the CPU."""
        return self._flat(self.latent_format.process_out(self._dims(x0))).cpu()


def _refuse_guidance_patches(options: Mapping[str, Any]) -> None:
    """Raises InputError for a patch that combines the branches of guidance in its own way."""
    if (name := next((name for name in _OF_GUIDANCE if options.get(name)), None)) is not None:
        raise InputError(
            f"it has a patch of guidance ({name}), such as RescaleCFG sets, which a code does not record; connect the "
            "MODEL as it is before that node.",
            parameter="model",
        )


# --- the fingerprint --------------------------------------------------------------------------------------------------


def _fingerprint(patcher: Any, prediction: str) -> str:
    """Returns a SHA-256 hash over the noise levels, the weights before patches, and the patches.

    Loading a MODEL puts its patches into the weights, and unloading restores them; the hash is the same in between.
    """
    digest = hashlib.sha256(prediction.encode())
    _add(digest, patcher.get_model_object("model_sampling").sigmas)
    backup = getattr(patcher, "backup", {})
    for name, weight in sorted(patcher.model.diffusion_model.state_dict().items()):
        kept = backup.get(f"diffusion_model.{name}")
        digest.update(name.encode())
        _add(digest, weight if kept is None else kept.weight)
    for name, patches in sorted(getattr(patcher, "patches", {}).items()):
        digest.update(name.encode())
        _add(digest, patches)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Adds a value to a hash: of a large tensor at most 8191 elements, in float32."""
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        digest.update(flat[:: max(1, flat.numel() // 4096)].float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for one in value:
            _add(digest, one)
    elif hasattr(value, "weights"):  # an adapter of ComfyUI, such as a LoRA
        digest.update(type(value).__name__.encode())
        _add(digest, value.weights)
    elif value is None or isinstance(value, (str, int, float, bool)):
        digest.update(repr(value).encode())
