"""Damaged folders of models, latent codes and recipes.

What is loaded must draw the undamaged pictures, or raise a DDIMError, or draw other finite ones and be right to. It
is nonsense if they differ without an error or a DDIMWarning although no weight was changed, unless a field that is
there to change results (``MEANT``) got another value of its own type, or was left out where its class has a default.
A value of the wrong type, a null, an unknown field, a lacking, renamed, extra or misshapen tensor may not change them
in silence; nor may a scheduler's field that changes pictures be passed over (``KNOBS``). A recipe with a misspelt key
or a value of the wrong type must be refused.
"""

import copy
import importlib
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import fuzz_material
import torch
from fuzz import Case, Fault
from safetensors.torch import load_file, save_file

import ddim

SCHEDULER = {"_class_name", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas"}
SCHEDULER |= {"prediction_type", "rescale_betas_zero_snr", "set_alpha_to_one", "steps_offset", "timestep_spacing"}
SCHEDULER |= {"clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
NETWORK = {"act_fn", "norm_eps", "norm_num_groups", "freq_shift", "flip_sin_to_cos", "downsample_padding"}
NETWORK |= {"attention_head_dim", "num_attention_heads", "mid_block_scale_factor", "center_input_sample", "sample_size"}
NETWORK |= {"resnet_time_scale_shift", "time_embedding_type", "attn_norm_num_groups", "resnet_skip_time_act"}
NETWORK |= {"resnet_out_scale_factor", "time_embedding_act_fn", "dual_cross_attention", "class_embed_type"}
VAE = {"scaling_factor", "shift_factor", "act_fn", "norm_num_groups", "sample_size", "latents_mean", "latents_std"}
WORDS = {"hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id", "bos_token_id", "pad_token_id"}
CLASSIFIER = {"hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck", "image_size"}
TOKENS = {"model_max_length", "bos_token", "eos_token", "pad_token", "unk_token", "do_lower_case", "errors"}
TOKENS |= {"add_prefix_space", "added_tokens_decoder"}
CODE = {"solver", "options", "guidance", "weight", "rescale", "interval", "spacing", "grid", "gamma"}
MEANT = SCHEDULER | NETWORK | VAE | WORDS | CLASSIFIER | TOKENS | CODE
KNOBS = [  # schedulers and what changes their pictures: taken, refused, or at least said
    *(("DPMSolverMultistepScheduler", {f"use_{kind}_sigmas": True}) for kind in ("flow", "karras", "beta")),
    *(("EulerDiscreteScheduler", {f"use_{kind}_sigmas": True}) for kind in ("karras", "exponential", "beta")),
    *(("FlowMatchEulerDiscreteScheduler", knob) for knob in ({"shift": 3.0}, {"use_dynamic_shifting": True})),
    *(("DDIMScheduler", {knob: True}) for knob in ("clip_sample", "thresholding", "rescale_betas_zero_snr")),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
]
NULLABLE = {"attention_head_dim", "shift_factor", "class_embed_type", "sample_size", "latents_mean", "latents_std"}
ABSURD = [0, -1, math.nan, math.inf, 1e9, 10**30, 0.5, 7, 1_000_000]
PREFIXES = ("module.", "_orig_mod.", "model.", "unet.")
LABOUR = {"steps", "batch", "size", "samples", "sample_steps", "repeat", "workers", "threads"}  # honest work, if large
DEEP = "[" * 100_000


def prepare(kind: str, root: Path) -> Any:
    """The folder that is copied for each case, and what comes of it undamaged."""
    for needed in ("datasets", "ddim.training.loop"):  # children then find it imported
        importlib.import_module(needed)

    if kind == "recipes":
        return root, recipes(root)
    fuzz_material.models(root)
    if kind == "codes":
        fuzz_material.codes(root)
        return root, {p.name: came_back(root, p.name) for p in sorted(root.glob("*.code.safetensors"))}
    return root, {which: drawn(root, which) for which in ("pixel", "classes", "text", "classifier")}


def run(case: Case, material: Any) -> str:
    """One case of any of the three kinds."""
    root, right = material
    shutil.copytree(root, ".", dirs_exist_ok=True)
    return {"configs": config, "codes": code, "recipes": recipe}[case.kind](case, right)


# --- damage ---------------------------------------------------------------------------------------------------------


def another(value: Any, how: str, chance: Any) -> Any:
    """Another value: of the same type (``other``), absurd, or of the wrong type."""
    if how == "wrong type":
        wrong: list[Any] = ["text", [1], {}, {"a": [None]}, "", 3, True, [[]], "1"]
        kinds = (bool,) if isinstance(value, bool) else (int, float) if isinstance(value, (int, float)) else type(value)
        return chance.choice(
            [w for w in wrong if not isinstance(w, kinds) or isinstance(w, bool) != isinstance(value, bool)]
        )
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return chance.choice(ABSURD) if how == "absurd" else value * 2 if chance.random() < 0.5 else value + 1
    if isinstance(value, str):
        return chance.choice(["", "nonsense", "é\0\n", "w" * 300]) if how == "absurd" else value[::-1]
    if isinstance(value, list):
        return chance.choice([[], value * 1000, [0], [None], value[::-1]]) if how == "absurd" else value[:-1]
    return chance.choice([{}, None]) if isinstance(value, dict) else 1


def damage_tree(tree: dict[str, Any], chance: Any) -> tuple[str, str]:
    """Changes one field of nested tables in place; says how, and which."""
    where, key = tree, chance.choice(sorted(tree))
    while isinstance(where[key], dict) and where[key] and chance.random() < 0.9:
        where = where[key]
        key = chance.choice(sorted(where))
    how = chance.choice(
        ["removed", "null", "wrong type", "wrong type", "absurd", "absurd", "other", "misspelt", "added"]
    )
    if how in ("removed", "misspelt"):
        value = where.pop(key)
        if how == "misspelt":
            where[key[:-1] + "_"] = value
    elif how == "added":
        where["unheard_of"] = 1
        key = "unheard_of"
    else:
        where[key] = None if how == "null" else another(where[key], how, chance)
    return how, key


def damage_bytes(file: Path, chance: Any) -> str:
    """Cuts a file, empties it, makes it something else, or takes it away."""
    data, how = file.read_bytes(), chance.choice(["cut", "empty", "garbage", "list", "deep", "gone", "latin"])
    new = {"cut": data[: chance.randrange(len(data))], "empty": b"", "garbage": chance.randbytes(200), "list": b"[1]"}
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({**new, "deep": DEEP.encode(), "latin": b'{"a": "\xe9"}'}[how])
    return how


def damage_tensors(file: Path, chance: Any) -> tuple[str, str]:
    """Changes one tensor of a file, or all names; says how, and which."""
    with_metadata = file.name.endswith(".code.safetensors")
    tensors, metadata = load_file(file), header(file) if with_metadata else {"format": "pt"}
    name = chance.choice(sorted(tensors))
    how = chance.choice(
        ["lacking", "renamed", "extra", "misshapen", "prefix", "nan", "half", "whole numbers", "empty", "text"]
    )
    tensor = tensors[name]
    if how in ("lacking", "renamed"):
        del tensors[name]
        tensors |= {f"{name}_2": tensor} if how == "renamed" else {}
    elif how == "prefix":
        name = chance.choice(PREFIXES)
        tensors = {name + key: value for key, value in tensors.items()}
    else:
        tensors["unheard_of" if how == "extra" else name] = {
            "extra": tensor.clone(),
            "misshapen": chance.choice([tensor.flatten().repeat(2), tensor.flatten()[:0], tensor[None]]),
            "nan": torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor,
            "half": tensor.half(),
            "whole numbers": tensor.to(torch.int64),
            "empty": tensor.new_zeros(0),
            "text": torch.zeros(3, dtype=torch.uint8),
        }[how]
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata)
    return how, name


def header(file: Path) -> dict[str, str]:
    """A safetensors file's metadata."""
    data = file.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


# --- judging --------------------------------------------------------------------------------------------------------


def judge(make: Any, right: list[torch.Tensor], excused: bool) -> str:
    """What ``make`` draws from damaged files, held against the right pictures."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = make()
    warned = [str(w.message) for w in caught if issubclass(w.category, ddim.DDIMWarning)]
    if not all(bool(o.isfinite().all()) for o in out):
        raise Fault("not finite", "pictures with NaN or infinity, without a word")
    if len(out) == len(right) and all(
        o.shape == r.shape and torch.allclose(o, r, atol=2e-3) for o, r in zip(out, right, strict=True)
    ):
        return "the same, and warned" if warned else "the same"
    if warned:
        return "others, and warned"
    if not excused:
        off = [float((o - r).abs().max()) if o.shape == r.shape else math.inf for o, r in zip(out, right, strict=True)]
        raise Fault("nonsense", f"other results in silence, by {max(off):.3g}")
    return "others, as they should be"


def meant(how: str, field: str, before: Any, after: Any) -> bool:
    """Whether a change of a field is one that may change results in silence; null is a value of some (NULLABLE)."""
    if how == "null":
        return field in NULLABLE
    number = isinstance(after, (int, float)) and isinstance(before, (int, float))
    alike = number or type(before) is type(after)
    if isinstance(after, bool) != isinstance(before, bool):
        alike = False
    return (
        field in MEANT
        and how in ("removed", "other", "absurd", "misspelt")
        and (how in ("removed", "misspelt") or alike)
    )


def field_of(tree: Any, key: str) -> Any:
    """The first value of that key in nested tables."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        return next((found for v in tree.values() if (found := field_of(v, key)) is not None), None)
    return None


# --- configs --------------------------------------------------------------------------------------------------------


def drawn(root: Path, which: str) -> list[torch.Tensor]:
    """Two pictures of two steps; of a model with text its codes too."""
    model = ddim.load(root / ("pixel" if which == "classifier" else which), device="cpu")
    told: dict[str, Any] = {"prompt": fuzz_material.PROMPT} if which == "text" else {}
    if which == "classes":
        told["labels"] = [0, 2]
    if which == "classifier":
        told |= {"classifier": ddim.load_classifier(root / which, device="cpu"), "labels": [0, 2]}
    out = [ddim.sample(model, 2, steps=2, **told)]
    return [*out, model.encode(out[0])] if which == "text" else out


def config(case: Case, right: dict[str, list[torch.Tensor]]) -> str:
    """One file of one model's folder is damaged; then it is loaded and asked for pictures."""
    chance = case.chance
    which = chance.choice(["pixel", "classes", "text", "text", "text", "classifier"])
    files = sorted(f for f in Path(which).rglob("*") if f.suffix in (".json", ".safetensors", ".txt"))
    if which in ("pixel", "text") and chance.random() < 0.1:
        return knob(case, which)
    file = chance.choice(files)
    dice, excused, wrong = chance.random(), False, ""
    if file.suffix == ".safetensors" and dice < 0.85:
        how, name = damage_tensors(file, chance)
        excused = how in ("whole numbers", "nan")  # other weights, which only a checksum would know
        wrong = f"{how} {name}"
    elif file.suffix == ".json" and dice < 0.8:
        tree = json.loads(file.read_text())
        before = copy.deepcopy(tree)
        how, key = damage_tree(tree, chance)
        was, now = field_of(before, key), field_of(tree, key)
        excused = meant(how, key, was, now) or (
            file.name == "tokenizer.json" and how in ("removed", "other", "misspelt")
        )
        file.write_text(json.dumps(tree))
        wrong = f"{how} {key}: {short(was)} -> {short(now)}"
    elif dice < 0.9:
        other = chance.choice([f for f in files if f.suffix == file.suffix and f != file] or files)
        file.write_bytes(other.read_bytes())
        wrong = f"is a copy of {other}"
    elif dice < 0.95 and file.parent != Path(which):
        shutil.rmtree(file.parent)
        wrong = "its folder is gone"
    else:
        wrong = damage_bytes(file, chance)
    case.tell(f"{file}: {wrong}")
    return judge(lambda: drawn(Path(), which), right[which], excused)


def knob(case: Case, which: str) -> str:
    """A scheduler's config says what changes its pictures: they are other ones, or it is refused or said."""
    kind, more = case.chance.choice(KNOBS)
    file = Path(which, "scheduler", "scheduler_config.json")
    case.tell(f"{file}: {kind} with {more}")
    index = Path(which, "model_index.json")  # which class it is, the index says
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}))
    plain = json.loads(file.read_text()) | {"_class_name": kind}
    file.write_text(json.dumps(plain))
    without = drawn(Path(), which)
    file.write_text(json.dumps(plain | more))
    if judge(lambda: drawn(Path(), which), without, True) == "the same":
        raise Fault("nonsense", "a field that changes results is not read, in silence")
    return "others, as they should be"


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


# --- codes ----------------------------------------------------------------------------------------------------------


def came_back(root: Path, name: str) -> list[torch.Tensor]:
    """The pictures of a code, by the model that it names."""
    code = ddim.LatentCode.load(root / name)
    model = ddim.load(
        root / ("text" if name.split(".")[0] in ("text", "uncond_text", "noise", "pivot") else "pixel"), device="cpu"
    )
    return [ddim.reconstruct(model, code)]


def code(case: Case, right: dict[str, list[torch.Tensor]]) -> str:
    """One field, tensor or byte of a saved code is damaged; then it comes back."""
    chance = case.chance
    name = chance.choice(sorted(right))
    file, excused, dice = Path(name), False, chance.random()
    if dice < 0.5:
        about = json.loads(header(file)["ddim"])
        before = copy.deepcopy(about)
        how, key = damage_tree(about, chance)
        was, now = field_of(before, key), field_of(about, key)
        excused = meant(how, key, was, now)
        save_file(load_file(file), file, {"ddim": json.dumps(about)})
        wrong = f"{how} {key}: {short(was)} -> {short(now)}"
    elif dice < 0.75:
        how, key = damage_tensors(file, chance)
        wrong = f"{how} {key}"
    elif dice < 0.9:
        wrong, excused = damage_grid(file, chance)
    else:
        wrong = damage_bytes(file, chance)
    case.tell(f"{name}: {wrong}")
    return judge(lambda: came_back(Path(), name), right[name], excused)


def damage_grid(file: Path, chance: Any) -> tuple[str, bool]:
    """One number of the grid, or its order, is changed; whether another grid is a grid too."""
    tensors, metadata = load_file(file), header(file)
    grid = tensors["grid"]
    how = chance.choice(["number", "nudged", "reversed", "repeated", "short"])
    row, column = chance.randrange(len(grid)), chance.randrange(3)
    number = chance.choice([math.nan, math.inf, -1.0, 0.0, 1e6])
    if how in ("number", "nudged"):
        grid[row, column] = number if how == "number" else grid[row, column] * 1.01
    else:
        tensors["grid"] = {"reversed": grid.flip(0), "repeated": grid[[0, *range(len(grid))]], "short": grid[:1]}[how]
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    return f"grid {how} [{row}, {column}] {number if how == 'number' else ''}", how == "nudged"


# --- recipes --------------------------------------------------------------------------------------------------------


def recipes(root: Path) -> dict[str, Any]:
    """The project's recipes as tables, of a size that trains in a second, each known to run."""
    import tomllib

    fuzz_material.idx(root / "idx")
    fuzz_material.table(root / "words.parquet")
    fuzz_material.training_helpers.make_autoencoder(root / "coder")
    (root / "held.csv").write_text("vendor,text\nnoto,dog\nblob,owl\n")
    return {
        f.stem: shrunk(tomllib.loads(f.read_text()))
        for f in sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
    }


def shrunk(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe on a few pictures, with a network of a few thousand weights, for one step."""
    task, words = table.get("task", "pixel"), "emoji" in table["data"]["path"]
    table["data"] |= {"path": "words.parquet" if words else "idx", "size": 16}
    if words:
        table["data"]["without"] = "held.csv"
        table["data"]["more"] = [source | {"path": "words.parquet"} for source in table["data"]["more"]]
    tiny = fuzz_material.training_helpers.tables(Path(), Path())["model"]
    table["model"] = dict(fuzz_material.training_helpers.NETWORKS.get(task, tiny))
    if task == "text":
        encoder = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        table["text"] |= {"autoencoder": "coder", "vocabulary": 600, "encoder": encoder}
    table["train"] |= {"steps": 1, "batch": 4, "warmup": 1} | ({"decay": 1} if "decay" in table["train"] else {})
    table["output"] |= {"folder": "run", "samples": 2, "sample_steps": 2, "tensorboard": False}
    return table


def recipe(case: Case, right: dict[str, Any]) -> str:
    """One key of a recipe is damaged; then it is read and trains one step."""
    from ddim.training import load_config, train

    chance = case.chance
    name = chance.choice(sorted(right))
    table, how, key = copy.deepcopy(right[name]), "null", ""
    while how in ("null", "added") or (key in LABOUR and how == "absurd") or key == "steps":  # TOML has no null
        table = copy.deepcopy(right[name])
        how, key = damage_tree(table, chance)
    was, now = field_of(right[name], key), field_of(table, key)
    case.tell(f"{name}: {how} {key}: {short(was)} -> {short(now)}")
    Path("it.toml").write_text(fuzz_material.toml(table))
    folder = train(load_config("it.toml"))
    if how in ("misspelt", "wrong type"):
        raise Fault("nonsense", f"a value that is {how} was taken")
    weights = [f for f in folder.rglob("*.safetensors") if f.is_file()]
    finite = all(bool(t.isfinite().all()) for f in weights for t in load_file(f).values())
    if not weights or not finite:
        raise Fault("not finite", f"{len(weights)} files of weights in {folder}, or NaN in them")
    return "trained"
