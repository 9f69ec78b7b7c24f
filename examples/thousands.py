"""Invert a folder of pictures in batches, go on after a lost batch, and reconstruct one picture from its row."""

import shutil
import tempfile
from pathlib import Path

import ddim
from ddim.batch import Columns, Output, Work, code_of, run_batch


def main(folder: Path) -> float:
    photos, codes = folder / "photos", folder / "codes"
    photos.mkdir()
    for picture in ddim.bundled_test_images("fashion")[:6]:
        shutil.copy(picture, photos)
    settings = {"method": "bdia", "steps": 10}
    work = Work("invert", Columns(str(photos)), model="fashion", arguments=settings, batch=4)
    run_batch(work, codes)  # with ddim.batch.Spread("auto"): on the Ray cluster of this machine

    Output(codes).part(1).unlink()
    again = run_batch(work, codes)
    print(f"{again.computed} of {again.plan.batches} batches computed again")

    row = next(Output(codes).rows())
    same = ddim.reconstruct(ddim.load("fashion"), code_of(row))
    ddim.save_image(same[0], folder / "same.png")
    return row["mse"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"mean squared error of the first reconstruction: {main(Path(folder)):.2g}")
