"""The way of a picture to noise and back: samples, predictions, statistics, and the error of the round trip."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.path import Node
from ..core.prediction import to_pair
from ..data.images import save_image, sheet
from ..evaluation.metrics import psnr
from ..inversion import make_inversion
from ..inversion.latent_code import LatentCode
from ..pipelines.capabilities import check_inversion
from ..pipelines.invert import invert
from ..pipelines.pictures import read_pictures
from ..pipelines.reconstruct import reconstruct
from .desk import Desk, Session
from .editing import loaded
from .jobs import Job
from .menus import takes_embedded
from .pictures import Upload, crop_for
from .requests import EditRequest, Repeat
from .watched import Asked, Watched

SHOWN = 8
"""The number of nodes in a strip."""


@dataclass(frozen=True, eq=False)
class Station:
    """The sample at one node of a trajectory, as far as it is shown.

    Attributes:
        t: the time of the node, 0 for data.
        sample, predicted: the sample and the predicted image, decoded, [C, H, W] in [0, 1].
        std: the standard deviation of the sample.
        noise: the noise level sigma / alpha of the node.
    """

    t: float
    sample: Tensor
    predicted: Tensor
    std: float
    noise: float


@dataclass(frozen=True, eq=False)
class Trip:
    """A round trip.

    Attributes:
        source, reconstruction: the picture as the model took it, and as it came back, [C, H, W] in [0, 1].
        back, forth: the stations from the picture to noise and from noise to the picture.
        mean, std, kurtosis: of the latent at the noisiest node; ``std`` over that of the model's prior, and the excess
            kurtosis, which are 1 and 0 for Gaussian noise.
        psnr: of the round trip; ``limit`` is the PSNR of the autoencoder alone.
        calls: network calls there and back.
        seconds: there and back.
        strip, code: the files.
        repeat: how the code is made again.
    """

    source: Tensor
    reconstruction: Tensor
    back: list[Station]
    forth: list[Station]
    mean: float
    std: float
    kurtosis: float
    psnr: float
    limit: float
    calls: tuple[float, float]
    seconds: tuple[float, float]
    strip: Path
    code: Path
    repeat: Repeat


@dataclass(eq=False)
class TripWork:
    """A round trip that a job runs.

    Args:
        desk: the server.
        session: the page.
        request: model, source prompt or class, method, steps, guidance and seed.
        upload: the picture.
    """

    desk: Desk
    session: Session
    request: EditRequest
    upload: Upload

    def __call__(self, job: Job) -> Trip:
        """Inverts the picture and reconstructs it.

        Raises:
            InputError: a setting cannot be used.
            DDIMError: it failed.
            KeyboardInterrupt: it was stopped.
        """
        asked = self.request
        model = loaded(self.desk, asked.model, job)
        inversion = make_inversion(asked.method)
        check_inversion(model, inversion)
        asked.check_numbers(model, self.desk.limits.max_steps, guidance=not takes_embedded(model), target=False)
        crop = crop_for(model, self.upload.size)
        pictures = read_pictures(model, self.upload.path, crop=crop)
        arguments = asked.inversion_arguments(model)
        job.watch(model.peek)
        job.say("to noise")
        began = time.perf_counter()
        model.record()
        code = invert(model, pictures, on_event=job.on_event, **arguments)
        back, middle = model.recorded(), time.perf_counter()
        calls = model.calls(1)
        job.say("back to the picture")
        model.record()
        came = reconstruct(model, code, on_event=job.on_event)
        forth, end = model.recorded(), time.perf_counter()
        forth_calls = model.calls(1)
        job.say("measuring")
        source = pictures.pixels
        limit = model.decode(model.encode(source)) if model.downscaling > 1 else source
        stations = [_stations(model, part) for part in (back, forth)]
        folder = self.session.new_folder()
        stem = f"{self.upload.path.stem}_{asked.method}"
        strip = save_image(_strip(*stations), folder / f"{stem}_trajectory.png")
        file = folder / f"{stem}.code.safetensors"
        code.save(file)
        return Trip(
            source[0],
            came[0],
            back=stations[0],
            forth=stations[1],
            **_statistics(model, code),
            psnr=float(psnr(source, came)[0]),
            limit=float(psnr(source, limit.cpu())[0]),
            calls=(calls, forth_calls),
            seconds=(middle - began, end - middle),
            strip=strip,
            code=file,
            repeat=Repeat("invert", asked.model, (self.upload.name,), {**arguments, "crop": crop}, self.desk.loading),
        )


def _stations(model: Watched, asked: Sequence[Asked]) -> list[Station]:
    """Returns the stations of a strip, evenly spread over the nodes at which the network was asked."""
    last = {one.node.t: one for one in asked}  # of several calls at a node, the last one
    nodes = list(last.values())
    count = min(SHOWN, len(nodes))
    chosen = [nodes[round(k * (len(nodes) - 1) / max(count - 1, 1))] for k in range(count)]
    return [_station(model, one) for one in chosen]


def _station(model: Watched, one: Asked) -> Station:
    node: Node = one.node
    with torch.no_grad():
        pair = to_pair(model.schedule.prediction, one.output, one.x, node, sigma_data=model.schedule.sigma_data)
        shown = [model.decode(x.nan_to_num())[0].clamp(0, 1).cpu() for x in (one.x, pair.x0)]
    noise = node.sigma / node.alpha if node.alpha else float("inf")
    return Station(node.t, shown[0], shown[1], float(one.x.std()), noise)


def _statistics(model: Watched, code: LatentCode) -> dict[str, Any]:
    """Returns mean, standard deviation over the prior's, and excess kurtosis of the noisiest sample of a code."""
    x = code.x.double().flatten()
    centred = x - x.mean()
    std = float(centred.square().mean().sqrt())
    kurtosis = float(centred.pow(4).mean()) / max(std, 1e-30) ** 4 - 3
    return {"mean": float(x.mean()), "std": std / model.schedule.prior_std(code.grid), "kurtosis": kurtosis}


def _strip(back: list[Station], forth: list[Station]) -> Any:
    """Returns the strip: samples and predictions on the way to noise, and on the way back."""
    columns = max(len(back), len(forth))
    rows = [[one.sample for one in back], [one.predicted for one in back]]
    rows += [[one.sample for one in forth], [one.predicted for one in forth]]
    blank = torch.ones_like(rows[0][0])
    tiles = [tile for row in rows for tile in (*row, *[blank] * (columns - len(row)))]
    height = tiles[0].shape[1]
    return sheet(torch.stack(tiles), columns, scale=max(1, 96 // height))
