"""A model that lies whole in the hub's cache loads without a network, in every case in which diffusers loads it."""

import hashlib
import json
import shutil
import socket
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_flux
import tiny_lora
import tiny_text
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from refusals import failed, refused
from tiny_flow import FAMILIES

import ddim

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/name"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    place = tmp_path / "hub"
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.constants.HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(name, str(place))
    return place


@pytest.fixture(params=["HF_HUB_OFFLINE", "no network"])
def offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ways of having no network."""
    if request.param == "no network":

        def unreachable(*_: Any) -> None:
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # the client asks six times, and sleeps for 23 seconds in all between
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setattr(socket.socket, "connect", unreachable)
        monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def keep(
    cache: Path, folder: Path, listed: Collection[str] = (), without: Collection[str] = (), name: str = NAME
) -> Path:
    """Puts a folder's files into the cache as the hub's client does.

    Args:
        listed: files of the repository that were not fetched; with some, the client's own list of files is kept too.
        without: files that are not fetched.
        name: the repository.
    """
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    for file in files:
        if file.as_posix() in without:
            continue
        data = (folder / file).read_bytes()
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(blob)
    if listed:
        entry = {"size": 1, "blob_id": "0" * 40, "lfs_sha256": None, "lfs_size": None, "xet_hash": None}
        from huggingface_hub._snapshot_download import TreeCacheEntry, write_tree_cache

        names = [*(f.as_posix() for f in files), *listed]
        write_tree_cache(str(home), COMMIT, {name: TreeCacheEntry(**entry) for name in names})  # type: ignore[arg-type]
    return snapshot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as repositories have them."""
    place = tmp_path_factory.mktemp("made")
    pipeline = tiny_text.pipeline()
    pipeline.save_pretrained(place / "text")
    pipeline.save_pretrained(place / "shards", max_shard_size="40KB")
    tiny_text.pipeline().to(torch.float16).save_pretrained(place / "fp16", variant="fp16")
    tiny_text.pipeline().to(torch.float16).save_pretrained(place / "fp16-shards", variant="fp16", max_shard_size="20KB")
    tiny.pipeline_folder(place / "pixel")
    tiny.unet().save_pretrained(place / "bare")
    shutil.copy(place / "pixel" / "scheduler" / "scheduler_config.json", place / "bare")
    for name in ("shards", "fp16-shards"):
        assert len([*(place / name / "unet").glob("*.safetensors")]) > 1
    return {p.name: p for p in place.iterdir()}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["text", "shards", "fp16", "fp16-shards", "pixel", "bare"])
def test_what_is_cached_loads_without_a_network(cache: Path, made: dict[str, Path], kind: str):
    keep(cache, made[kind])
    model = ddim.load(NAME, device="cpu")
    assert model.name == NAME
    assert model.fingerprint == ddim.load(made[kind], device="cpu").fingerprint


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["text", "fp16", "pixel"])
def test_what_else_the_repository_holds_does_not_matter(cache: Path, made: dict[str, Path], kind: str):
    # diffusers fetches what a pipeline needs, and the client keeps the list of all that there was
    more = ["safety_checker/config.json", "safety_checker/model.safetensors", "unet/another.json", "other.json"]
    more += [f"{part}/diffusion_pytorch_model.non_ema.safetensors" for part in ("unet", "vae")]
    keep(cache, made[kind], listed=more)
    assert ddim.load(NAME, device="cpu").fingerprint == ddim.load(made[kind], device="cpu").fingerprint


@pytest.mark.usefixtures("offline")
def test_parts_that_are_not_used_may_be_missing(cache: Path, made: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(made["text"], tmp_path / "text"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    keep(cache, folder)
    assert ddim.load(NAME, device="cpu").fingerprint == ddim.load(made["text"], device="cpu").fingerprint


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["text", "pixel"])
def test_a_copy_without_its_weights_says_so_and_that_the_hub_was_not_asked(
    cache: Path, made: dict[str, Path], kind: str
):
    keep(cache, made[kind], without=["unet/diffusion_pytorch_model.safetensors"], listed=["x.json"])
    with failed("model", repr(NAME), "x.json", "unet") as caught:
        ddim.load(NAME, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline", "cache")
def test_what_is_not_cached_is_one_sentence(request: pytest.FixtureRequest):
    with failed("model", repr(NAME)) as caught:
        ddim.load(NAME, device="cpu")
    if "no network" in request.node.name:  # where the user did not switch the hub off
        assert "Network is unreachable" in caught.value.message
        assert "Got:" not in caught.value.message
        assert "local folder" in str(caught.value.hint)


@pytest.mark.usefixtures("offline", "cache")
def test_a_name_that_no_repository_can_have_is_one_sentence():
    with failed("model", "'[red]x[/red]'") as caught:
        ddim.load("[red]x[/red]", device="cpu")
    assert "\n" not in str(caught.value)


def test_with_a_network_the_full_weights_are_fetched_or_the_variant(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[str]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for kind, more in (("text", "unet/diffusion_pytorch_model.fp16.safetensors"), ("fp16-shards", "unet/x.bin")):
        folder = made[kind]
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, f=files, m=more: [*f, m])
        ddim.load(NAME, device="cpu")
        assert {f for f in asked[-1] if "safetensors" in f} == {f for f in files if f.endswith(".safetensors")}


class Hub:
    """A hub with one repository: a folder of which it lists all files, and of which every download is noted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        self.asked: list[list[str]] = []

        def fetch(name: str, allow_patterns: list[str]) -> str:
            self.asked.append(allow_patterns)
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: self.files)

    @property
    def weights(self) -> set[str]:
        """The weights that were downloaded."""
        return {pattern for patterns in self.asked for pattern in patterns if "safetensors" in pattern}


def test_what_cannot_work_is_refused_before_the_weights_are_fetched(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    word, flux = tiny_lora.embedding(tmp_path / "toy.safetensors", 12), tmp_path / "flux"
    tiny_flux.pipeline().save_pretrained(flux)
    for folder in (made["text"], made["pixel"], flux):
        hub = Hub(folder, monkeypatch)
        with refused("variant", "'fp 16'"):
            ddim.load(NAME, device="cpu", variant="fp 16")
        assert not hub.asked
        with refused("variant", "'fp16'"):
            ddim.load(NAME, device="cpu", variant="fp16")
        assert len(hub.asked) == 1
        if folder != made["text"]:
            with refused("textual_inversion"):
                ddim.load(NAME, device="cpu", textual_inversion=word)
        assert not hub.weights


def test_the_weights_of_a_part_that_the_index_leaves_out_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    FAMILIES["sd3 without t5"].pipeline().save_pretrained(tmp_path / "model")
    hub = Hub(tmp_path / "model", monkeypatch)
    assert ddim.load(NAME, device="cpu").fingerprint == ddim.load(tmp_path / "model", device="cpu").fingerprint
    assert hub.weights == {file for file in hub.files if file.endswith(".safetensors")}


def answers(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Every download fails with this error."""

    def fetch(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)


def answer(kind: type[Exception], status: int) -> Exception:
    """An error as the hub's client raises it, of several lines."""
    response = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind(f"{status} Client Error. (Request ID: x)\n\nCannot access it.\nPlease log in.", response=response)  # type: ignore[call-arg]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("kind", "status", "named"),
    [
        (GatedRepoError, 403, f"https://huggingface.co/{NAME}"),
        (RepositoryNotFoundError, 401, "HF_TOKEN"),
        (HfHubHTTPError, 500, "500 Client Error"),
    ],
)
def test_what_the_hub_answers_is_one_line(
    kind: type[Exception], status: int, named: str, monkeypatch: pytest.MonkeyPatch
):
    answers(monkeypatch, answer(kind, status))
    with failed("model", repr(NAME), named) as caught:
        ddim.load(NAME, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_gated_repository_whose_configs_alone_are_cached_says_so(
    cache: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    keep(cache, made["text"], without=["unet/diffusion_pytorch_model.safetensors"])
    answers(monkeypatch, answer(GatedRepoError, 403))
    with failed("model", repr(NAME), f"https://huggingface.co/{NAME}", "unet") as caught:
        ddim.load(NAME, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_offline_says_which_switch_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with failed("model", repr(NAME), "HF_HUB_OFFLINE"):
        ddim.load(NAME, device="cpu")
