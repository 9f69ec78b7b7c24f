"""The nodes that ComfyUI shows."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import ddim
from ddim import Conditioning, InputError, LatentCode

from . import work
from .conditions import conditioning_of, name_of
from .model import ComfyModel
from .noise import CodeNoise

CODE, CONTROL = "DDIM_CODE", "DDIM_CONTROL"
_FOLDER = "ddim"
_T = TypeVar("_T")

_SEED = {"default": 0, "min": 0, "max": 2**32 - 1, "tooltip": "for edit-friendly", "control_after_generate": False}
_STEPS: tuple[Any, ...] = ("INT", {"default": 20, "min": 2, "max": 1000, "tooltip": "ignored if sigmas are connected"})
_INVERSION_GUIDANCE: tuple[Any, ...] = (
    "FLOAT",
    {
        "default": 1.0,
        "min": 0.0,
        "max": 30.0,
        "step": 0.1,
        "tooltip": "the weight of guidance, both ways; 1 makes the code that is edited best",
    },
)


def _inside(
    model: Any, shape: tuple[int, ...], work_on: Callable[[ComfyModel, Callable[[Any], None]], _T], **settings: Any
) -> _T:
    """Calls ``work_on(model, on_event)`` inside ComfyUI's sampling; the settings are those of ``ComfyModel``."""
    from . import session

    def asked(ask: Any) -> _T:
        with work.warnings_logged(), session.progress() as on_event:
            wrapped = ComfyModel(model, ask, shape=shape[1:], engine=session.engine(), **settings)  # type: ignore[arg-type]
            return work_on(wrapped, on_event)

    frames = getattr(model.get_model_object("latent_format"), "latent_dimensions", 2) == 3
    return session.run_inside(model, (*shape[:2], 1, *shape[2:]) if frames else shape, asked)


def _inverted(
    model: Any,
    latent: dict[str, Any],
    positive: Any,
    method: str,
    steps: int,
    guidance: float,
    negative: Any = None,
    sigmas: Any = None,
    seed: int = 0,
) -> tuple[LatentCode, dict[str, Any], CodeNoise, Any]:
    samples = work.samples_of(latent)
    own = conditioning_of(positive, "positive")
    away = None if negative is None else conditioning_of(negative, "negative")
    work.need_negative(guidance, away)
    settings = {"method": method, "steps": steps, "guidance": guidance, "sigmas": sigmas, "seed": seed}

    def run(wrapped: ComfyModel, on_event: Any) -> tuple[LatentCode, dict[str, Any], CodeNoise, Any]:
        made = work.invert(wrapped, samples, on_event=on_event, **settings)
        return made.code, work.latent_of(made.latents, wrapped), made.noise, made.sigmas

    return _inside(model, tuple(samples.shape), run, prompts={name_of(own): own}, negative=away)


class LoadPicture:
    """Loads a picture, encodes it, and inverts it."""

    CATEGORY, FUNCTION = "ddim", "load"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CODE, "IMAGE", "MASK", "LATENT")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("code", "image", "mask", "latent")
    DESCRIPTION = "A picture as a code, from which it is reconstructed to the bit and edited."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        import folder_paths  # type: ignore[import-not-found]

        folder = folder_paths.get_input_directory()
        files = [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name))]
        return {
            "required": {
                "image": (sorted(folder_paths.filter_files_content_types(files, ["image"])), {"image_upload": True}),
                "model": ("MODEL",),
                "vae": ("VAE",),
                "positive": ("CONDITIONING", {"tooltip": "what the picture shows"}),
                "method": (work.methods(), {"default": "belm"}),
                "steps": _STEPS,
                "guidance": _INVERSION_GUIDANCE,
                "size": ("INT", {"default": 0, "min": 0, "max": 8192, "tooltip": "the longer side; 0 keeps it"}),
            },
            "optional": {"negative": ("CONDITIONING",), "sigmas": ("SIGMAS",)},
        }

    @classmethod
    def IS_CHANGED(cls, image: str, **others: Any) -> str:
        """Returns a hash of the file, so that another file of the same name is read again."""
        return hashlib.sha256(_in_folder(image, "image").read_bytes()).hexdigest()

    def load(
        self, image: str, model: Any, vae: Any, positive: Any, size: int = 0, **settings: Any
    ) -> tuple[LatentCode, Any, Any, dict[str, Any]]:
        """Returns the code, the picture, its transparency, and the latents that the code reconstructs."""
        from PIL import Image, UnidentifiedImageError

        path = _in_folder(image, "image")
        multiple = getattr(vae, "spacial_compression_encode", lambda: 8)()
        try:
            with Image.open(path) as opened:
                pixels, mask = work.picture_from(opened, size, multiple if isinstance(multiple, int) else 8)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"{image!r} is no picture that can be read ({error}).", parameter="image") from None
        code, latent, _, _ = _inverted(model, {"samples": vae.encode(pixels)}, positive, **settings)
        return code, pixels, mask, latent


class Invert:
    """Inverts latents to a code."""

    CATEGORY, FUNCTION = "ddim", "invert"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CODE, "LATENT", "NOISE", "SIGMAS")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("code", "latent", "noise", "sigmas")
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]] = (
        "for DDIM Edit, Interpolate and Save",
        "what the code reconstructs: the latent on the lattice of an exact method",
        "the noisy end, for SamplerCustomAdvanced",
        "the noise levels from there to the picture",
    )
    DESCRIPTION = "Latents to a code. Exact methods reconstruct them to the bit."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "latent": ("LATENT",),
                "positive": ("CONDITIONING", {"tooltip": "what the picture shows"}),
                "method": (work.methods(), {"default": "belm"}),
                "steps": _STEPS,
                "guidance": _INVERSION_GUIDANCE,
            },
            "optional": {
                "negative": ("CONDITIONING",),
                "sigmas": ("SIGMAS", {"tooltip": "as a sampler takes them, without FlipSigmas"}),
                "seed": ("INT", _SEED),
            },
        }

    def invert(self, **inputs: Any) -> tuple[LatentCode, dict[str, Any], CodeNoise, Any]:
        """Returns the code, the latents that it reconstructs, the noisy end, and the noise levels."""
        return _inverted(**inputs)


class Edit:
    """Edits the pictures of a code, or reconstructs them."""

    CATEGORY, FUNCTION = "ddim", "edit"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("LATENT", "LATENT")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("latent", "reconstruction")
    DESCRIPTION = "Samples a code under another prompt. Without one, the picture is reconstructed."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        percent = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "how far the edit may go"}
        return {
            "required": {
                "model": ("MODEL",),
                "code": (CODE,),
                "guidance": (
                    "FLOAT",
                    {"default": 7.5, "min": 0.0, "max": 30.0, "step": 0.1, "tooltip": "ignored without positive"},
                ),
                "strength": ("FLOAT", percent),
            },
            "optional": {
                "positive": ("CONDITIONING", {"tooltip": "what the picture is to show; none reconstructs it"}),
                "negative": ("CONDITIONING", {"tooltip": "for a code that was inverted without one"}),
                "control": (CONTROL,),
            },
        }

    def edit(
        self,
        model: Any,
        code: LatentCode,
        guidance: float = 7.5,
        strength: float = 1.0,
        positive: Any = None,
        negative: Any = None,
        control: work.Control | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the edited latents and the reconstructed ones; both are these without ``positive``."""
        own = work.source_names(code)
        shape = tuple(code.state["x"].shape)
        if positive is None:
            if control is not None or strength != 1:
                given = "the control" if control is not None else f"the strength {strength:g}"
                raise InputError(
                    f"{given} acts on an edit, and without a positive prompt there is none; connect one.",
                    parameter="positive",
                )

            def again(wrapped: ComfyModel, on_event: Any) -> dict[str, Any]:
                return work.latent_of(ddim.reconstruct(wrapped, code, on_event=on_event), wrapped)

            made = _inside(model, shape, again, prompts=own, negative=work.negative_of(code))
            return made, made
        target = conditioning_of(positive, "positive")
        away = None if negative is None else conditioning_of(negative, "negative")
        whole, control = work.code_with_negative(code, away), control or work.Control()
        work.need_negative(guidance, whole.conditions.uncond)
        words = _words(control, own, target)
        settings = {"guidance": guidance, "strength": strength, "control": control}

        def run(wrapped: ComfyModel, on_event: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            edited = work.edit(wrapped, whole, target, on_event=on_event, **settings)  # type: ignore[arg-type]
            return work.latent_of(edited.edits, wrapped), work.latent_of(edited.reconstruction, wrapped)

        prompts = {**own, name_of(target): target}
        return _inside(model, shape, run, prompts=prompts, negative=work.negative_of(whole), words=words)


def _words(control: work.Control, own: dict[str, Conditioning], target: Conditioning) -> dict[str, Any]:
    """Returns the tokens of the prompts by the names of their conditions; none without a text encoder."""
    if control.words is None:
        return {}
    source, wanted = control.words
    return {**dict.fromkeys(own, source), name_of(target): wanted}


class Control:
    """Sets where a picture may change, and how its attention follows the source."""

    CATEGORY, FUNCTION = "ddim", "control"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CONTROL,)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("control",)
    DESCRIPTION = "A mask, and attention control (U-Nets): where and how an edit follows its source."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        window = {"default": -1.0, "min": -1.0, "max": 1.0, "step": 0.05, "tooltip": "part of the steps; -1: usual"}
        return {
            "required": {
                "kind": (list(work.KINDS), {"default": "none", "tooltip": "attention control"}),
                "cross_until": ("FLOAT", window),
                "self_until": ("FLOAT", window),
                "auto_mask": ("BOOLEAN", {"default": False, "tooltip": "change only where the prompts differ"}),
                "source_text": ("STRING", {"default": "", "tooltip": "for refine, replace and blend"}),
                "target_text": ("STRING", {"default": ""}),
                "blend": ("STRING", {"default": "", "tooltip": "words that change, source/target, or auto"}),
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "1 where the picture may change"}),
                "clip": ("CLIP", {"tooltip": "for refine, replace and blend"}),
            },
        }

    def control(
        self,
        kind: str = "none",
        cross_until: float = -1.0,
        self_until: float = -1.0,
        auto_mask: bool = False,
        source_text: str = "",
        target_text: str = "",
        blend: str = "",
        mask: Any = None,
        clip: Any = None,
    ) -> tuple[work.Control]:
        """Returns the settings for DDIM Edit."""
        if kind not in work.KINDS:
            raise InputError(f"{kind!r} is none of: {', '.join(work.KINDS)}.", parameter="kind")
        words = None
        if clip is not None and (kind in work.OF_WORDS or blend):
            texts = {"source_text": source_text, "target_text": target_text}
            source, target = (work.control_words(clip, text, name) for name, text in texts.items())
            words = source, target
        cross, own = (None if until < 0 else until for until in (cross_until, self_until))
        return (work.Control(kind, cross, own, mask, auto_mask, words, blend),)


class Interpolate:
    """Samples pictures between two codes."""

    CATEGORY, FUNCTION = "ddim", "interpolate"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("LATENT",)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("latent",)
    DESCRIPTION = "Pictures on the arc between two codes; the first and the last are their reconstructions."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        frames = {"default": 5, "min": 2, "max": 256}
        inputs = {"model": ("MODEL",), "code_a": (CODE,), "code_b": (CODE,), "frames": ("INT", frames)}
        return {"required": inputs}

    def interpolate(self, model: Any, code_a: LatentCode, code_b: LatentCode, frames: int = 5) -> tuple[dict[str, Any]]:
        """Returns the latents of the pictures, in order."""
        prompts = {**work.source_names(code_a), **work.source_names(code_b)}
        if len(prompts) != 1:
            raise InputError(
                f"the codes have {len(prompts)} conditions, {', '.join(prompts)}, and the pictures between need one; "
                "invert both with the same positive.",
                parameter="code_b",
            )
        sizes = [tuple(code.state["x"].shape[1:]) for code in (code_a, code_b)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"its latents have the shape {sizes[1]}, and those of code_a {sizes[0]}; use pictures of one size.",
                parameter="code_b",
            )

        def run(wrapped: ComfyModel, on_event: Any) -> dict[str, Any]:
            samples = ddim.interpolate(wrapped, code_a, code_b, frames=frames, on_event=on_event)
            return work.latent_of(samples, wrapped)

        shape, negative = (frames, *sizes[0]), work.negative_of(code_a)
        return (_inside(model, shape, run, prompts=prompts, negative=negative),)


class Compare:
    """Compares two pictures or two latents to the bit."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "ddim", "compare", True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("STRING", "IMAGE", "BOOLEAN")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("text", "difference", "exact")
    DESCRIPTION = "Whether two pictures or latents are equal to the bit, and how far they are apart."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        return {"required": {"a": ("IMAGE,LATENT",), "b": ("IMAGE,LATENT",)}}

    def compare(self, a: Any, b: Any) -> dict[str, Any]:
        """Returns a sentence, the difference as a picture, and whether every bit is equal."""
        found = work.compare(a, b)
        return {"ui": {"text": [found.sentence]}, "result": (found.sentence, found.difference, found.equal)}


class SaveCode:
    """Writes a code to a file in ComfyUI's output folder."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "ddim", "save", True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CODE, "STRING")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("code", "name")
    DESCRIPTION = "A code as a safetensors file, which the command ddim reads too."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        return {"required": {"code": (CODE,), "filename_prefix": ("STRING", {"default": "code"})}}

    def save(self, code: LatentCode, filename_prefix: str = "code") -> dict[str, Any]:
        """Returns the code and the name of its file."""
        folder = _codes()
        if not filename_prefix or Path(filename_prefix).name != filename_prefix:
            raise InputError(
                f"{filename_prefix!r} is no plain name of a file; its folder is always output/{_FOLDER}.",
                parameter="filename_prefix",
            )
        folder.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in folder.iterdir()}
        names = (f"{filename_prefix}_{k:05}.safetensors" for k in range(1, len(taken) + 2))
        name = next(name for name in names if name not in taken)
        code.save(folder / name)
        return {"ui": {"text": [name]}, "result": (code, name)}


class LoadCode:
    """Reads a code from a file in ComfyUI's output folder."""

    CATEGORY, FUNCTION = "ddim", "load"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = (CODE,)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("code",)
    DESCRIPTION = "A code that DDIM Save Code, or the command ddim, wrote."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the inputs."""
        folder = _codes()
        names = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
        return {"required": {"name": (names,)}}

    @classmethod
    def VALIDATE_INPUTS(cls, name: str) -> bool | str:
        """Accepts a file that was written after the list of names was read."""
        return True if (_codes() / Path(name).name).is_file() else f"There is no code {name!r} in output/{_FOLDER}."

    @classmethod
    def IS_CHANGED(cls, name: str) -> float:
        """Returns the time of the file, so that it is read again once it changed."""
        path = _codes() / Path(name).name
        return path.stat().st_mtime if path.is_file() else 0.0

    def load(self, name: str) -> tuple[LatentCode]:
        """Returns the code."""
        path = _codes() / Path(name).name
        if not path.is_file():
            raise InputError(f"there is no code {name!r} in output/{_FOLDER}; save one first.", parameter="name")
        return (LatentCode.load(path),)


def _codes() -> Path:
    import folder_paths  # type: ignore[import-not-found]

    return Path(folder_paths.get_output_directory()) / _FOLDER


def _in_folder(name: str, parameter: str) -> Path:
    """Returns the path of a file of ComfyUI's folders. Raises InputError for one outside them, or that is missing."""
    import folder_paths  # type: ignore[import-not-found]

    path = Path(folder_paths.get_annotated_filepath(name)).resolve()
    kept = [
        Path(folder).resolve() for folder in (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    ]
    if not path.is_file() or not any(folder in path.parents for folder in kept):
        raise InputError(f"there is no file {name!r} in ComfyUI's input folder.", parameter=parameter)
    return path


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "DDIMLoadPicture": LoadPicture,
    "DDIMInvert": Invert,
    "DDIMEdit": Edit,
    "DDIMControl": Control,
    "DDIMInterpolate": Interpolate,
    "DDIMCompare": Compare,
    "DDIMSaveCode": SaveCode,
    "DDIMLoadCode": LoadCode,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "DDIMLoadPicture": "DDIM Load Picture to Code",
    "DDIMInvert": "DDIM Invert",
    "DDIMEdit": "DDIM Edit or Reconstruct",
    "DDIMControl": "DDIM Attention and Mask",
    "DDIMInterpolate": "DDIM Interpolate",
    "DDIMCompare": "DDIM Compare",
    "DDIMSaveCode": "DDIM Save Code",
    "DDIMLoadCode": "DDIM Load Code",
}
