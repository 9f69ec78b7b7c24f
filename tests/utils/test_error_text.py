"""Texts of other libraries' errors inside our messages."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddim
from ddim._utils.error_text import first_line, reason_of, with_full_stop
from ddim.data.images import open_image


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("it broke"), "it broke."),
        (ValueError("it broke."), "it broke."),
        (ValueError("it broke. "), "it broke."),
        (ValueError("it broke..."), "it broke."),
        (ValueError("it broke!"), "it broke!"),
        (ValueError("broke it?\nyes"), "broke it?"),
        (ValueError("\n\n  it broke\nhere"), "it broke."),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch"), "Error(s) in loading: size mismatch."),
        (RuntimeError("nothing follows:"), "nothing follows."),
        (ValueError(), "ValueError."),
        (ValueError("..."), "ValueError."),
        (OSError(13, "Permission denied", "/there"), "Permission denied."),
        (OSError("no number."), "no number."),
    ],
)
def test_an_error_ends_a_sentence_with_one_mark(error: Exception, said: str):
    assert reason_of(error) == said


def test_a_long_line_is_cut_and_still_ends():
    assert reason_of(ValueError("word. " * 100), 11) == "word. word."
    assert first_line(ValueError("word. " * 100), 11) == "word. word"
    assert with_full_stop("as it is") == "as it is."


def test_no_sentence_puts_its_own_stop_behind_anothers():
    """``reason_of`` adds one stop; an error's own text before a stop of ours makes two, and at an end may have none."""
    source = Path(ddim.__file__).parent
    pasted = re.compile(r"\{(error|str\(error\)|error\.strerror|(first|one)_line\(error[^}]*\))\}\.")
    assert not [f"{file}: {m[0]}" for file in source.rglob("*.py") for m in pasted.finditer(file.read_text())]


def test_a_decoder_in_c_says_nothing_beside_our_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """libtiff writes on the process's own stderr, past Python's."""
    file = tmp_path / "cut.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(file, compression="tiff_lzw")
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    data[half : half + 40] = bytes(b ^ 0x5A for b in data[half : half + 40])
    file.write_bytes(data)
    with pytest.raises(ddim.InputError):
        open_image(file)
    assert capfd.readouterr() == ("", "")
