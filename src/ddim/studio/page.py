"""The page as a Gradio app, and its server."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .._utils.errors import DDIMError
from ..models.base import Model
from .desk import Desk
from .fields import sample_folders
from .headers import SecurityHeaders, hosts
from .parts import AT_ONCE, QUEUE, is_wanted, not_taken, refused, session_of, status
from .tab_compare import CompareTab
from .tab_edit import EditTab
from .tab_interpolate import InterpolateTab
from .tab_models import ModelsTab
from .tab_trajectory import TrajectoryTab
from .theme import style, theme

TABS = {
    "Edit": EditTab,
    "Compare": CompareTab,
    "Trajectory": TrajectoryTab,
    "Interpolate": InterpolateTab,
    "Models": ModelsTab,
}
KEPT_FOR = 3600, 6 * 3600
"""Every hour, what the server keeps of uploads and results is deleted if it is older than six hours."""

MODEL = "model"
"""The menu of models, for ``is_wanted``."""
NO_PAGES = ("docs_url", "redoc_url", "openapi_url")
"""Pages of FastAPI that are not served."""


def build(desk: Desk) -> gr.Blocks:
    """Returns the page.

    Args:
        desk: the server; the page begins with the first model of its menu.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(desk.served)
    with gr.Blocks(title="ddim studio", analytics_enabled=False, delete_cache=KEPT_FOR) as page:
        gr.HTML(
            '<div class="name"><h1>ddim studio</h1><span>diffusion that runs both ways</span></div>',
            elem_id="studio-bar",
            padding=False,
        )
        with gr.Row(elem_id="studio-model"):
            model = gr.Dropdown(
                desk.menu,
                value=desk.menu[0],
                label="Model",
                allow_custom_value=desk.any_model,
                elem_id="model",
                scale=1,
                min_width=220,
            )
            about = gr.HTML(elem_id="model-status", min_height=10)
        tabs = []
        with gr.Tabs():
            for name, kind in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    tabs.append(kind(desk, model))

        def described(found: Model) -> dict[Any, Any]:
            said = {about: status(facts_line(found))}
            return {**said, **{part: value for tab in tabs for part, value in tab.updates(found).items()}}

        first = described(desk.model(desk.menu[0]))
        _begin_with(first)
        outputs = list(first)

        def at_once(name: str | None, request: gr.Request) -> dict[Any, Any]:
            session, found = session_of(desk, request), desk.in_memory(name)
            if found is not None:
                session.wanted.discard(MODEL)
                return described(found)
            session.wanted.add(MODEL)
            return {about: status("Waiting for its turn to load …")}

        def chosen(name: str | None, request: gr.Request) -> dict[Any, Any]:
            if not is_wanted(session_of(desk, request), MODEL) and desk.in_memory(name) is not None:
                return {about: gr.skip()}
            try:
                return described(desk.model(name))
            except Exception as error:
                return {about: refused(error)}

        def opened(name: str | None, request: gr.Request) -> dict[Any, Any]:
            session_of(desk, request)
            found = desk.in_memory(name)
            return {about: gr.skip()} if found is None else described(found)

        def failed(request: gr.Request) -> Any:
            return not_taken(desk) if is_wanted(session_of(desk, request), MODEL) else gr.skip()

        page.load(opened, [model], outputs, **AT_ONCE)
        model.input(at_once, [model], outputs, **AT_ONCE)
        model.input(chosen, [model], outputs, **QUEUE).failure(failed, None, [about], **AT_ONCE)
        page.unload(_closing(desk))
    page.queue(max_size=desk.limits.queue, default_concurrency_limit=1)
    return page


def facts_line(model: Model) -> str:
    """Returns what a model is in a few words."""
    info = model.info
    height, width = info.picture[1:]
    takes = "prompts" if info.text else f"{info.classes} classes" if info.classes else "no conditions"
    return f"{info.family}, {width} x {height}, {takes}"


def _begin_with(values: dict[Any, Any]) -> None:
    """Gives components the values of the first model, so that they are right before the page has asked for them."""
    for part, value in values.items():
        settings = value if isinstance(value, dict) else {"value": value}
        for name, what in settings.items():
            if name == "choices":
                what = [(one, one) if isinstance(one, str) else one for one in what]
            if name != "__type__":
                setattr(part, name, what)


def _closing(desk: Desk) -> Callable[[gr.Request], None]:
    def close(request: gr.Request) -> None:
        desk.close_session(request.session_hash)

    return close


def launch(
    page: gr.Blocks, desk: Desk, host: str = "127.0.0.1", port: int | None = None, *, share: bool = False
) -> str:
    """Starts the server in a thread of its own, and returns the address of the page.

    Args:
        page: from ``build``.
        desk: its server.
        host, port: where it listens; by default the first free port from 7860.
        share: whether Gradio makes a public address.

    Raises:
        OSError: the port is taken.
        DDIMError: Gradio's service gives no public address.
    """
    with redirect_stdout(StringIO()):  # Gradio prints why there is no public address
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            allowed_paths=sample_folders(),
            max_file_size=desk.limits.max_megabytes * 2**20,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            _frontend=False,  # else Gradio gives up where its own page takes more than three seconds, on a busy machine
            state_session_capacity=200,
            theme=theme(),
            css=style(),
            app_kwargs={
                "middleware": [
                    Middleware(SecurityHeaders),
                    Middleware(TrustedHostMiddleware, allowed_hosts=hosts(host, share), www_redirect=False),
                ],
                **dict.fromkeys(NO_PAGES),
            },
        )
    if share and not public:
        page.close(verbose=False)
        raise DDIMError(
            "there is no public address, because Gradio's service does not answer; look at the connection to the "
            "internet, or leave it out.",
            parameter="share",
        )
    return public or local
