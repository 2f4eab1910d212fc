"""A light HTTP client: what is measured is the proxy, and a comfortable client takes longer than some of them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools


class Connection(asyncio.Protocol):
    """One request at a time; the body of the answer is thrown away."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        status, keeps = self.parser.get_status_code(), self.parser.should_keep_alive()
        self.parser = httptools.HttpResponseParser(self)
        self.closed = self.closed or not keeps
        if self.answer and not self.answer.done():
            self.answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.answer and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed before it answered"))

    async def ask(self, request: bytes) -> int:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


class Client:
    """Connections to one place, kept alive; as many as are wanted at the same time."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        assert split.hostname
        assert split.port
        self.host, self.port = split.hostname, split.port
        self.idle: deque[Connection] = deque()

    async def ask(self, request: bytes) -> int:
        """The status of the answer; OSError if there is none."""
        while self.idle and self.idle[-1].closed:
            self.idle.pop()
        if self.idle:
            connection = self.idle.pop()
        else:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
        try:
            return await connection.ask(request)
        finally:
            if connection.closed:
                connection.transport.abort()
            else:
                self.idle.append(connection)

    def close(self) -> None:
        for connection in self.idle:
            connection.transport.abort()
        self.idle.clear()
