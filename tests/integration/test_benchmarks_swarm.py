"""The loads and the upstreams of the router's benchmark understand each other, and whatever a proxy does in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.router.frames import KEY
from benchmarks.router.sinks import ANSWER, Echo, Uploads
from benchmarks.router.swarm import Job, Report, Swarm
from benchmarks.router.upstreams import MEBIBYTE, SWALLOWED
from tests.support.routers import answering, head_of

UPGRADE = f"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: {KEY.decode()}\r\n\r\n"
UPLOAD = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MEBIBYTE}\r\n\r\n"
CHUNKED = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n", SWALLOWED, b"\r\n0\r\n\r\n")


@asynccontextmanager
async def sink(kind: type[Echo] | type[Uploads]) -> AsyncIterator[int]:
    """Its port."""
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def done_by(kind: str, head: str, port: int, connections: int = 2) -> Report:
    swarm = Swarm(Job(kind=kind, port=port, head=head, connections=connections, seconds=0.2, pids=[]))
    await swarm.open()
    report = await swarm.talk()
    for conversation in swarm.conversations:
        conversation.transport.abort()
    await asyncio.sleep(0)
    return report


async def test_every_message_comes_back() -> None:
    async with sink(Echo) as port:
        assert (await done_by("websocket", UPGRADE, port, connections=100)).done > 100


async def test_an_upload_is_over_when_it_was_answered() -> None:
    async with sink(Uploads) as port:
        assert (await done_by("upload", UPLOAD, port)).done > 2


@pytest.mark.parametrize(
    "parts", [(ANSWER[:-1], ANSWER[-1:]), (ANSWER[:20], ANSWER[20:]), CHUNKED], ids=["body", "head", "chunks"]
)
async def test_an_answer_may_come_in_parts(parts: tuple[bytes, ...]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            await reader.readexactly(MEBIBYTE)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    async with answering(handle) as url:
        assert (await done_by("upload", UPLOAD, int(url.rpartition(":")[2]))).done > 2


async def test_an_answer_that_is_no_success_ends_the_run() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with answering(handle) as url:
        with pytest.raises(RuntimeError, match="were lost"):
            await done_by("upload", UPLOAD, int(url.rpartition(":")[2]))
