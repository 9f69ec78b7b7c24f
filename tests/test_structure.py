"""How the modules stand to each other: no circles, and packages that import one way."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
from refusals import refused
from slow_tests import SLOW

import ddim
from ddim.evaluation import BENCHMARKS
from ddim.inversion import INVERSIONS
from ddim.models.families import FAMILIES
from ddim.models.model_folder import refuse_pipeline
from ddim.solvers import REVERSIBLE, SOLVERS

ROOT = Path(ddim.__file__).parent
LAYERS = (
    *("_utils", "core", "solvers", "inversion", "data", "editing", "models", "pipelines", "training", "evaluation"),
    *("batch", "demo", "studio", "cli"),
)
"""Each imports those before it only."""
DEMO = {
    "data.images",  # read_images: originals as tensors, to compare with
    "models.counted",  # the number of network calls, and an error that names the batch where memory runs out
    *("evaluation.metrics", "evaluation.metrics.pairwise"),  # the errors between images
    "_utils.cores",  # how many jobs run at once
    "core.noise",  # a seed that is out of range is refused before any work
    *("_utils.files", "_utils.error_text"),  # files appear whole or not at all; names in any bytes
}
"""All that the demo imports beside the public API."""
CIRCLES = {
    ("inversion.code_file", "inversion.latent_code"),  # a code saves and loads itself
    ("models.base", "models.network"),  # Model.from_network makes one of its own kinds
}
"""Of two modules, one of which imports the other inside a function."""


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in ROOT.rglob("*.py")}


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that is made at run time, at once or inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from statements(ast.Module([other], []))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from statements(node)


def imported(name: str) -> set[str]:
    """The modules of the package that one imports, the root left out."""
    file, found = FILES[name], set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("ddim.") for a in node.names if a.name.startswith("ddim.")}
            continue
        own = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        own = [part for part in own if part]
        if node.level:
            base = own[: len(own) - node.level + 1] + (node.module.split(".") if node.module else [])
        elif (node.module or "").split(".")[0] == "ddim":
            base = (node.module or "").split(".")[1:]
        else:
            continue
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            found.add(whole if whole in FILES else ".".join(base))
    return found & (set(FILES) - {name, ""})


EDGES = {name: imported(name) for name in FILES}


def circles() -> list[set[str]]:
    """Sets of modules each of which leads to every other of its set."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for name in EDGES[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    ways = {name: reached(name) for name in EDGES}
    found = []
    for name in sorted(EDGES):
        circle = {other for other in ways[name] if name in ways[other]} | {name}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def test_imports_are_found():
    assert "core.guidance" in EDGES["models.base"]
    assert "editing.plan" not in EDGES["models.base"]  # for the type checker only
    assert "models.network" in EDGES["models.base"]  # inside a function
    assert "models.device" in EDGES["models"]
    assert sum(map(len, EDGES.values())) > 300


def test_no_modules_import_each_other_in_a_circle():
    assert not [circle for circle in circles() if tuple(sorted(circle)) not in CIRCLES]


def test_packages_import_one_way():
    def layer(name: str) -> int:
        return LAYERS.index(name.split(".")[0])

    inner = [name for name in FILES if name.split(".")[0] in LAYERS]
    assert {name.split(".")[0] for name in FILES} - set(LAYERS) == {"", "__main__"}
    assert not {(name, other) for name in inner for other in EDGES[name] if layer(other) > layer(name)}


def test_the_demo_uses_the_public_api():
    demo = {name for name in FILES if name.split(".")[0] == "demo"}
    assert {other for name in demo for other in EDGES[name]} - demo == DEMO


def test_each_module_may_be_imported_first():
    """A circle that only one order of imports gets through would fail here."""
    names = sorted(name for name in FILES if name.split(".")[0] in LAYERS[:8])
    code = f"""
import importlib, sys
for name in {names}:
    for known in [m for m in sys.modules if m.partition(".")[0] == "ddim"]:
        del sys.modules[known]
    importlib.import_module("ddim." + name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- tests -----------------------------------------------------------------------------------------------------------


def test_the_slow_tests_exist_and_every_folder_has_fast_ones():
    folder = Path(__file__).parent
    for name in SLOW:
        module, _, function = name.partition("::")
        assert f"def {function}" in (folder / module).read_text(encoding="utf-8"), name
    for layer in set(LAYERS) - {"_utils", "solvers", "demo"}:  # the laws hold the solvers
        modules = {f"{layer}/{file.name}" for file in (folder / layer).glob("test_*.py")}
        assert modules - SLOW, layer


def test_no_test_holds_an_error_to_its_words():
    """An error is data, except what a command or a server says: ``refusals`` holds it to type, parameter and values."""
    folder = Path(__file__).parent
    for file in folder.rglob("test_*.py"):
        if file.relative_to(folder).parts[0] not in ("cli", "demo", "evaluation", "integrations"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                asks = isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.warns")
                assert not (asks and any(k.arg == "match" for k in node.keywords)), f"{file}, line {node.lineno}"


# --- registries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", [FAMILIES, SOLVERS, INVERSIONS, REVERSIBLE, BENCHMARKS], ids=list("fsirb"))
def test_every_line_of_a_registry_leads_to_its_class(registry):
    for name, line in registry.lines.items():
        module, _, kind = line.partition(":")
        assert registry[name].__name__ == kind
        assert registry[name].__module__ == f"ddim.{module}"


def test_registries_are_read_without_torch():
    code = (
        "import sys; from ddim.models.families import FAMILIES; from ddim.solvers import SOLVERS; "
        "from ddim.inversion import INVERSIONS; from ddim.models.model_folder import refuse_pipeline; "
        "from ddim.evaluation import BENCHMARKS; "
        "print(all([*FAMILIES, *SOLVERS, *INVERSIONS, *(kind.columns for kind in BENCHMARKS.values())]), "
        "'DDIMPipeline' in FAMILIES, "
        "[m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True True []", done.stderr


OLDER = {"Lumina2Text2ImgPipeline": "Lumina2Pipeline"}
"""Names that published folders have, and that diffusers has dropped -> what it calls the class now."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_a_pipeline_of_diffusers(kind: str):
    assert issubclass(getattr(diffusers, OLDER.get(kind, kind)), diffusers.DiffusionPipeline)


PIPELINES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Pipeline")
    and any(family in name for family in ("StableDiffusion", "Flux", "QwenImage", "ZImage"))
    and not name.startswith(("Onnx", "Flax"))
)
EXTRA = (
    *("ControlNet", "Inpaint", "Adapter", "Upscale", "Depth2Img", "Pix2Pix", "Fill", "FluxControl", "Redux"),
    *("ImageEdit", "Layered", "Omni", "Modular"),
)


@pytest.mark.parametrize("kind", [name for name in PIPELINES if name not in FAMILIES])
def test_other_pipelines_of_these_families_are_refused_knowingly(kind: str):
    with refused("model", kind, hint=True) as caught:
        refuse_pipeline(kind, f"it is a {kind}")
    assert "\n" not in str(caught.value)
    for part in EXTRA:
        assert (part not in kind) or ": " in str(caught.value).partition("does not support")[2]
