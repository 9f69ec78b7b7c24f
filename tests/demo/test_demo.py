"""The demo on a tiny model: a whole page, every picture there, every number a number, every command true."""

import json
import re
import shlex
import sys
from contextlib import nullcontext
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import ddim
from ddim.cli.app import app
from ddim.cli.demo import _Bars
from ddim.cli.output import Terminal
from ddim.data.images import save_image, to_pil
from ddim.demo import page_stored
from ddim.demo.context import Context, Section
from ddim.demo.editing import Gallery, other_edits
from ddim.demo.jobs import Job, run_jobs, worker_threads
from ddim.demo.pictures import difference, latent, same_as_png, tiles
from ddim.demo.plot import psnr_plot
from ddim.demo.stored import NAMES, stored

LEVELS = 24


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model with T = 24, and its four test pictures."""
    root = tmp_path_factory.mktemp("demo")
    model = tiny.pipeline_folder(root / "small", num_train_timesteps=LEVELS)
    (model / "test_images").mkdir()
    for k, name in enumerate(["00_sneaker", "01_ankle-boot", "02_dress", "03_bag"]):
        pixels = torch.randint(0, 256, (8, 8), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        Image.frombytes("L", (8, 8), pixels.numpy().tobytes()).save(model / "test_images" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """The same folder with the model's whole demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = run("demo", "--model", "small", "--editor", "", "--full")
    assert result.exit_code == 0, result.output
    assert "demo/index.html has its first pictures after" in result.stderr
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "demo" / "results.json").read_text())


class Page(HTMLParser):
    """Links, and whether the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.open: list[str] = []
        self.commands: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [v for k, v in attrs if k in ("href", "src") and v]
        if tag == "img":
            assert given.get("alt")
            self.images.append(given["src"] or "")
        if tag == "pre":
            self.commands.append("")
        if tag not in ("img", "meta", "line", "polyline", "circle", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("href", "src") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.commands[-1] += data


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "demo" / "index.html").read_text())


def test_the_page_is_whole_and_needs_nothing_from_outside(folder: Path, page: Page):
    assert page.open == []
    text = (folder / "demo" / "index.html").read_text()
    assert "<script" not in text
    assert "http" not in text  # no address, and no http-equiv that loads the page again
    for link in page.links:
        assert link.startswith("#") or (folder / "demo" / link).is_file(), link
    ids = re.findall(r'id="(\w+)"', text)
    assert {link[1:] for link in page.links if link.startswith("#")} == set(ids)


def test_every_picture_is_shown_and_carries_its_settings(folder: Path, page: Page):
    shown = set(page.images)
    there = {str(p.relative_to(folder / "demo")) for p in (folder / "demo").rglob("*.png")}
    assert {p for p in there if not p.startswith("originals/")} == shown
    assert len([p for p in there if p.startswith("originals/")]) == 4
    for name in there:
        with Image.open(folder / "demo" / name) as image:
            assert "fingerprint" in json.loads(image.info["Description"])


def test_every_cell_that_was_asked_for_is_there(results: dict[str, Any]):
    assert [one["steps"] for one in results["samples"]] == [20, LEVELS]
    assert {len(one["seeds"]) for one in results["samples"]} == {100}
    wanted = {(s, n) for s in (10, 20, LEVELS) for n in ("0", "0.2", "0.5", "1", "sigma-hat")}
    assert {(one["steps"], one["noise"]) for one in results["noise"]} == wanted
    assert [one["steps"] for one in results["consistency"]] == [10, 20, LEVELS]
    methods = ["ddim", "ddim5", "heun", "edict", "bdia", "belm"]
    assert [one["method"] for one in results["inversion"]["methods"]] == methods
    assert {(c["method"], c["steps"]) for c in results["inversion"]["curve"]} == {
        (m, s) for m in methods for s in (10, 20)
    }
    assert [results["between"][k]["count"] for k in ("row", "chain", "corners")] == [11, 13, 49]


def test_the_numbers_are_measured(results: dict[str, Any]):
    for one in results["inversion"]["methods"]:
        assert one["psnr"] is None or one["psnr"] == pytest.approx(-10 * torch.tensor(one["mse"]).log10().item(), 1e-4)
        assert one["mse"] < 1e-8 or not one["exact"]
        assert one["same_png"] == 4 or not one["exact"]
        assert len(one["each"]) == 4
    plain, *_, bdia, _ = results["inversion"]["methods"]
    assert plain["mse"] > bdia["mse"]
    assert results["between"]["row"]["mse_at_ends"] < 1e-8
    assert all(one["mse_to_longest"] > 0 for one in results["consistency"][:-1])
    assert results["seconds"]["all"] > 0
    assert results["model"]["levels"] == LEVELS
    assert results["machine"]["torch"] == torch.__version__


def test_the_commands_make_the_pictures(folder: Path, page: Page, results: dict[str, Any], monkeypatch: Any):
    """The first sheet, a cell, a chain and an inversion, by the very lines on the page."""
    monkeypatch.chdir(folder)
    sheet, cell = results["samples"][0], next(o for o in results["noise"] if o["noise"] == "sigma-hat")
    chain, exact = results["between"]["chain"], results["inversion"]["methods"][-2]
    for one, columns, count in ((sheet, 10, 100), (cell, 4, 8), (chain, 5, 13)):
        assert one["command"] in page.commands
        result = run(*shlex.split(one["command"])[1:], "--out", "again.png", "--columns", columns)
        assert result.exit_code == 0, result.output
        assert torch.equal(parts("again.png", count), parts(f"demo/{one['file']}", count))
    assert exact["command"] in page.commands
    words = shlex.split(exact["command"])[1:]
    expanded = [str(p) for w in words for p in (sorted(Path().glob(w)) if "*" in w else [w])]
    said = json.loads(run(*expanded, "--out", "codes", "--json").stdout)
    assert [e["mse"] for e in said["images"]] == pytest.approx([e["mse"] for e in exact["each"]], abs=1e-12)


def parts(file: str, count: int) -> torch.Tensor:
    """The pictures of a sheet, whatever its scale and gaps: the middle pixel of each tile's first row of pixels."""
    with Image.open(file) as image:
        grey = image.convert("LA")
    size = 8
    data = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width, 2)
    if int(data[..., 1].min()) == 255:  # a sheet of the command: gaps of 2 round pictures of scale 1
        scale, gap, edge = 1, 2, 2
    else:
        edge = 0
        row = data[0, :, 1]
        width = int((row == 0).nonzero()[0])
        scale, gap = width // size, int((row[width:] != 0).nonzero()[0])
    tiles_ = []
    for top in range(edge, grey.height - size * scale + 1, size * scale + gap):
        for left in range(edge, grey.width - size * scale + 1, size * scale + gap):
            tiles_.append(data[top : top + size * scale : scale, left : left + size * scale : scale, 0])
    return torch.stack(tiles_[:count])


def test_by_default_the_longest_is_left_out(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    result = run("demo", "--model", "small", "--out", "quick demo", "--seed", "5", "--json", "--editor", "")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["files"] == ["quick demo/index.html", "quick demo/results.json"]
    found = said["results"]
    assert [one["steps"] for one in found["samples"]] == [20]
    assert {one["steps"] for one in found["inversion"]["curve"]} == {LEVELS}  # of 50
    assert found["samples"][0]["seeds"][0] == 5
    assert found["command"] == "ddim demo --out 'quick demo' --model small --seed 5 --editor ''"
    assert found == json.loads((root / "quick demo" / "results.json").read_text()) | {"seconds": found["seconds"]}
    text = (root / "quick demo" / "index.html").read_text()
    assert "stored results" not in text  # they are of another model
    assert "Error against" not in text


class Broken:
    """A section that looks at the page, and ends the demo."""

    def __init__(self, file: Path, error: BaseException) -> None:
        self.file, self.error, self.seen = file, error, ""

    def __call__(self, *_: object) -> Section:
        return Section([[Job(1, self.look)]], lambda _: None)

    def look(self, listen: Any) -> None:
        self.seen = self.file.read_text()
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ddim.DDIMError("the disk is on fire.")])
def test_the_page_is_there_after_its_first_section(
    error: BaseException, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = Broken(tmp_path / "out" / "index.html", error)
    monkeypatch.setattr(sys.modules["ddim.demo.run"], "interpolations", broken)  # ddim.demo.run is a function
    result = run("demo", "--model", root / "small", "--editor", "", "--out", tmp_path / "out")
    assert result.exit_code != 0
    then, after = Page(broken.seen), (tmp_path / "out" / "index.html").read_text()
    assert 'http-equiv="refresh"' in broken.seen
    assert "still being made" in broken.seen
    assert "interpolation; samples; steps and noise; same noise, more steps." in broken.seen
    assert len(then.images) == 1 + 6 * 3 + 5  # the originals are shown once a method
    for link in then.links:
        assert link.startswith("#") or (tmp_path / "out" / link).is_file(), link
    assert "http-equiv" not in after
    assert "ended before the page was complete" in after
    assert Page(after).images == then.images
    assert json.loads((tmp_path / "out" / "results.json").read_text())["state"] == "ended"


def test_the_stored_tables_are_those_of_the_documentation():
    checkout = Path(__file__).parents[2]
    carried = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert carried["force-include"] == {f"docs/results/{name}.json": f"ddim/demo/results/{name}.json" for name in NAMES}
    for name in NAMES:
        assert (checkout / "docs" / "results" / f"{name}.json").is_file()
    assert stored("table1-fashion", {"fingerprint": "another model's"}) is None


def test_the_stored_tables_are_of_the_bundled_models():
    """Their numbers are those of the Markdown files that ``ddim evaluate`` wrote beside them."""
    emoji, fashion = (ddim.load(name).describe() for name in ("emoji", "fashion"))
    methods = [
        {"name": name, "given": given, "label": name, "exact": exact}
        for name, given, exact in (("ddim", {"iterations": 5}, False), ("heun", {}, False), ("bdia", {}, True))
    ]
    results = {"editor": emoji, "model": fashion, "inversion": {"methods": methods}}
    assert "<th>direct</th><td>32.5</td><td>60</td>" in page_stored.leaderboard(results)
    assert "<th>S = 10</th><td>5.3</td><td>5.2</td><td>5.2</td><td>7.3</td><td>39.4</td>" in page_stored.distances(
        results
    )
    assert "<th>S = 20</th><td>29.9</td>" in page_stored.same_noise(results)
    lines, tables = page_stored.round_trip_lines(results)
    assert [points for *_, points in lines] == [
        pytest.approx({10: 32.9, 20: 30.7, 50: 45.5}, abs=0.05),
        pytest.approx({10: 17.8, 20: 28.6, 50: 46.8}, abs=0.05),
        pytest.approx({10: 170.7, 20: 170.7, 50: 170.7}, abs=0.05),
    ]
    pieces = page_stored.leaderboard, page_stored.distances, page_stored.same_noise, page_stored.round_trip_curve
    for page in (Page(piece(results)) for piece in pieces):
        assert page.open == []
        assert all(line.startswith("ddim evaluate ") for line in page.commands)
    assert len(Page(page_stored.round_trip_curve(results)).commands) == len(tables) == 2
    other = {"editor": {"fingerprint": "x"}, "model": {"fingerprint": "x"}, "inversion": results["inversion"]}
    assert [piece(other) for piece in pieces] == [""] * 4
    methods[0]["given"] = {"iterations": 77}
    assert page_stored.round_trip_curve(results) == ""


@pytest.fixture(scope="module")
def editor(root: Path) -> Path:
    """A text model with seven pictures that its list knows: four sources, three answers."""
    home = root / "editor"
    tiny_text.pipeline().save_pretrained(home)
    lines = ["file,prompt"]
    for k, pixels in enumerate(tiny_text.pictures(7)):
        name = f"test_images/{k}.png" if k < 4 else f"answers/{k}.png"
        save_image(to_pil(pixels), home / name)
        lines.append(f"{name},a {('cat', 'dog', 'tiger', 'mat')[k % 4]}")
    (home / "pictures.csv").write_text("\n".join([*lines, ",a red hat", ",a dog"]) + "\n")
    return home


def test_words_and_edits_of_a_text_model(root: Path, editor: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr("ddim.demo.editing.STEPS", 2)
    result = run("demo", "--model", "small", "--out", "words", "--editor", editor.name, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]
    assert [len(found["words"]["prompts"]), len(found["edits"]), len(found["methods"])] == [4, 3, 4]
    assert found["sections"][:3] == ["edits", "methods", "inversion"]
    text = (root / "words" / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert [text.count(f"<h3>{pair}</h3>") for pair in ("a cat → a cat", "a dog → a dog")] == [1, 1]
    assert found["words"]["known"] == ["a red hat", "a dog"]
    shown = {found["words"]["known_file"], found["words"]["file"]}
    shown |= {one["file"] for one in (*found["edits"], *found["methods"])}
    assert shown <= set(page.images)
    # the commands invert all of originals/ with the pixel model, so that no drawing may lie there
    assert sorted(p.name for p in (root / "words" / "drawings").iterdir()) == [f"{k}.png" for k in range(4)]
    assert len(list((root / "words" / "originals").iterdir())) == 4
    first, plain = found["edits"][1], found["methods"][2]
    assert plain["command"] == (
        "ddim edit words/drawings/0.png --model editor --from 'a cat' --to 'a cat' --method direct --guidance 3 "
        "--attention none"
    )
    for one in (first, plain):
        assert one["command"] in page.commands
        again = run(*shlex.split(one["command"])[1:], "--steps", 2, "--json")
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout)["reconstruction"][0]["psnr"] == pytest.approx(one["psnr"][0], abs=0.01)


def test_full_adds_the_slow_edits(root: Path, editor: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    gallery = Gallery("editor", (3, *ddim.load("editor").picture[1:]))
    for full, count in ((False, 4), (True, 5)):
        context = Context("editor", ddim.load("editor"), root, 0, full)
        (jobs,) = other_edits(context, gallery).stages
        assert len(jobs) == count
    assert jobs[0].calls > 2 * jobs[1].calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--editor", "small"], "takes no prompts"),
        (["--editor", "./nowhere/at/all"], "./nowhere/at/all"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--images", "few"], "few has 0"),
        (["--out", "page.html"], "page.html"),
        (["--images", "demo/originals"], "is an input"),
    ],
)
def test_what_it_cannot_work_with(words: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    Path("few").mkdir(exist_ok=True)
    result = run("demo", "--model", "small", "--editor", "", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_failure_in_one_job_ends_the_demo(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    sick = tiny.pipeline_folder(tmp_path / "sick", num_train_timesteps=LEVELS)
    weights = next(sick.rglob("*.safetensors"))
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights)
    result = run("demo", "--model", "sick", "--images", folder / "small" / "test_images", "--editor", "")
    assert result.exit_code == 1
    assert "no longer finite" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (3, 3, 1), (8, 4, 2)])
def test_jobs_share_the_threads_that_may_be_used(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddim.demo.jobs.usable_cores", lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with worker_threads("cpu") as found:
            assert (found, torch.get_num_threads()) == (workers, threads)
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)


def test_pictures():
    images = torch.rand(3, 1, 4, 4)
    sheet = tiles(images, 2, scale=2, gap=3)
    assert (sheet.mode, sheet.size) == ("LA", (8 + 3 + 8, 8 + 3 + 8))
    assert sheet.getpixel((9, 0)) == (0, 0)
    assert sheet.getpixel((18, 18)) == (0, 0)
    assert tiles(torch.rand(1, 3, 4, 4), 1).mode == "RGBA"
    assert latent(torch.tensor([-9.0, 0.0, 3.0])).tolist() == [0, 0.5, 1]
    assert difference(images, images).max() == 0
    assert same_as_png(images, images + 1e-6) >= 0
    assert same_as_png(images, images) == 3


def test_the_plot_names_every_line_and_keeps_the_names_apart():
    lines = [(f"line {k}", k > 1, {10: 90.0 + k / 10, 50: None if k == 3 else 91.0}) for k in range(4)]
    svg = psnr_plot(lines, "a <title>")
    assert "a &lt;title&gt;" in svg
    places = sorted(float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(places) == 4
    assert min(b - a for a, b in pairwise(places)) >= 16.9


class Recorded:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.calls = 0.0

    def start(self, calls: int) -> None:
        pass

    def section(self, title: str, calls: int) -> Any:
        return nullcontext()

    def advance(self, calls: float) -> None:
        self.calls += calls

    def page(self, file: Path) -> None:
        pass


def test_jobs_give_their_results_in_order_and_advance_by_their_calls():
    def job(name: str, listen: Any) -> str:
        for share in (0.25, 0.75):
            on_event = listen(share)
            for done in range(1, 4):
                on_event(ddim.StepEvent(done, 3))
                on_event(ddim.LossEvent(done, 0.1))
        return name

    progress = Recorded()
    jobs = [Job(calls, partial(job, name)) for name, calls in (("short", 1), ("long", 8), ("middle", 3))]
    assert run_jobs(jobs, 2, progress) == ["short", "long", "middle"]
    assert progress.calls == pytest.approx(12)


def test_a_terminal_shows_a_bar_for_each_section_and_one_for_all(capsys: pytest.CaptureFixture[str]):
    with _Bars(Terminal()) as silent:  # no terminal: a line when a section is done
        silent.start(5)
        with silent.section("Samples", 5):
            silent.advance(5)
        silent.page(Path("demo/index.html"))
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith(" s, 5 network calls")
    assert last.startswith("demo/index.html has its first pictures after ")
    terminal = Terminal()
    terminal.live = True
    with _Bars(terminal) as bars:
        bars.start(10)
        for title, calls in (("Samples", 4), ("Round trips", 6)):
            with bars.section(title, calls):
                bars.advance(calls / 2)
                bars.advance(calls / 4)
        bars.page(Path("[demo]/index.html"))
        assert bars.bars is not None
        assert [(task.completed, task.total) for task in bars.bars.tasks] == [(7.5, 10), (3, 4), (4.5, 6)]
