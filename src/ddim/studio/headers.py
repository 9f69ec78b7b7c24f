"""HTTP headers of the page: a browser loads nothing from other servers, and shows it in no other site's frame.

A local page answers to the names of this machine only. Another site could otherwise give its own name this machine's
address, so that a browser takes the page for a part of that site (DNS rebinding).
"""

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "::1")
"""The names of this machine that no other machine can reach."""
Message = MutableMapping[str, Any]
POLICY = (
    "default-src 'self' blob: data:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)


def hosts(host: str, share: bool) -> list[str]:
    """Returns the names that a request may ask for: those of this machine, or ``*`` if others reach the page by any.

    Args:
        host: the address at which the page listens.
        share: whether it has a public address.
    """
    try:
        everywhere = ip_address(host).is_unspecified
    except ValueError:  # a name
        everywhere = False
    if share or everywhere:
        return ["*"]
    return [f"[{name}]" if ":" in name else name for name in dict.fromkeys([*LOCAL, host.lower()])]


class SecurityHeaders:
    """An ASGI middleware that adds the headers to every answer.

    Args:
        app: the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answers a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                headers = [*message.get("headers", []), *((k.encode(), v.encode()) for k, v in ours.items())]
                message = {**message, "headers": [*headers, (b"x-content-type-options", b"nosniff")]}
            await send(message)

        await self.app(scope, receive, with_headers)
