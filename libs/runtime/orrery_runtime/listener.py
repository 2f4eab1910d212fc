"""An aiohttp listener that answers an oversized head with 431, and malformed ones without a traceback in the log."""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from . import pages

KEEPALIVE_TIMEOUT_S = 75.0
LINE_BYTES_MAX = 8190
"""Longest request line and longest header field."""
TOO_MANY_HEADERS = "Too many headers received"

_log = structlog.get_logger("orrery.http")


class _Handler(RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        oversized = isinstance(exc, LineTooLong) or TOO_MANY_HEADERS in str(exc.message)
        code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if oversized else HTTPStatus.BAD_REQUEST
        _log.debug("http_head_refused", status=int(code), reason=type(exc).__name__)
        text = (
            f"The request's head has a line longer than {LINE_BYTES_MAX} bytes or too many fields: "
            "delete this site's cookies and try again."
            if oversized
            else "The request is not valid HTTP."
        )
        response = web.json_response(
            {"status": int(code), "message": text}, status=code, headers={**pages.SECURITY_HEADERS, "Server": "orrery"}
        )
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An AppRunner with these handlers."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        return server


async def listen(
    app: web.Application, host: str, port: int, *, shutdown_timeout_s: float, share_port: bool = False,
    socket_path: str = "", tls: ssl.SSLContext | None = None,
) -> web.AppRunner:  # fmt: skip
    """Starts listening; `cleanup()` of what is returned stops: no new connections, then waits for requests under way.

    `host`: all interfaces when empty. `share_port`: with other processes of this user that do so, too. Raises OSError
    when the port is taken. `socket_path`: of a unix socket in place of both. `tls`: HTTPS.
    """
    runner = Runner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=shutdown_timeout_s,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=LINE_BYTES_MAX,
    )
    await runner.setup()
    try:
        if socket_path:
            await web.UnixSite(runner, socket_path, ssl_context=tls).start()
        else:
            await web.TCPSite(runner, host or None, port, ssl_context=tls, reuse_port=share_port or None).start()
    except OSError:
        await runner.cleanup()
        raise
    await asyncio.sleep(0)
    return runner
