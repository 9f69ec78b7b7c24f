"""The nodes on a stub of ComfyUI: what they give, and one wrong input of each, in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ddim_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, attention, nodes, work
from PIL import Image
from refusals import refused
from stub_comfy import Patcher, latents, prompt
from torch import Tensor, nn

import ddim

WORKFLOWS = Path(nodes.__file__).parents[1]


class Vae:
    """Every fourth pixel of a picture, and a constant."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        small = pixels[:, ::8, ::8].movedim(-1, 1)
        return torch.cat([small, torch.ones_like(small[:, :1])], 1)


class Clip:
    """A token for each letter; brackets and what follows a colon are weights."""

    name = "l"

    def tokenize(self, text: str) -> dict[str, Any]:
        plain = text.partition(":")[0].replace("(", "") if text.endswith(")") else text
        row = [(1, 1.0), *((ord(letter), 1.0) for letter in plain if letter != " "), (2, 1.0)]
        rows = [row[k : k + 20] for k in range(0, len(row), 20)]
        return {self.name: [one + [(0, 1.0)] * (20 - len(one)) for one in rows]}


def inverted(patcher: Patcher, **settings: Any) -> tuple[Any, ...]:
    inputs = {"latent": {"samples": latents(7)}, "positive": prompt(1), "method": "belm", "steps": 6, "guidance": 1.0}
    return nodes.Invert().invert(model=patcher, **{**inputs, **settings})


# --- what they give ---------------------------------------------------------------------------------------------------


def test_there_are_seven_kinds_of_nodes_each_with_a_name_inputs_and_outputs(outside: Path) -> None:
    assert len(NODE_CLASS_MAPPINGS) == 8  # saving and loading a code are two
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in NODE_CLASS_MAPPINGS.values():
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)  # type: ignore[attr-defined]
        assert callable(getattr(node, node.FUNCTION))  # type: ignore[attr-defined]
        assert node.INPUT_TYPES()["required"]  # type: ignore[attr-defined]


def test_the_methods_are_the_registrys_with_the_exact_ones_first() -> None:
    names = work.methods()
    assert set(names) == set(ddim.inversion_names()) - set(work.TUNED)
    exact = [ddim.make_inversion(name).exact and name in ddim.SOLVERS for name in names]
    assert exact == sorted(exact, reverse=True)


def test_inverted_saved_loaded_and_reconstructed_every_bit_is_equal(outside: Path) -> None:
    patcher = Patcher("v")
    code, latent, _, _ = inverted(patcher)
    name = nodes.SaveCode().save(code, "picture")["result"][1]
    assert (outside / "output" / "ddim" / name).is_file()
    assert nodes.LoadCode.INPUT_TYPES()["required"]["name"] == ([name],)
    (again,) = nodes.LoadCode().load(name)
    made, reconstruction = nodes.Edit().edit(patcher, again)
    assert made is reconstruction
    found = nodes.Compare().compare(latent, made)
    assert found["result"][2] is True
    assert found["ui"]["text"][0].startswith("exact")
    assert nodes.SaveCode().save(code, "picture")["result"][1] != name


def test_a_masked_edit_keeps_every_bit_outside_its_mask(outside: Path) -> None:
    patcher = Patcher("eps")
    code, latent, _, _ = inverted(patcher)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (control,) = nodes.Control().control(mask=mask)
    settings = {"guidance": 3.0, "positive": prompt(5), "negative": prompt(6), "control": control}
    made, reconstruction = nodes.Edit().edit(patcher, code, **settings)
    assert torch.equal(reconstruction["samples"], latent["samples"])
    edited, source = made["samples"], reconstruction["samples"]
    assert float((edited - source)[:, :, :4].abs().mean()) > 0.1
    assert torch.equal(edited[:, :, 4:], source[:, :, 4:])


def test_a_strength_of_less_changes_less(outside: Path) -> None:
    patcher = Patcher("eps")
    code, latent, _, _ = inverted(patcher)
    far = []
    for strength in (0.2, 1.0):
        made, _ = nodes.Edit().edit(patcher, code, guidance=1.0, strength=strength, positive=prompt(5))
        far.append(float((made["samples"] - latent["samples"]).abs().mean()))
    assert 0 < far[0] < far[1]


def test_the_same_prompt_edits_to_the_source(outside: Path) -> None:
    patcher = Patcher("eps")
    code, latent, _, _ = inverted(patcher)
    made, _ = nodes.Edit().edit(patcher, code, guidance=1.0, positive=prompt(1))
    torch.testing.assert_close(made["samples"], latent["samples"], atol=1e-4, rtol=1e-4)


def test_between_two_codes_the_ends_are_their_reconstructions(outside: Path) -> None:
    patcher = Patcher("eps")
    codes = [inverted(patcher, latent={"samples": latents(k)}, method="ddim")[0] for k in (1, 2)]
    (between,) = nodes.Interpolate().interpolate(patcher, *codes, frames=4)
    ends = [nodes.Edit().edit(patcher, code)[0]["samples"] for code in codes]
    torch.testing.assert_close(between["samples"][[0, -1]], torch.cat(ends), atol=1e-4, rtol=1e-4)
    assert len(between["samples"]) == 4


def test_a_picture_is_loaded_upright_cropped_and_on_white(outside: Path) -> None:
    image = Image.new("RGBA", (20, 36), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 18))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(outside / "input" / "a.png", exif=exif)
    patcher = Patcher("eps")
    settings = {"method": "belm", "steps": 5, "guidance": 1.0}
    code, pixels, mask, latent = nodes.LoadPicture().load("a.png", patcher, Vae(), prompt(1), **settings)
    assert pixels.shape == (1, 16, 32, 3)
    assert mask.shape == (1, 16, 32)
    assert pixels[0, 8, 4].tolist() == [1.0, 0.0, 0.0]
    assert pixels[0, 8, 28].tolist() == [1.0, 1.0, 1.0]
    assert (float(mask[0, 8, 4]), float(mask[0, 8, 28])) == (0.0, 1.0)
    made, _ = nodes.Edit().edit(patcher, code)
    assert torch.equal(made["samples"], latent["samples"])
    scaled, _ = work.picture_from(Image.new("RGB", (40, 20)), 64)
    assert scaled.shape == (1, 32, 64, 3)


def test_a_comparison_measures_what_differs() -> None:
    a, b = torch.zeros(1, 8, 8, 3), torch.full((1, 8, 8, 3), 0.1)
    found = work.compare(a, b)
    assert not found.equal
    assert "20.00 dB" in found.sentence
    assert found.difference.shape == a.shape
    both = work.compare({"samples": latents(1)}, {"samples": latents(1)})
    assert both.equal
    assert both.difference.shape == (1, 8, 8, 3)


# --- attention --------------------------------------------------------------------------------------------------------


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.attn1, block.attn2 = nn.Identity(), nn.Identity()
        self.transformer_blocks = nn.ModuleList([block])


class Downsample(nn.Module):
    pass


class Upsample(nn.Module):
    pass


def test_the_layers_of_a_u_net_are_found_with_their_resolution() -> None:
    network = nn.Module()
    network.input_blocks = nn.ModuleList(
        [nn.ModuleList([SpatialTransformer()]), nn.ModuleList([Downsample()]), nn.ModuleList([SpatialTransformer()])]
    )
    network.middle_block = nn.ModuleList([SpatialTransformer()])
    network.output_blocks = nn.ModuleList(
        [nn.ModuleList([SpatialTransformer(), Upsample()]), nn.ModuleList([SpatialTransformer()])]
    )
    found = attention.sites_of(network)
    levels = {place: site.level for (part, place), site in found.items() if part == "attn2"}
    wanted = {("input", 0, 0): 0, ("input", 2, 0): 1, ("middle", 0, 0): 1, ("output", 0, 0): 1, ("output", 1, 0): 0}
    assert levels == wanted
    assert [site.block for (part, _), site in found.items() if part == "attn1"] == [0, 1, 2, 3, 4]


def _decoder(*levels: int) -> nn.Module:
    """A network whose decoder has levels of so many residual blocks; each level but the last ends with ``Upsample``."""
    network, blocks = nn.Module(), []
    for level, count in enumerate(levels, 1):
        last = [Upsample()] if level < len(levels) else []
        blocks += [nn.ModuleList([nn.Identity()]) for _ in range(count - 1)]
        blocks.append(nn.ModuleList([nn.Identity(), *last]))
    network.output_blocks = nn.ModuleList(blocks)
    return network


@pytest.mark.parametrize(("levels", "block"), [((3, 3, 3, 3), 4), ((2, 2, 2), 3), ((2, 2), 3), ((1, 3), 2)])
def test_plug_and_play_takes_the_second_block_of_the_second_level(levels: tuple[int, ...], block: int) -> None:
    assert attention.feature_site(_decoder(*levels)) == f"output_blocks.{block}.0.out_layers.3"


@pytest.mark.parametrize("levels", [(2, 1, 2), (3,), ()])
def test_a_decoder_without_that_block_is_refused(levels: tuple[int, ...]) -> None:
    with refused("control", "Module", "'masactrl'"):
        attention.feature_site(_decoder(*levels))


def test_a_controller_gets_the_heads_apart_and_its_answer_is_joined_again() -> None:
    seen: list[Tensor] = []

    class Controller:
        def attend(self, site: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, branch: str) -> Tensor:
            seen.append(query)
            return value

    sites = {("attn1", ("input", 1, 0)): object()}
    patch = attention.patches_of(sites, Controller(), "cond")["attn1"]["input", 1, 0]  # type: ignore[arg-type]
    value = torch.randn(2, 5, 12)
    assert torch.equal(patch(torch.randn(2, 5, 12), value, value, {"n_heads": 3}), value)
    assert seen[0].shape == (2, 3, 5, 4)


def test_words_have_the_places_of_their_tokens() -> None:
    tokens = work.control_words(Clip(), "a red cat", "source_text")
    assert tokens.spans == ((1, 2), (2, 5), (5, 8))
    assert tokens.places("cat") == [5, 6, 7]
    assert (tokens.begin, tokens.end, tokens.stop, tokens.length) == (1, 8, 9, 20)


# --- one wrong input of each ------------------------------------------------------------------------------------------


def test_load_picture_refuses_a_file_that_is_no_picture_or_lies_elsewhere(outside: Path) -> None:
    (outside / "input" / "a.png").write_bytes(b"no picture")
    settings = {"method": "belm", "steps": 5, "guidance": 1.0}
    with refused("image", "'a.png'"):
        nodes.LoadPicture().load("a.png", Patcher(), Vae(), prompt(1), **settings)
    (outside / "secret.png").write_bytes(b"")
    with refused("image", "'../secret.png'"):
        nodes.LoadPicture().load("../secret.png", Patcher(), Vae(), prompt(1), **settings)


def test_invert_refuses_guidance_without_a_negative_flipped_sigmas_and_videos(outside: Path) -> None:
    with refused("guidance", 5):
        inverted(Patcher(), guidance=5.0)
    with refused("sigmas", "FlipSigmas"):
        inverted(Patcher(), sigmas=torch.tensor([0.0, 1.0, 2.0]))
    with refused("latent", (1, 4, 3, 8, 8)):
        inverted(Patcher(), latent={"samples": torch.zeros(1, 4, 3, 8, 8)})


def test_edit_refuses_what_would_do_nothing_or_has_nothing_to_lead_away_from(outside: Path) -> None:
    patcher = Patcher()
    code = inverted(patcher)[0]
    with refused("positive"):
        nodes.Edit().edit(patcher, code, strength=0.5)
    with refused("guidance", 7.5):
        nodes.Edit().edit(patcher, code, positive=prompt(5))
    guided = inverted(patcher, guidance=1.5, negative=prompt(6))[0]
    with refused("negative", 1.5):
        nodes.Edit().edit(patcher, guided, positive=prompt(5), negative=prompt(6))
    (control,) = nodes.Control().control(kind="masactrl")
    with refused("control", "Network"):
        nodes.Edit().edit(patcher, code, guidance=1.0, positive=prompt(5), control=control)


def test_control_refuses_words_without_a_text_encoder_and_an_unknown_kind() -> None:
    with refused("clip", "'refine'"):
        nodes.Control().control(kind="refine")
    with refused("kind", "'refin'"):
        nodes.Control().control(kind="refin")
    words = {"kind": "refine", "source_text": "a cat", "target_text": "a cat", "clip": Clip()}
    for name, text in (("source_text", "(a cat:1.2)"), ("target_text", "a cat with a very long tail")):
        with refused(name, repr(text)):
            nodes.Control().control(**{**words, name: text})
    with refused("clip", "t5xxl"):
        nodes.Control().control(**{**words, "clip": _T5()})


class _T5(Clip):
    name = "t5xxl"


def test_interpolate_refuses_codes_of_two_sizes(outside: Path) -> None:
    patcher = Patcher()
    small = inverted(patcher, latent={"samples": latents(1)[:, :, :4, :4]})[0]
    with refused("code_b", (4, 4, 4), (4, 8, 8)):
        nodes.Interpolate().interpolate(patcher, inverted(patcher)[0], small)


def test_interpolate_refuses_codes_of_two_prompts(outside: Path) -> None:
    codes = [inverted(Patcher(), positive=prompt(k))[0] for k in (1, 2)]
    with refused("code_b", 2, *(code.prompts[0] for code in codes)):
        nodes.Interpolate().interpolate(Patcher(), *codes)


def test_compare_refuses_a_latent_beside_a_picture_and_other_sizes() -> None:
    with refused("b"):
        nodes.Compare().compare({"samples": latents(1)}, torch.zeros(1, 8, 8, 3))
    with refused("b", (1, 4, 4, 3), (1, 8, 8, 3)):
        nodes.Compare().compare(torch.zeros(1, 8, 8, 3), torch.zeros(1, 4, 4, 3))


def test_codes_are_saved_and_loaded_in_their_folder_only(outside: Path) -> None:
    code = inverted(Patcher())[0]
    with refused("filename_prefix", "'../a'"):
        nodes.SaveCode().save(code, "../a")
    with refused("name", "'b.safetensors'"):
        nodes.LoadCode().load("b.safetensors")


# --- the workflows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("api_workflows/*.json")), ids=lambda file: file.stem)
def test_the_workflows_name_nodes_and_inputs_that_exist(file: Path, outside: Path) -> None:
    wanted = json.loads(file.read_text())
    for node in wanted.values():
        if (kind := NODE_CLASS_MAPPINGS.get(node["class_type"])) is not None:
            inputs = kind.INPUT_TYPES()  # type: ignore[attr-defined]
            assert set(node["inputs"]) <= set(inputs["required"]) | set(inputs.get("optional", {}))
            assert set(inputs["required"]) <= set(node["inputs"])
    page = json.loads((WORKFLOWS / "example_workflows" / file.name).read_text())
    assert sorted(n["type"] for n in page["nodes"]) == sorted(n["class_type"] for n in wanted.values())
