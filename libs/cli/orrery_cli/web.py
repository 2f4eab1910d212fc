"""GET, small: the few questions that the command line asks of processes on this machine, without an HTTP library."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

BODY_BYTES_MAX = 4 * 2**20


class Answer(NamedTuple):
    """Status 0: nobody answered."""

    status: int
    body: bytes = b""
    location: str = ""

    def json(self) -> dict[str, Any]:
        try:
            body = json.loads(self.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}


async def get(url: str, *, timeout_s: float = 2.0) -> Answer:
    """One GET over a connection of its own. Never raises for what the network or the server does."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            tls = _unverified() if parts.scheme == "https" else None
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if tls else 80), ssl=tls)
            try:
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                return await _answer(head, reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return Answer(0)


def _unverified() -> ssl.SSLContext:
    """A process on this machine shows the certificate of the platform's public name, not of this address."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answer(head: bytes, reader: asyncio.StreamReader) -> Answer:
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            if len(body) + size > BODY_BYTES_MAX:
                raise ValueError("too large")
            body += await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        body = await reader.readexactly(min(int(headers["content-length"]), BODY_BYTES_MAX))
    else:
        body = await reader.read(BODY_BYTES_MAX)
    return Answer(status, body, headers.get("location", ""))
