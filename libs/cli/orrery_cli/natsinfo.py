"""One question to the embedded NATS, in its own words: importing a client library would take longer than the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote, urlsplit

from orrery_events import subjects

INBOX = "_INBOX.orrery-cli"
LINE_BYTES_MAX = 65_536


async def stream_last_sequence(url: str, *, timeout_s: float) -> int | None:
    """The last sequence of the events' stream; None when there is no stream. Raises OSError, TimeoutError and
    ValueError with a sentence."""
    answer = await request(url, f"$JS.API.STREAM.INFO.{subjects.STREAM}", timeout_s=timeout_s)
    if "error" in answer:
        return None
    return int(answer["state"]["last_seq"])


async def request(url: str, subject: str, *, timeout_s: float) -> dict[str, Any]:
    """The answer to an empty request. The first of several servers is asked."""
    parts = urlsplit(url.split(",", maxsplit=1)[0].strip())
    if parts.scheme != "nats" or not parts.hostname:
        raise ValueError("not asked: its URL is not of the form nats://…")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 4222, limit=LINE_BYTES_MAX)
        try:
            await _line(reader)  # INFO
            login = {"user": unquote(parts.username or ""), "pass": unquote(parts.password or "")}
            hello = {"verbose": False, "pedantic": False, "lang": "orrery", "version": "1", "name": "orrery-cli"}
            writer.write(b"CONNECT " + json.dumps({**hello, **login}).encode() + b"\r\n")
            writer.write(f"SUB {INBOX} 1\r\nPUB {subject} {INBOX} 0\r\n\r\n".encode())
            while True:
                verb, _, rest = (await _line(reader)).partition(" ")
                if verb == "MSG":
                    body = await reader.readexactly(int(rest.split()[-1]))
                    return dict(json.loads(body))
                if verb == "-ERR":
                    raise ValueError(f"it refused us: {rest}")
                if verb == "PING":
                    writer.write(b"PONG\r\n")
        finally:
            writer.close()


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line:
        raise OSError("it closed the connection")
    return line.decode().strip()
