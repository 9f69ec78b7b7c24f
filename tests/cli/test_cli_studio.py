"""``ddim studio``: what is refused, before a page is made."""

import socket

import pytest
from commands import fails, run

NEEDS_GRADIO = "the page needs gradio: pip install 'ddim[studio]'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], ["--port: 99999", "65535"]),
        (["--port", "0"], ["--port: 0"]),
        (["--host", "203.0.113.7"], ["--host: '203.0.113.7'"]),
        (["--host", "no such host"], ["--host: 'no such host'"]),
        (["--queue", "0"], ["--queue: 0", "1"]),
        (["--max-megabytes", "-1"], ["--max-megabytes: -1", "1"]),
        (["--max-megapixels", "0"], ["--max-megapixels: 0", "1"]),
        (["--max-steps", "0"], ["--max-steps: 0", "1"]),
        (["--keep-models", "0"], ["--keep-models: 0", "1"]),
        (["--device", "gpu"], ["'gpu'", "cpu"]),
        (["--dtype", "float8"], ["'float8'", "float32"]),
        (["emojy"], ["'emojy'", "emoji"]),
        (["--captioner", "no/such/folder"], ["--captioner", "no/such/folder"]),
    ],
    ids=lambda v: " ".join(v) if v[0].startswith("--") else "",
)
def test_a_wrong_option_is_one_sentence(words: list[str], said: list[str]):
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    sentence = fails("studio", *words, code=2)
    for part in said:
        assert part in sentence


def test_a_port_that_is_taken_is_one_sentence():
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port: {port} is taken" in fails("studio", "--port", port, code=2)


def test_without_a_public_address_it_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gradio", reason=NEEDS_GRADIO)

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("gradio.networking.setup_tunnel", unreachable)
    sentence = fails("studio", "fashion", "--share", code=1)
    assert "--share: there is no public address" in sentence
    assert "share link" not in sentence


def test_help_says_what_to_install():
    assert "pip install 'ddim[studio]'" in " ".join(run("studio", "--help").stdout.split())


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.cli.studio.find_spec", lambda _: None)
    assert "pip install 'ddim[studio]'" in fails("studio", code=2)
