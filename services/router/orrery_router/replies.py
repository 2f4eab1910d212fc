"""What the router itself answers: pages for people, JSON for programs, ways to sign in or to start a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from orrery_events.ids import new_id
from orrery_runtime.pages import SECURITY_HEADERS, error_page

from .dataplane.head import SAFE, Head, response_bytes
from .domain import Path

if TYPE_CHECKING:
    from .templates import Templates

RETRY_AFTER_S: Final = b"2"
REASONS: Final = {
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    424: b"Failed Dependency",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class Reply(msgspec.Struct, frozen=True):
    """Answered here."""

    status: int
    content: bytes
    close: bool = False


class Later(msgspec.Struct, frozen=True):
    """Answered here, with what must be fetched first."""

    fetch: Callable[[], Awaitable[Reply]]
    """Never raises."""


class Replies:
    """Every answer, below one base URL."""

    def __init__(self, base_url: str, templates: Templates | None = None) -> None:
        """`templates`: an admin's own error pages."""
        self._base_url, self._templates = base_url, templates

    def sign_in(self, head: Head, path: Path, request_id: str) -> Reply:
        if head.method in (b"GET", b"HEAD") and not head.upgrade and not path.text.startswith("/hub/api"):
            target = quote(head.target.decode("latin-1"), safe="")
            return self.redirect(f"{self._base_url}hub/login?next={target}".encode(), request_id)
        return self.page(head, 403, "Missing or invalid credentials.", request_id, json=True)

    def stopped(self, head: Head, owner: str, server: str, request_id: str) -> Reply:
        where = f"{owner}/{server}" if server else owner
        if head.method not in (b"GET", b"HEAD") or wants_json(head):
            message = f"JupyterHub server no longer running at {self._base_url}user/{where}/"
            return self.page(head, 424, message, request_id, json=True)
        return self.page(
            head, 424, "It was stopped, or it ended by itself. Nothing that was saved is lost.", request_id,
            title="This server does not run", action=("Start it", f"{self._base_url}hub/spawn/{quote(where)}"),
        )  # fmt: skip

    def not_found(self, head: Head, request_id: str) -> Reply:
        home = ("Your servers", f"{self._base_url}hub/home")
        return self.page(head, 404, "Nothing is served at this address.", request_id, action=home)

    def unavailable(self, head: Head, request_id: str, message: str) -> Reply:
        return self.page(head, 503, f"{message} Try again in a moment.", request_id)

    def redirect(self, location: bytes, request_id: str) -> Reply:
        headers = [
            (b"Location", location),
            (b"Cache-Control", b"no-store"),
            (b"X-Request-Id", request_id.encode()),
            (b"Content-Length", b"0"),
        ]
        return Reply(302, response_bytes(302, b"Found", headers))

    def page(
        self, head: Head, status: int, message: str, request_id: str = "", *, title: str = "",
        action: tuple[str, str] = ("", ""), json: bool = False, close: bool = False,
    ) -> Reply:  # fmt: skip
        """An error, as a page for people or as JSON for programs."""
        request_id = request_id or new_id()
        security: Mapping[str, str] = SECURITY_HEADERS
        if json or wants_json(head):
            body = msgspec.json.encode({"status": status, "message": message, "request_id": request_id})
            kind = b"application/json"
        else:
            html, security = self._html(status, message, title, action, request_id)
            body, kind = html.encode(), b"text/html; charset=utf-8"
        headers = [(name.encode(), value.encode()) for name, value in security.items()]
        headers += [
            (b"Content-Type", kind),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            (b"X-Request-Id", request_id.encode()),
        ]
        if status in (429, 503):
            headers.append((b"Retry-After", RETRY_AFTER_S))
        if close:
            headers.append((b"Connection", b"close"))
        content = response_bytes(status, REASONS.get(status, b"Error"), headers)
        return Reply(status, content if head.method == b"HEAD" else content + body, close)

    def _html(
        self, status: int, message: str, title: str, action: tuple[str, str], request_id: str
    ) -> tuple[str, Mapping[str, str]]:
        """The page, and the headers that protect it."""
        told = {"title": title, "action_text": action[0], "action_url": action[1], "request_id": request_id}
        if self._templates is not None:
            html = self._templates.page(status, message, base_url=self._base_url, **told)
            if html is not None:
                return html, self._templates.headers
        return error_page(status, message, **told), SECURITY_HEADERS


def too_large(bytes_max: int) -> str:
    return f"The request's body is larger than {bytes_max} bytes, which is the most that is taken here."


def wants_json(head: Head) -> bool:
    accept = head.get(b"accept")
    if b"text/html" in accept:
        return False
    return b"application/json" in accept or b"/api" in head.target or head.method not in SAFE
