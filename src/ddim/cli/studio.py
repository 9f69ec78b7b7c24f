"""``ddim studio``: the page for edits in the browser."""

import socket
import time
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from .._utils.arenas import bound_arenas
from .._utils.choices import DTYPES
from .._utils.errors import InputError
from ..studio.headers import LOCAL
from ..studio.limits import Limits
from . import options as o
from .output import Terminal, escaped

_USUAL = Limits()
_MODELS = typer.Argument(
    metavar="[MODEL]...",
    help="Models for the menu: bundled ones, folders, files or hub ids; the first one is loaded at once.",
    show_default=False,
)
_Host = Annotated[str, typer.Option("--host", help="The address to listen at; 0.0.0.0 is every one of this machine.")]
_Port = Annotated[
    int | None,
    typer.Option("--port", help="The port; by default the first free one from 7860.", show_default=False),
]
_Share = Annotated[bool, typer.Option("--share", help="Also make a public address by Gradio's servers, for a week.")]
_Open = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
_Queue = Annotated[int, typer.Option("--queue", help="Jobs that may wait; more are refused.")]
_Megabytes = Annotated[int, typer.Option("--max-megabytes", help="The largest file that is taken.")]
_Megapixels = Annotated[int, typer.Option("--max-megapixels", help="The largest picture that is taken.")]
_Steps = Annotated[int, typer.Option("--max-steps", help="The largest number of steps of one run.")]
_Captioner = Annotated[
    str | None,
    typer.Option(
        "--captioner",
        help="Add a button that describes the picture: an image-to-text model of transformers such as BLIP, as a "
        "folder or a hub id; it is loaded when the button is first used.",
        show_default=False,
    ),
]
_Keep = Annotated[int, typer.Option("--keep-models", help="Models that stay in memory.")]
_Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help=f"The precision of the networks: {', '.join(DTYPES)}; by default float32.", show_default=False
    ),
]
_LowMemory = Annotated[bool, typer.Option("--low-memory", help="Need less memory and more time.")]


def studio(
    models: Annotated[list[str] | None, _MODELS] = None,
    host: _Host = "127.0.0.1",
    port: _Port = None,
    share: _Share = False,
    open: _Open = False,
    queue: _Queue = _USUAL.queue,
    max_megabytes: _Megabytes = _USUAL.max_megabytes,
    max_megapixels: _Megapixels = _USUAL.max_megapixels,
    max_steps: _Steps = _USUAL.max_steps,
    keep_models: _Keep = _USUAL.keep_models,
    captioner: _Captioner = None,
    device: o.Device = None,
    dtype: _Dtype = None,
    low_memory: _LowMemory = False,
) -> None:
    """Edit, compare and interpolate pictures on a page in the browser.

    The page is served to this machine alone, and runs until Ctrl-C. Uploads and results are deleted when the page is
    closed, copies that the server shows after six hours, and all of them at the end. It needs gradio:
    pip install 'ddim\\[studio]'.

    Example: ddim studio emoji emoji-flow --open
    """
    with Terminal() as terminal:
        if find_spec("gradio") is None:
            raise InputError("the page needs gradio: pip install 'ddim[studio]'.")
        _check_address(host, port)
        bound_arenas()

        from ..studio.desk import Desk

        limits = Limits(
            max_megabytes=max_megabytes,
            max_megapixels=max_megapixels,
            queue=queue,
            max_steps=max_steps,
            keep_models=keep_models,
        )
        loading: dict[str, Any] = {"device": device, "dtype": dtype, "low_memory": low_memory or None}
        loading = {name: value for name, value in loading.items() if value is not None}
        here = host in LOCAL and not share
        with Desk(models or ["emoji"], loading, limits, any_model=here, captioner=captioner) as desk:
            with terminal.status(f"loading {desk.menu[0]}"):
                from ..studio.page import build, launch

                desk.model(desk.menu[0])
                page = build(desk)
                url = launch(page, desk, host, port, share=share)
            try:
                terminal.result(
                    {"command": "studio", "url": url, "models": desk.menu},
                    f"[bold]{escaped(url)}[/bold]  [dim]Ctrl-C ends the page and deletes what was uploaded.[/dim]",
                )
                if open:
                    typer.launch(url)
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("The page has ended; what was uploaded and made is deleted.") from None
            finally:
                page.close(verbose=False)


def _check_address(host: str, port: int | None) -> None:
    """Raises InputError, before anything is loaded, where a server cannot listen."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"{port} is no port; use 1024 to 65535.", parameter="port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port or 0))
        except PermissionError:
            raise InputError(f"{port} needs an administrator; use 1024 or more.", parameter="port") from None
        except OSError as error:
            taken = port is not None and "in use" in str(error)
            sentence = f"{port} is taken; use another." if taken else f"{host!r} is no address of this machine."
            raise InputError(sentence, parameter="port" if taken else "host") from None
