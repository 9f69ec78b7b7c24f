"""What the server hands out by URL, and what it takes: nothing of other users, and nothing of the machine."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import ddim
from ddim.models import bundled_test_images
from ddim.studio.pictures import taken


@pytest.fixture
def client(server: Any) -> Any:
    """A browser's door to the page, without a browser."""
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


FILE = {"_type": "gradio.FileData"}
"""The mark of a file in a value."""


def value(path: Path | str) -> dict[str, Any]:
    """The value of a picture as a browser sends it."""
    return {"path": str(path), "meta": FILE}


def uploaded(client: Any, photo: Path) -> str:
    """Uploads a picture as a browser does; returns the path that the server gives it."""
    with photo.open("rb") as data:
        (path,) = client.post("/gradio_api/upload", files={"files": (photo.name, data, "image/png")}).json()
    return path


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
    path = uploaded(client, photo)
    assert Path(path).is_relative_to(server.desk.root)
    assert client.get(f"/gradio_api/file={path}").content == photo.read_bytes()
    for folder in (Path(path).parent, server.desk.root, server.desk.root / "sessions"):
        assert client.get(f"/gradio_api/file={folder}").status_code in (403, 404)


def test_a_page_for_this_machine_answers_to_its_names_only(server: Any, client: Any):
    port = httpx.URL(server.url).port
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert client.get("/", headers={"Host": f"{name}:{port}"}).status_code == 200
    for name in ("rebound.example", "127.0.0.1.rebound.example", "localhost.rebound.example"):
        for path in ("/", "/config", "/gradio_api/info"):
            assert client.get(path, headers={"Host": f"{name}:{port}"}).status_code == 400
    answer = client.get("/")
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]


def test_a_visitor_does_not_wait_for_a_model_in_memory(server: Any, client: Any):
    (name, *_) = server.desk.menu
    events = [one for one in client.get("/config").json()["dependencies"] if [e for _, e in one["targets"]] == ["load"]]
    assert [one["queue"] for one in events] == [False]
    answer = press(client, "model", "input", [name])
    assert "32 x 32" in answer.text
    assert "Waiting" in press(client, "model", "input", ["fashion"]).text
    assert server.desk.in_memory("fashion") is None


def press(client: Any, button: str, event: str, values: list[Any], session: str = "somebody") -> httpx.Response:
    """Sends an event of a component, by its id, with the values of its inputs; only those outside of the queue."""
    config = client.get("/config").json()
    ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    (number,) = [
        one["id"]
        for one in config["dependencies"]
        if [ids[button], event] in map(list, one["targets"]) and not one["queue"]
    ]
    return client.post("/gradio_api/run/predict", json={"data": values, "fn_index": number, "session_hash": session})


@pytest.mark.parametrize("prefix", ["edit", "compare", "trip", "mix"])
def test_a_sample_is_there_wherever_the_package_lies(
    prefix: str, server: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # else a package in /tmp passes
    answer = press(client, f"{prefix}-sample", "click", ["emoji"])
    assert answer.status_code == 200, answer.text
    pictures = [value for value in answer.json()["data"] if isinstance(value, dict) and "path" in value]
    assert len(pictures) == (2 if prefix == "mix" else 1)
    known = {file.name: file.read_bytes() for file in bundled_test_images("emoji")}
    for value in pictures:
        path = value["path"]
        assert client.get(f"/gradio_api/file={path}").content == known[Path(path).name]


def test_a_path_that_a_browser_did_not_upload_is_not_read(server: Any, client: Any, photo: Path):
    own = uploaded(client, photo)
    assert "96 x 64" in press(client, "edit-picture", "change", [value(own)]).text
    for what, file in files(server, photo).items():
        relative = Path(server.desk.served, "..", Path(*[".."] * 9), file.relative_to("/"))
        for sent in (value(file), {"path": str(file)}, {"path": str(relative)}, value(f"file://{file}")):
            answer = press(client, "edit-picture", "change", [sent])
            assert answer.status_code >= 400 or "drop the picture again" in answer.text, (what, sent)
            assert "x 64" not in answer.text
        for part in ("layers", "background", "composite"):
            for sent in (value(file), {"path": str(file)}):
                mask = {"layers": [], "background": None, "composite": None}
                mask[part] = [sent] if part == "layers" else sent
                answer = press(client, "edit-mask-part", "expand", [value(own), mask])
                assert answer.status_code >= 400, (what, mask)


@pytest.mark.parametrize("mark", [{}, {"meta": FILE}])
def test_no_address_is_asked_for_a_picture(mark: dict[str, Any], client: Any, photo: Path):
    own, asked = uploaded(client, photo), []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with HTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/a.png"
        for sent in ({"path": url}, {"path": None, "url": url}, {"path": own, "url": url}):
            answer = press(client, "edit-picture", "change", [{**sent, **mark}])
            assert answer.status_code >= 400 or sent["path"] == own or "drop" in answer.text
        press(client, "edit-mask-part", "expand", [value(own), {"layers": [{"path": url, **mark}]}])
        site.shutdown()
    assert not asked


def test_a_file_that_is_too_large_is_refused(client: Any):
    answer = client.post("/gradio_api/upload", files={"files": ("large.png", bytes(2 * 2**20), "image/png")})
    assert answer.status_code == 413
