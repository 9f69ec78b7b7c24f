"""What the server hands out by URL, and what it takes: nothing of other users, and nothing of the machine."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import ddim
from ddim.studio.pictures import taken


@pytest.fixture
def client(server: Any) -> Any:
    """A browser's door to the page, without a browser."""
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def files(server: Any, photo: Path) -> dict[str, Path]:
    """Files that are there, and nobody may see."""
    other = server.desk.session("another user")
    made = other.place("result.png")
    made.write_bytes(photo.read_bytes())
    return {
        "/etc/passwd": Path("/etc/passwd"),
        "the library": Path(ddim.__file__),
        "these tests": Path(__file__),
        "an upload of another user": taken(other, photo, server.desk.limits).path,
        "a result of another user": made,
        "a file of the user who runs it": photo,
        "the model": Path(server.desk.menu[0]) / "model_index.json",
    }


def test_no_file_outside_of_the_pages_folder_is_served(server: Any, client: Any, photo: Path):
    for what, file in files(server, photo).items():
        assert file.is_file(), what
        for way in (file, f"{server.desk.root}/served/../{Path('..', '..') / file.relative_to('/')}"):
            for name in (str(way), quote(str(way), safe="")):
                answer = client.get(f"/gradio_api/file={name}")
                assert answer.status_code in (403, 404), (what, name)
                assert file.read_bytes()[:200] not in answer.content, what


def test_a_file_that_was_uploaded_is_served_and_no_folder(server: Any, client: Any, photo: Path):
    with photo.open("rb") as data:
        (path,) = client.post("/gradio_api/upload", files={"files": (photo.name, data, "image/png")}).json()
    assert Path(path).is_relative_to(server.desk.root)
    assert client.get(f"/gradio_api/file={path}").content == photo.read_bytes()
    for folder in (Path(path).parent, server.desk.root, server.desk.root / "sessions"):
        assert client.get(f"/gradio_api/file={folder}").status_code in (403, 404)


def test_a_path_that_a_browser_did_not_upload_is_not_read(server: Any, client: Any, photo: Path):
    config = client.get("/config").json()
    ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    (number,) = [
        one["id"] for one in config["dependencies"] if [ids["edit-picture"], "change"] in map(list, one["targets"])
    ]

    def asked(path: Path | str) -> httpx.Response:
        value = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        return client.post(
            "/gradio_api/run/predict", json={"data": [value], "fn_index": number, "session_hash": "somebody"}
        )

    with photo.open("rb") as data:
        (path,) = client.post("/gradio_api/upload", files={"files": (photo.name, data, "image/png")}).json()
    assert "96 x 64" in asked(path).text
    for what, file in files(server, photo).items():
        answer = asked(file)
        assert answer.status_code >= 400, what
        assert "96 x 64" not in answer.text


def test_a_file_that_is_too_large_is_refused(client: Any):
    answer = client.post("/gradio_api/upload", files={"files": ("large.png", bytes(2 * 2**20), "image/png")})
    assert answer.status_code == 413
