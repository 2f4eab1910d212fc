"""What `orrery proxy` itself answers: its health, and errors: from `--error-target`, `--error-path` or its own page."""

from __future__ import annotations

import ssl
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

import aiohttp
import structlog
from yarl import URL

from orrery_router.dataplane.head import Head, response_bytes
from orrery_router.dataplane.tls import Reloaded
from orrery_router.replies import Later, Reply

from .options import Options

ERROR_TARGET_TIMEOUT_S: Final = 10.0
ERROR_PAGE_BYTES_MAX: Final = 1 << 20
RELAYED: Final = ("Content-Type", "Content-Encoding")
TITLES: Final = {404: "404: Not Found", 503: "503: Proxy Target Missing"}
TEXTS: Final = {404: "No service is registered at this URL", 503: "The upstream service is unavailable"}
HEALTHY: Final = b'{"status":"OK"}'
PAGE: Final = """<!doctype html>
<html>
  <head>
    <meta charset="utf-8" />
    <title>{title}</title>
  </head>
  <body>
    <h1>{title}</h1>
    <p>{text}</p>
  </body>
</html>
"""

_log = structlog.get_logger("orrery.proxy")


class Pages:
    """Every answer of our own. Has the methods of `Replies` that the data plane calls."""

    def __init__(self, options: Options, http: aiohttp.ClientSession | None) -> None:
        """`http`: for `--error-target`."""
        self._error_target = options.error_target
        self._folder = Path(options.error_path) if options.error_path else None
        self._http = http

    def healthy(self, head: Head) -> Reply:
        return _reply(head, 200, HEALTHY, b"application/json")

    def not_found(self, head: Head) -> Reply | Later:
        return self._error(head, 404)

    def unavailable(self, head: Head, _request_id: str, _message: str) -> Reply | Later:
        return self._error(head, 503)

    def page(
        self, head: Head, status: int, message: str, _request_id: str = "", *, close: bool = False
    ) -> Reply | Later:
        """`close`: a request that was refused; its answer is given at once."""
        if status in (502, 504):
            return self._error(head, 503)
        if close or status < 500:
            return _reply(head, status, _own_page(status, message), b"text/html", close=close)
        return self._error(head, status)

    def _error(self, head: Head, status: int) -> Reply | Later:
        if head.upgrade:
            return Reply(status, response_bytes(status, _phrase(status), [(b"Content-Length", b"0")]), close=True)
        if self._error_target:
            return Later(lambda: self._fetch(head, status))
        return _reply(head, status, self._from_folder(status) or _own_page(status), b"text/html")

    def _from_folder(self, status: int) -> bytes:
        if self._folder is None:
            return b""
        for name in (f"{status}.html", "error.html"):
            try:
                return (self._folder / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("error_page_unreadable", file=name, reason=error.strerror)
        return b""

    async def _fetch(self, head: Head, status: int) -> Reply:
        """The page that the hub makes of it; a plain word where it does not."""
        assert self._http is not None  # noqa: S101 (there is an error target)
        asked_for = quote(head.target, safe="")
        url = URL(f"{self._error_target}{status}?url={asked_for}", encoded=True)
        try:
            async with self._http.get(url, allow_redirects=False) as answer:
                body = await answer.content.read(ERROR_PAGE_BYTES_MAX + 1)
                while body and not answer.content.at_eof() and len(body) <= ERROR_PAGE_BYTES_MAX:
                    body += await answer.content.read(ERROR_PAGE_BYTES_MAX + 1 - len(body))
                headers = [(n.lower().encode(), answer.headers[n].encode()) for n in RELAYED if n in answer.headers]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.warning("error_target_failed", status=status, reason=str(error) or type(error).__name__)
            return _reply(head, status, _phrase(status), b"")
        if len(body) > ERROR_PAGE_BYTES_MAX:
            _log.warning("error_target_failed", status=status, reason="its page is too large")
            return _reply(head, status, _phrase(status), b"")
        return _reply(head, status, body, b"", headers)


def error_client(tls: Reloaded[ssl.SSLContext]) -> aiohttp.ClientSession:
    """What error pages are fetched with. Bodies stay as they are, compressed or not."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ERROR_TARGET_TIMEOUT_S),
        connector=aiohttp.TCPConnector(ssl=tls.value, limit=100),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _own_page(status: int, text: str = "") -> bytes:
    title = TITLES.get(status, "Proxy Error")
    return PAGE.format(title=title, text=text or TEXTS.get(status, "")).encode()


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def _reply(
    head: Head, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None, *,
    close: bool = False,
) -> Reply:  # fmt: skip
    headers = [*(headers or []), (b"Content-Length", b"%d" % len(body))]
    if kind:
        headers.insert(0, (b"Content-Type", kind))
    if close:
        headers.append((b"Connection", b"close"))
    content = response_bytes(status, _phrase(status), headers)
    return Reply(status, content if head.method == b"HEAD" else content + body, close)
