import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import noise_like
from refusals import failed, refused, warned
from safetensors.torch import save_file

import ddim
from ddim._utils.errors import DDIMError
from ddim._utils.files import write_whole
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.inversion.code_file import VERSION, checksum
from ddim.inversion.photograph import MOST_ICC, Photograph

GRID = ddim.make_grid(ddim.ddpm_linear(), 4)
LAID_OUT = {"workers": 1, "threads": 1, "batched_cfg": True}


def labelled(labels: torch.Tensor) -> PromptConditioning:
    return PromptConditioning(Conditioning({"labels": labels}))


def code(n: int = 3, dtype: torch.dtype = torch.float32, **changes) -> ddim.LatentCode:
    made = ddim.LatentCode(
        state={"x": noise_like((n, 1, 4, 4), 1).to(dtype), "y": noise_like((n, 1, 4, 4), 2).to(dtype)},
        grid=GRID,
        method="edict",
        solver="edict",
        options={"p": 0.93},
        settings={"p": 0.93},
        model="tiny",
        fingerprint="a" * 64,
        conditions=labelled(torch.arange(n)),
        extras={"noise": noise_like((n, 4, 1, 4, 4), 3)},
        prompts=tuple(f"a dog {k}" for k in range(n)),
        negative="blurred",
        guidance={"weight": 7.5, "rescale": 0.0, "interval": [0.0, 1.0]},
        calls={"rows": torch.full((n,), n), "place": torch.arange(n)},
        machine={"device": "cpu", "torch": "2.0", "tf32": False, **LAID_OUT},
    )
    return replace(made, **changes)


def altered(path, made: ddim.LatentCode, about: dict | None = None, drop: str = "", tensors: dict | None = None):
    """A saved code with its metadata or tensors changed, and a checksum that goes with the change."""
    from safetensors import safe_open

    with safe_open(str(made.save(path)), framework="pt") as f:
        kept = {name: f.get_tensor(name) for name in f.keys()} | (tensors or {})  # noqa: SIM118
        header = json.loads(f.metadata()["ddim"]) | (about or {})
    kept.pop(drop, None)
    header.pop(drop, None)
    if "checksum" in header and "checksum" not in (about or {}):
        header["checksum"] = checksum(header, kept)
    save_file(kept, path, metadata={"ddim": json.dumps(header)})
    return path


def rewritten(path, about: dict | None = None, drop: str = "", tensors: dict | None = None):
    return altered(path, code(), about, drop, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, dtype):
    before = code(dtype=dtype)
    after = ddim.LatentCode.load(before.save(tmp_path / "a.code"))
    for group in ("state", "extras", "calls"):
        mine, theirs = getattr(before, group), getattr(after, group)
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key])
            assert mine[key].dtype == theirs[key].dtype
    assert after.conditions.cond.tensors.keys() == before.conditions.cond.tensors.keys()
    assert torch.equal(after.conditions.cond.tensors["labels"], before.conditions.cond.tensors["labels"])
    assert after.conditions.uncond is None
    assert after.grid == before.grid
    for name in (
        "method",
        "solver",
        "options",
        "settings",
        "model",
        "fingerprint",
        "prompts",
        "negative",
        "guidance",
        "machine",
        "dtype",
    ):
        assert getattr(after, name) == getattr(before, name)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    assert code().save(tmp_path / "a").read_bytes() == code().save(tmp_path / "b").read_bytes()


def test_a_part_of_a_code_is_a_code():
    one = code()[1]
    assert len(one) == 1
    assert torch.equal(one.x, code().x[1:2])
    assert torch.equal(code()[-1].x, code().x[2:])
    assert len(code()[1:]) == 2
    assert one.conditions.cond.tensors["labels"].tolist() == [1]
    assert (one.calls["rows"].tolist(), one.calls["place"].tolist()) == ([3], [1])
    with refused(None, 3, kind=IndexError):
        code()[3]


def test_a_slice_is_saved_alone(tmp_path):
    code(100)[5].save(tmp_path / "one")
    code(100).save(tmp_path / "all")
    assert (tmp_path / "one").stat().st_size < (tmp_path / "all").stat().st_size / 5


def test_no_such_file(tmp_path):
    with refused("path", tmp_path / "none.code"):
        ddim.LatentCode.load(tmp_path / "none.code")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-10], lambda b: b"not a code at all"])
def test_a_corrupt_file(tmp_path, damage):
    path = code().save(tmp_path / "a.code")
    path.write_bytes(damage(path.read_bytes()))
    with refused("path", path):
        ddim.LatentCode.load(path)


def test_a_foreign_safetensors_file(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with refused("path", tmp_path / "model.safetensors"):
        ddim.LatentCode.load(tmp_path / "model.safetensors")


def test_another_format_under_our_name(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "a", metadata={"ddim": json.dumps({"format": "something"})})
    with refused("path", tmp_path / "a"):
        ddim.LatentCode.load(tmp_path / "a")


def test_metadata_that_is_no_json(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "a", metadata={"ddim": "{"})
    with refused("path", tmp_path / "a"):
        ddim.LatentCode.load(tmp_path / "a")


def test_another_version(tmp_path):
    path = rewritten(tmp_path / "a", {"version": VERSION + 1})
    with refused("path", VERSION + 1, VERSION):
        ddim.LatentCode.load(path)


@pytest.mark.parametrize("key", ["method", "solver", "options", "model", "fingerprint", "spacing", "grid", "checksum"])
def test_a_missing_part_is_named(tmp_path, key):
    with refused("path", key):
        ddim.LatentCode.load(rewritten(tmp_path / "a", drop=key))


@pytest.mark.parametrize(
    "about",
    [
        *({"options": [1]}, {"method": 3}, {"settings": "none"}, {"negative": 3}, {"machine": 1}),
        *(
            {"machine": {"workers": 2}},
            {"machine": {"workers": 2, "threads": 1}},
            {"machine": {**LAID_OUT, "workers": 0}},
            *({"machine": {**LAID_OUT, "min_rows": n}} for n in (0, -1, 1.5, "x", None)),
        ),
        *({"machine": {**LAID_OUT, "threads": 2**40}}, {"machine": {**LAID_OUT, "workers": "x"}}),
        *({"machine": {**LAID_OUT, "workers": None}}, {"machine": {**LAID_OUT, "batched_cfg": 1}}),
        *({"machine": {"device": [1]}}, {"numbers": 3}, {"numbers": {"size": 0.5}}),
        *({"prompts": "abc"}, {"prompts": [1, 2, 3]}, {"prompts": None}),
        *({"guidance": 7.5}, {"guidance": {"rescale": 0.7}}, {"guidance": {"weight": "a"}}),
    ],
    ids=str,
)
def test_a_part_of_another_kind_is_named(tmp_path, about):
    with refused("path", next(iter(about))):
        ddim.LatentCode.load(rewritten(tmp_path / "a", about))


def test_prompts_are_none_or_one_an_image(tmp_path):
    with refused("path", 2, 3):
        ddim.LatentCode.load(rewritten(tmp_path / "a", {"prompts": ["a", "b"]}))
    without = ddim.LatentCode.load(rewritten(tmp_path / "a", {"prompts": [], "guidance": {}}))
    assert (without.prompts, without.guidance) == ((), {})


def test_a_code_without_a_latent(tmp_path):
    with refused("path", "latent"):
        ddim.LatentCode.load(rewritten(tmp_path / "a", drop="state.x"))


@pytest.mark.parametrize(
    "tensors",
    [
        {"grid": torch.ones(3)},
        {"grid": torch.ones(3, 2)},
        {"grid": torch.ones(3, 3)},
        {"state.y": torch.ones(2, 1, 4, 4)},
        {"cond.labels": torch.arange(7)},
        {"extras.noise": torch.ones(3, 3, 2)},
        {"extras.uncond_text": torch.ones(3, 5, 2)},
        {"calls.rows": torch.ones(2, dtype=torch.int64)},
        {"calls.rows": torch.ones(3, dtype=torch.int64)},
        {"calls.place": torch.full((3,), -1)},
        {"calls.rows": torch.full((3,), 2**40)},
        {"calls.place": torch.zeros(3)},
        {"calls.other": torch.arange(3)},
        {"uncond.labels": torch.arange(2)},
        {"extras.pivot": torch.ones(3)},
        {"extras.end": torch.ones(3, 4, 1, 4, 4)},
    ],
    ids=[
        *("grid of 1-D", "grid of pairs", "grid that repeats", "state of another batch", "cond of another batch"),
        *("a noise too few", "a text too many", "calls of another batch", "a place past its rows", "a place below 0"),
        *("more rows than memory", "a place of floats", "calls of another name", "uncond of another batch"),
        *("a pivot without steps", "more than one end"),
    ],
)
def test_tensors_that_do_not_fit_together(tmp_path, tensors):
    with pytest.raises(ddim.InputError):
        ddim.LatentCode.load(rewritten(tmp_path / "a", tensors=tensors))


WRONG = [None, 3, -1, 0.5, True, "x", "3", [], [1], ["a"], {}, {"a": 1}, {"a": []}, {"partial": 3}]
WRONG += [10**400, float("nan"), float("inf")]
WRONG += [{"partial": {"images": 3, "done": 5, "steps": 0, "batch": 1}}, {"weight": 7.5, "rescale": 2.0}]
WRONG += [{"weight": 7.5, "interval": [1, 0]}, {"weight": 7.5, "colour": 1}, {"weight": True}, {"weight": "7.5"}]
FIELDS = ["format", "version", "spacing", "method", "solver", "options", "settings", "model", "fingerprint", "dtype"]
FIELDS += ["prompts", "negative", "guidance", "machine", "numbers", "checksum", "sources"]


@pytest.fixture(scope="module")
def inverted():
    """A code that the tiny model brings back, with the model."""
    import tiny

    model = tiny.model()
    return model, ddim.invert(model, torch.rand(2, 1, 8, 8), steps=3, method="edict")


def damaged(path, made, about=None, tensors=None):
    return altered(path, made, about, tensors=tensors)


def one_sentence(path, model) -> str:
    """What is said of a code that is loaded and brought back; empty where it comes back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert torch.isfinite(ddim.reconstruct(model, ddim.LatentCode.load(path))).all()
        except DDIMError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_a_field_holds_is_one_sentence(tmp_path, inverted, field):
    model, made = inverted
    for value in WRONG:
        said = one_sentence(damaged(tmp_path / "a", made, {field: value}), model)
        fits = (field == "version" and value in (VERSION, 1)) or (field == "negative" and value is None)
        assert said or fits or isinstance(value, (str, list, dict)), (field, value)
    for text in ("{", "[]", "3", '"a"', "null", "\ud800", "[" * 100_000):
        save_file({"x": torch.ones(3)}, tmp_path / "a", metadata={"ddim": text.encode(errors="replace").decode()})
        with pytest.raises(ddim.InputError):
            ddim.LatentCode.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["state.x", "state.y"])
def test_whatever_a_lattice_holds_is_one_sentence_on_load(tmp_path, inverted, name):
    from safetensors.torch import load_file

    _, made = inverted
    good = load_file(made.save(tmp_path / "good"))[name]
    assert good.dtype == torch.int64
    far, least = good.clone(), good.clone()
    far.flatten()[0], least.flatten()[0] = 2**62, -(2**63)
    wrong = [
        good.float(),
        good.int(),
        good.bool(),
        far,
        least,
        good[:0],
        good[0],
        good[None],
        good.flatten(),
        torch.tensor(3),
    ]
    for tensor in wrong:
        damaged(tmp_path / "a", made, tensors={name: tensor.contiguous()})
        with pytest.raises(ddim.InputError):
            ddim.LatentCode.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["grid", "state.x"])
def test_whatever_a_tensor_holds_is_one_sentence_on_load(tmp_path, inverted, name):
    from safetensors.torch import load_file

    model, _ = inverted
    made = ddim.invert(model, torch.rand(2, 1, 8, 8), steps=3)
    good = load_file(made.save(tmp_path / "good"))[name]
    low, nan, infinite = (good.clone() for _ in range(3))
    low.flatten()[0], nan.flatten()[0], infinite.flatten()[0] = -1.0, torch.nan, torch.inf
    wrong = [good.long(), good.int(), good.bool(), good.to(torch.complex64), nan, infinite]
    wrong += [good[:0], good.flatten(), torch.tensor(3.0)]
    if name == "grid":
        wrong += [good[0], good[None]]
        wrong += [good.flip(0), low, torch.zeros_like(good), good[:, :2], good[[0, 0, 1, 2]]]
    for tensor in wrong:
        damaged(tmp_path / "a", made, tensors={name: tensor.contiguous()})
        with pytest.raises(ddim.InputError):
            ddim.LatentCode.load(tmp_path / "a")


@pytest.mark.parametrize(
    "tensors",
    [
        {"extras.resume": torch.ones(3), "else.x": torch.ones(3)},
        {"state.": torch.ones(3, 1, 4, 4)},
        {"cond.labels": torch.ones(3)},
        {"cond.labels": torch.ones(3, 2, dtype=torch.int64)},
        {"cond.text": torch.ones(3, 2)},
        {"cond.text": torch.ones(3, 2, 4), "uncond.text": torch.ones(3, 2, 5)},
        {"cond.text": torch.full((3, 2, 4), torch.nan)},
        {"extras.noise": torch.ones(3, 4, 2)},
        {"uncond.labels": torch.ones(3)},
        {"uncond.text": torch.ones(3, 2, 4)},
    ],
    ids=[
        *("another group", "no name", "labels of floats", "labels of pairs", "flat text", "two widths", "NaN", "noise"),
        *("opposite labels of floats", "an opposite of another kind"),
    ],
)
def test_tensors_that_no_code_has(tmp_path, tensors):
    with pytest.raises(ddim.InputError):
        ddim.LatentCode.load(rewritten(tmp_path / "a", tensors=tensors))


def test_a_code_of_another_number_of_axes_is_refused():
    with refused("code", (4, 4), (1, 4, 4)):
        code(state={"x": torch.ones(3, 4, 4)}).check("tiny", "a" * 64, (1, 4, 4))


def test_a_code_of_another_shape_is_refused():
    with refused("code", (1, 4, 4), "'tiny'", "'other'", (3, 8, 8)):
        code().check("other", "a" * 64, (3, 8, 8))


def test_a_code_of_another_model_warns_and_names_both():
    with warned("'tiny'", "a" * 12, "'other'", "b" * 12):
        code().check("other", "b" * 64, (1, 4, 4))


def test_the_same_model_under_another_name_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code().check("other", "a" * 64, (1, 4, 4))


def test_writing_replaces_the_whole_file(tmp_path):
    target = tmp_path / "deep" / "folder" / "a"
    assert write_whole(target, b"one") == target
    write_whole(target, b"two")
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = write_whole(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with failed(None, target, "No space left on device"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a").write_text("a file")
    with failed(None, tmp_path / "a" / "b"):
        write_whole(tmp_path / "a" / "b", b"x")


@pytest.mark.parametrize(
    "which",
    [slice(None), slice(1, 3), slice(-2, None), slice(None, None, 2), slice(None, None, -1), slice(2, 0, -2)],
    ids=str,
)
def test_a_slice_of_a_code_is_as_of_a_list(which: slice):
    whole, part = code(), code()[which]
    rows = list(range(3))[which]
    assert torch.equal(part.x, whole.x[rows])
    assert torch.equal(part.state["y"], whole.state["y"][rows])
    assert torch.equal(part.conditions.cond.tensors["labels"], whole.conditions.cond.tensors["labels"][rows])
    assert torch.equal(part.calls["place"], whole.calls["place"][rows])
    assert torch.equal(part.extras["noise"], whole.extras["noise"][rows])
    assert part.prompts == tuple(whole.prompts[k] for k in rows)


@pytest.mark.parametrize("one", [1, -2, np.int64(1), torch.tensor(1)], ids=repr)
def test_one_of_a_code_by_any_whole_number(one):
    assert torch.equal(code()[one].x, code().x[1:2])
    assert code()[one].prompts == ("a dog 1",)


def test_a_loop_over_a_code_ends():
    assert [part.prompts for part in code()] == [(f"a dog {k}",) for k in range(3)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", [3, -4, torch.tensor(3)], ids=repr)
def test_an_image_that_is_not_there(which):
    with refused(None, int(which), kind=IndexError):
        code()[which]


@pytest.mark.parametrize(
    "which",
    [
        *(slice(0, 0), slice(3, None), slice(2, 1), slice(None, None, 0), slice("a", None), slice(0, 1.5)),
        *(True, None, "x", 1.0, [0], (0, 1), ..., torch.tensor([0, 1]), torch.tensor(True)),
    ],
    ids=repr,
)
def test_what_is_no_part_of_a_code(which):
    with pytest.raises(ddim.InputError) as caught:
        code()[which]
    assert caught.value.parameter == "which"


def test_a_file_of_no_image(tmp_path):
    none = {k: torch.zeros(0, *v.shape[1:]) for k, v in code().state.items()}
    path = replace(code(), state=none, conditions=PromptConditioning(), extras={}, calls={}, prompts=()).save(
        tmp_path / "none.code.safetensors"
    )
    with pytest.raises(ddim.InputError) as caught:
        ddim.LatentCode.load(path)
    assert caught.value.parameter == "path"


def text(length: int, width: int, opposite: bool = True) -> PromptConditioning:
    cond = Conditioning({"text": torch.zeros(3, length, width)})
    return PromptConditioning(cond, cond if opposite else None)


NOTHING = PromptConditioning()


@pytest.mark.parametrize(
    ("made", "takes"),
    [
        (code(), NOTHING),
        (code(conditions=NOTHING), labelled(torch.arange(3))),
        (code(), text(16, 12)),
        (code(conditions=NOTHING), text(16, 12)),
        (code(conditions=text(16, 12)), NOTHING),
        (code(conditions=text(77, 12)), text(16, 12)),
        (code(conditions=text(16, 768)), text(16, 12)),
        (code(conditions=text(16, 12, opposite=False)), text(16, 12)),
        (code(conditions=text(16, 12), extras={"uncond_text": torch.zeros(3, 4, 16, 768)}), text(16, 12)),
    ],
)
def test_a_code_of_another_condition_is_refused(made: ddim.LatentCode, takes: PromptConditioning):
    with pytest.raises(ddim.InputError) as caught:
        made.check("other", "a" * 64, (1, 4, 4), conditions=takes[:1])
    assert caught.value.parameter == "code"


@pytest.mark.parametrize("made", [code(), code(conditions=NOTHING), code(conditions=text(16, 12))])
def test_a_code_of_the_same_condition_is_taken(made: ddim.LatentCode):
    made.check("other", "a" * 64, (1, 4, 4), conditions=made.conditions[:1])


def test_an_unguided_code_needs_no_opposite():
    unguided = code(conditions=text(16, 12, opposite=False), guidance={"weight": 1.0})
    unguided.check("other", "a" * 64, (1, 4, 4), conditions=text(16, 12)[:1])


def test_some_images_of_a_code_in_any_order():
    some = code().take([2, 0, 2])
    assert torch.equal(some.x, code().x[[2, 0, 2]])
    assert some.prompts == ("a dog 2", "a dog 0", "a dog 2")
    assert some.conditions.cond.tensors["labels"].tolist() == [2, 0, 2]
    assert some.calls["place"].tolist() == [2, 0, 2]
    assert code(prompts=()).take([1]).prompts == ()


# --- sources ---------------------------------------------------------------------------------------------------------


def sources(count: int = 3) -> tuple[Photograph, ...]:
    made = [torch.randint(0, 256, (1 + k, 9 + k, 7), dtype=torch.uint8) for k in range(count)]
    return tuple(Photograph(pixels, (1, 2, 6, 7), b"profile" * (k > 0)) for k, pixels in enumerate(made))


def test_sources_are_loaded_byte_for_byte(tmp_path):
    before = code(sources=sources())
    after = ddim.LatentCode.load(before.save(tmp_path / "a"))
    for mine, theirs in zip(before.sources, after.sources, strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
        assert (mine.crop, mine.icc) == (theirs.crop, theirs.icc)
    assert before.save(tmp_path / "a").read_bytes() == after.save(tmp_path / "b").read_bytes()
    assert ddim.LatentCode.load(code().save(tmp_path / "a")).sources == ()
    one = ddim.LatentCode.load(before[1].save(tmp_path / "a"))
    assert torch.equal(one.sources[0].pixels, before.sources[1].pixels)
    assert "10x7" not in repr(code())
    assert "7x10" in repr(one)


def test_a_flipped_bit_in_a_source_is_found(tmp_path):
    path = code(sources=sources()).save(tmp_path / "a")
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    header = {k: v for k, v in json.loads(good[8:start]).items() if k.startswith("source.")}
    assert len(header) == 3 + 2
    for where in header.values():
        flipped = bytearray(good)
        flipped[start + where["data_offsets"][0]] ^= 1
        path.write_bytes(flipped)
        with refused("path", path, "checksum"):
            ddim.LatentCode.load(path)


GOOD = {"shape": [1, 9, 7], "crop": [1, 2, 6, 7]}


@pytest.mark.parametrize(
    ("about", "tensors", "drop", "named"),
    [
        ({}, {"source.0": torch.zeros(9)}, "", "source.0"),
        ({}, {"source.0": torch.zeros(2, 9, dtype=torch.uint8)}, "", "source.0"),
        ({}, {"source.0": torch.zeros(9, dtype=torch.uint8)}, "", "sources"),
        ({}, {"source.3": torch.zeros(9, dtype=torch.uint8)}, "", "source.3"),
        ({}, {"source.0.icc": torch.zeros(MOST_ICC + 1, dtype=torch.uint8)}, "", "source.0.icc"),
        ({}, {}, "source.1", "sources"),
        ({"sources": []}, {}, "", "source.0"),
        ({"sources": [{**GOOD, "shape": [1, 9, 8]}]}, {}, "", "sources"),
        ({"sources": [{**GOOD, "shape": [1, 2**20, 2**20]}]}, {}, "", "sources"),
        ({"sources": [{**GOOD, "crop": [1, 2, 8, 7]}]}, {}, "", "sources"),
        ({"sources": [{**GOOD, "crop": None}]}, {}, "", "sources"),
    ],
    ids=str,
)
def test_sources_that_no_code_has(tmp_path, about, tensors, drop, named):
    with refused("path", named):
        ddim.LatentCode.load(altered(tmp_path / "a", code(sources=sources()), about, drop, tensors))


def test_sources_are_none_or_one_an_image(tmp_path):
    with refused("path", 2, 3):
        ddim.LatentCode.load(code(sources=sources(2)).save(tmp_path / "a"))


# --- the checksum ----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_tensor_is_found(tmp_path):
    from safetensors import safe_open

    path = code().save(tmp_path / "a.code")
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    with safe_open(str(path), framework="pt") as f:
        assert len(list(f.keys())) > 5
    header = json.loads(good[8:start])
    for name, where in header.items():
        if name == "__metadata__":
            continue
        for offset in (where["data_offsets"][0], where["data_offsets"][1] - 1):
            flipped = bytearray(good)
            flipped[start + offset] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ddim.InputError) as caught:
                ddim.LatentCode.load(path)
            assert caught.value.parameter == "path"
            assert "checksum" in str(caught.value), name
    path.write_bytes(good)
    assert len(ddim.LatentCode.load(path)) == 3


@pytest.mark.parametrize(
    "about", [{"model": "other"}, {"options": {"p": 0.9}}, {"machine": {}}, {"prompts": ["a"] * 3}]
)
def test_settings_that_were_changed_are_found(tmp_path, about):
    path = rewritten(tmp_path / "a", {**about, "checksum": "0" * 64})
    with refused("path", path, "checksum"):
        ddim.LatentCode.load(path)
    from safetensors import safe_open

    with safe_open(str(code().save(path)), framework="pt") as f:
        own = json.loads(f.metadata()["ddim"])["checksum"]
    with refused("path", path, "checksum"):
        ddim.LatentCode.load(rewritten(path, {**about, "checksum": own}))


# --- earlier versions ------------------------------------------------------------------------------------------------


def as_version(path, made: ddim.LatentCode, version: int, tensors: dict[str, torch.Tensor]):
    """A file as earlier versions wrote it: no checksum, no machine, ``back``, and tensors of other names."""
    from safetensors import safe_open

    with safe_open(str(made.save(path)), framework="pt") as f:
        about, grid = json.loads(f.metadata()["ddim"]) | {"version": version}, f.get_tensor("grid")
    for key in ("checksum", "machine", "numbers"):
        del about[key]
    about["negative"] = about["negative"] or ""
    if "inversion_guidance" in about["settings"]:
        about["settings"]["back"] = about["settings"].pop("inversion_guidance")
    save_file(
        {**{k: v.contiguous() for k, v in tensors.items()}, "grid": grid}, path, metadata={"ddim": json.dumps(about)}
    )
    return path


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("method", ["null-text", "negative-prompt", "direct", "edit-friendly", "ddim"])
def test_codes_of_text_models_of_earlier_versions_come_back_to_the_bit(tmp_path, method, version):
    import tiny_text

    model, options = tiny_text.model(), {"inner": 2} if method == "null-text" else {}
    settings = {"steps": 4, "method": method, "options": options, "prompt": ["a cat", "a dog"], "guidance": 3.0}
    made = ddim.invert(model, tiny_text.pictures(2), **settings)
    both = made.conditions
    assert both.uncond is not None
    tensors = {f"state.{k}": v for k, v in made.state.items()}
    tensors |= {f"extras.{'null' if k == 'uncond_text' else k}": v for k, v in made.extras.items()}
    tensors |= {"cond.words": both.cond.tensors["text"], "cond.null": both.uncond.tensors["text"]}
    old = ddim.LatentCode.load(as_version(tmp_path / "old", made, version, tensors))
    assert (old.prompts, old.negative) == (made.prompts, "")
    assert torch.equal(ddim.reconstruct(model, old), ddim.reconstruct(model, made))
    edited = [ddim.edit(model, c, "a tiger", attention="none").edits for c in (old, made)]
    assert torch.equal(*edited)
    again = ddim.LatentCode.load(old.save(tmp_path / "new"))  # and it is saved as of today
    assert torch.equal(ddim.reconstruct(model, again), ddim.reconstruct(model, made))


@pytest.mark.parametrize("version", [1, 2])
def test_codes_of_classes_of_earlier_versions_come_back(tmp_path, version):
    import tiny

    model = tiny.model(classes=3)
    made = ddim.invert(model, torch.rand(2, 1, 8, 8), steps=4, labels=[2, 0])
    tensors = {"state.x": made.x, "cond.labels": made.conditions.cond.tensors["labels"]}
    old = ddim.LatentCode.load(as_version(tmp_path / "old", made, version, tensors))
    old = replace(old, guidance={})  # which they did not keep for such models
    assert torch.equal(ddim.reconstruct(model, old), ddim.reconstruct(model, made))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("method", ["bdia", "belm", "edict"])
def test_codes_of_reversible_solvers_of_earlier_versions_come_back_as_floats_did(tmp_path, method, version):
    """They hold floats at the first node: a two-node solver's x there, and the one ahead of it."""
    import tiny

    model, pictures = tiny.model(), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = ddim.invert(model, pictures, steps=6, method=method)
    floats = dict(made.floats)
    if "before" in floats:
        floats = {"x": floats["before"], "ahead": floats["x"]}
    tensors = {f"state.{key}": value for key, value in floats.items()}
    old = ddim.LatentCode.load(as_version(tmp_path / "old", made, version, tensors))
    assert (dict(old.calls), dict(old.machine)) == ({}, {})
    back, exact = ddim.reconstruct(model, old), ddim.reconstruct(model, made)
    assert (back - exact).abs().max() < 1e-3  # edict enlarges rounding, which is another on each processor
    frames = ddim.interpolate(model, old[0], made[1], frames=3)  # each end as its own code has it
    assert torch.equal(frames[2], exact[1])
    assert (frames[0] - back[0]).abs().max() < 1e-3


@pytest.mark.parametrize("which", [[], [2], [-3], [0.5]])
def test_images_that_are_not_there_are_not_taken(which):
    import tiny

    code = ddim.invert(tiny.model(), torch.rand(2, 1, 8, 8), steps=2)
    with pytest.raises(ddim.InputError) as caught:
        code.take(which)
    assert caught.value.parameter == "which"


def test_nodes_within_steps_are_kept_in_a_file(tmp_path):
    import tiny

    code = ddim.invert(tiny.model(), torch.rand(1, 1, 8, 8), steps=4)
    asked = {(i, part): code.grid.between(i, part) for i, part in ((2, 0.5), (0, 0.25))}
    again = ddim.LatentCode.load(code.save(tmp_path / "code.safetensors"))
    assert dict(again.grid.inner) == asked
    assert again.grid.between(2, 0.5) == asked[2, 0.5]
    assert again.grid.between(1, 0.5) == code.grid.between(1, 0.5)  # by the path, which the file describes
