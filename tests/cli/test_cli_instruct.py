"""``ddim edit`` by an instruction, on a tiny FLUX.1 Kontext in a folder."""

import pytest
import tiny_flow
import tiny_flux
from commands import fails, run_json

import ddim


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "kontext"
    tiny_flow.FAMILIES["flux kontext"].pipeline().save_pretrained(folder)
    return str(folder)


def test_an_instruction_needs_no_prompt_of_the_source_and_no_reference(kontext: str):
    ddim.save_image(tiny_flux.picture(32, 32)[0], "cat.png")
    line = ["edit", "cat.png", "-m", kontext, "--to", "a red hat", "-S", 2]
    found = run_json(*line, "--method", "velo-edit", "--option", "hold=0.3")
    assert found["method"] == "velo-edit"
    assert found["options"]["hold"] == 0.3
    said = fails(*line, "--method", "instruct", "--reference", "cat.png", code=2)
    assert said.startswith("Error: --reference")
    assert "'cat.png'" in said
    assert fails(*line, "--method", "dna-edit", code=2).startswith("Error: --from")
