"""Names to classes that are imported when they are asked for, and options checked against a class's fields."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch
from refusals import refused, unknown

import ddim
from ddim._utils.errors import InputError, UnknownName
from ddim._utils.registry import Registry, build
from ddim.inversion import INVERSIONS
from ddim.inversion.ddim import DDIMInversion
from ddim.models.families import FAMILIES
from ddim.solvers import REVERSIBLE, SOLVERS

REGISTRIES = {"solvers": SOLVERS, "reversible": REVERSIBLE, "inversions": INVERSIONS, "families": FAMILIES}


@dataclass(frozen=True)
class Options:
    whole: int = 3
    real: float = 0.5
    text: str = "a"
    switch: bool = False
    derived: int = field(default=7, init=False)


@dataclass(frozen=True)
class Bare:
    pass


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_line_leads_to_a_class(name):
    registry = REGISTRIES[name]
    assert list(registry) == list(registry.lines)
    assert len(registry) == len(list(registry.items())) > 0
    for key, kind in registry.items():
        assert isinstance(kind, type)
        assert registry.lines[key].endswith(f":{kind.__name__}")


@pytest.mark.parametrize("name", ["solvers", "inversions"])
def test_a_class_answers_to_the_name_it_is_registered_under(name):
    assert {key: kind.name for key, kind in REGISTRIES[name].items()} == {key: key for key in REGISTRIES[name]}


def test_it_is_a_mapping():
    registry: Registry[Options] = Registry({"one": "_utils.registry:Registry", "two": "no.such.module:Thing"})
    assert "one" in registry
    assert "three" not in registry
    assert 3 not in registry
    assert registry["one"] is Registry
    assert registry.get("three") is None
    with pytest.raises(KeyError):
        registry["three"]
    with pytest.raises(ModuleNotFoundError):
        registry["two"]  # only now


def test_a_registry_is_read_without_torch():
    script = (
        "import sys\n"
        "from ddim.solvers import SOLVERS, REVERSIBLE\n"
        "from ddim.inversion import INVERSIONS, inversion_names\n"
        "from ddim.models.families import FAMILIES\n"
        "assert 'bdia' in SOLVERS and len(INVERSIONS) == len(inversion_names()) and list(FAMILIES)\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("options", "made"),
    [
        (None, Options()),
        ({}, Options()),
        ({"whole": "4", "real": "0.25", "switch": "True"}, Options(4, 0.25, switch=True)),  # of a command line
        ({"real": 1, "whole": 2.0, "text": "b", "switch": True}, Options(2, 1.0, "b", True)),
    ],
)
def test_options_become_what_the_fields_are(options, made):
    built = build(Options, "options", options)
    assert built == made
    assert [type(v) for v in vars(built).values()] == [type(v) for v in vars(made).values()]


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"whole": 2.5}, "whole"),
        ({"whole": "many"}, "whole"),
        ({"whole": float("inf")}, "whole"),
        ({"whole": None}, "whole"),
        ({"real": "high"}, "real"),
        ({"real": []}, "real"),
        ({"switch": 2}, "switch"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(options, parameter):
    with pytest.raises(InputError) as caught:
        build(Options, "options", options)
    assert caught.value.parameter == parameter


def test_an_unknown_option_names_the_nearest():
    with unknown("options", "hole", nearest="whole"):
        build(Options, "options", {"hole": 1})
    with pytest.raises(UnknownName):
        build(Options, "options", {"derived": 1})  # no option
    with refused("eta", "'bare'"):
        build(Bare, "bare", {"eta": 1})


def test_a_method_whose_code_could_not_be_read_again_is_refused_before_the_work():
    @dataclass(frozen=True)
    class Unknown(ddim.BDIA):
        name: ClassVar[str] = "unknown"

    @dataclass(frozen=True)
    class Disguised(ddim.BDIA):
        """Under the name of another."""

    @dataclass(frozen=True)
    class Odd(DDIMInversion):
        extra: object = None

    asked = list[Any]()
    model = tiny.model()
    model.network.register_forward_pre_hook(lambda *_: asked.append(0))
    for method, named in ((Unknown(), "'unknown'"), (Disguised(), "'bdia'"), (Odd(extra=[1]), "extra = [1]")):
        with refused("method", named):
            ddim.invert(model, torch.rand(1, 1, 8, 8), steps=3, method=method)
    assert not asked


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor, float])
def test_numbers_of_every_kind_are_written_into_codes(number, tmp_path):
    guidance = ddim.Guidance(number(2.0), interval=(number(0.0), number(0.5)))
    model = tiny.model(classes=3)
    for method, weight in ((ddim.BDIA(gamma=number(0.9)), None), (DDIMInversion(), number(1.0))):
        code = ddim.invert(
            model,
            torch.rand(1, 1, 8, 8),
            steps=3,
            method=method,
            labels=1,
            guidance=guidance,
            inversion_guidance=weight,
        )
        again = ddim.LatentCode.load(code.save(tmp_path / "code.safetensors"))
        assert (dict(again.options), dict(again.settings)) == (dict(code.options), dict(code.settings))


def test_a_weight_of_the_way_back_that_is_no_number():
    for weight in (float("nan"), "much"):
        with pytest.raises(InputError) as caught:
            ddim.invert(
                tiny.model(classes=3),
                torch.rand(1, 1, 8, 8),
                labels=0,
                inversion_guidance=weight,  # type: ignore[arg-type]
            )
        assert caught.value.parameter == "inversion_guidance"
