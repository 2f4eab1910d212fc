"""The router's data plane without sockets, fast enough for thousands of cases: its own code, on wires that are bytes.

What goes to the upstream is read by h11, which also says what a case should have been."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Sequence
from functools import cache
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

import h11
import msgspec

from orrery_events.catalog.route import RouteSet
from orrery_events.principal import SESSION_COOKIE, TOKEN_PREFIX
from orrery_router.dataplane.arrival import Arrival, Trust
from orrery_router.dataplane.connection import Client
from orrery_router.dataplane.head import KnownHeads
from orrery_router.dataplane.limits import Limits
from orrery_router.dataplane.pool import Pool
from orrery_router.dataplane.remembered import Remembered
from orrery_router.dataplane.server import DataPlane
from orrery_router.dataplane.tls import upstream_tls
from orrery_router.dataplane.upstream import Upstream
from orrery_router.domain import route_of
from orrery_router.gateway import Gateway
from orrery_router.projections import RouterState
from orrery_router.target import Target
from orrery_runtime.config import Settings
from orrery_runtime.identity import Verifier
from orrery_runtime.secrets import Secrets

SESSION: Final = f"{SESSION_COOKIE}=a-visitor's-own"
TOKEN: Final = f"{TOKEN_PREFIX}of-a-visitor"
"""What cases put where credentials go; no upstream may see it there."""
PEER: Final = "203.0.113.9"
ARRIVAL: Final = Arrival(Trust(""), port=80)
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORBIDDEN: Final = frozenset(
    {b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"forwarded", b"x-real-ip"}
)


class Request(msgspec.Struct, frozen=True):
    """One request as h11 reads it."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class Unreadable(AssertionError):
    """What reached the upstream is no HTTP."""


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": (PEER, 1)})
        self.sent = b""
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Wired(Pool):
    """Upstream connections without a network."""

    def __init__(self) -> None:
        super().__init__(1.0, upstream_tls(_settings()))
        self.opened: list[tuple[Upstream, Wire]] = []

    def take(self, target: Target, *, fresh: bool) -> Upstream:
        return super().take(target, fresh=fresh) or self._open(target)

    async def connect(self, target: Target, timeout_s: float = 0.0) -> Upstream:  # noqa: ARG002 (nothing takes time here)
        return self._open(target)

    def _open(self, target: Target) -> Upstream:
        upstream, wire = Upstream(target, self.release, self.forget), Wire()
        upstream.connection_made(wire)
        self.opened.append((upstream, wire))
        return upstream


class Silent:
    """No activity is reported."""

    def touch(self, _server_id: str) -> None: ...


def plane(*, own_state: bool = False) -> tuple[DataPlane, Wired]:
    """A router that has seen nothing yet and knows ada's public server and bob's, to which nobody has access.

    `own_state`: what it knows is nobody else's, and may be changed."""
    made = _plane.__wrapped__() if own_state else _plane()
    made.known, made.repeats, made.answers = KnownHeads(), Remembered(), Remembered()
    made.pool = (wired := Wired())
    return made, wired


@cache
def _settings() -> Settings:
    return Settings.load(secret_key="x" * 40, head_bytes_max=4096)


@cache
def _plane() -> DataPlane:
    settings = _settings()
    bounds, state = Limits.of(settings), RouterState()
    for name, policy in (("ada", "public"), ("bob", "owner")):
        event = RouteSet(
            route_id=name, prefix=f"/user/{name}/", target="http://127.0.0.1:9", policy=policy, owner_id=name,
            owner_name=name, server_id=name, server_name="", generation=1, secret_header="Authorization",
        )  # fmt: skip
        state.table.set(route_of(event))
    gateway = Gateway(
        lambda: state, Verifier(lambda: state.identity), Secrets(settings.secret_key), base_url="/",
        public_url="", bounds=bounds, tracing=False,
    )  # fmt: skip

    async def nothing_new() -> bool:
        return True

    return DataPlane(
        gateway, Silent(), nothing_new, base_url="/", bounds=bounds,
        upstream_tls=upstream_tls(settings), trust=Trust(""),
    )  # fmt: skip


class Case:
    """One client's connection, and what became of it."""

    def __init__(self, made: tuple[DataPlane, Wired]) -> None:
        self.plane, self.pool = made
        self.pool.opened.clear()
        self.pool.close()
        self.client, self.wire = Client(self.plane, ARRIVAL, None), Wire()
        self.client.connection_made(self.wire)
        self.forwarded: list[Request] = []
        self._readers: list[tuple[h11.Connection, int]] = []

    @property
    def ended(self) -> bool:
        """The client was told that nothing more is read."""
        return self.wire.closed or self.client.lingering

    async def send(self, pieces: Sequence[bytes], answer: bytes = ANSWER) -> None:
        """Feeds the client's bytes; every whole request that comes out at the other end is answered with `answer`."""
        for piece in pieces:
            if not self.wire.closed:
                self.client.data_received(piece)
            await self._settle(answer)

    def servers_leave(self) -> None:
        """Every connection to an upstream ends."""
        for upstream, wire in self.pool.opened:
            wire.closed = True
            upstream.connection_lost(None)

    async def _settle(self, answer: bytes) -> None:
        for _ in range(40):
            await asyncio.sleep(0)
            progress = False
            for number, (upstream, wire) in enumerate(self.pool.opened):
                progress |= self._read(number, upstream, wire, answer)
            if not progress:
                return

    def _read(self, number: int, upstream: Upstream, wire: Wire, answer: bytes) -> bool:
        while len(self._readers) <= number:
            self._readers.append((h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), 0))
        reader, seen = self._readers[number]
        new, self._readers[number] = wire.sent[seen:], (reader, len(wire.sent))
        requests = read_requests(reader, new)
        self.forwarded += requests
        for _ in requests:
            if not wire.closed:
                upstream.data_received(answer)
        return bool(new)


def read_requests(reader: h11.Connection, data: bytes) -> list[Request]:
    """Whole requests in these bytes, and in those that were read before. Raises Unreadable."""
    found: list[Request] = []
    if data:
        reader.receive_data(data)
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError as error:
            raise Unreadable(f"{error}: {data[:500]!r}") from None
        if isinstance(event, h11.Request):
            reader.head, reader.body = event, b""  # type: ignore[attr-defined]
        elif isinstance(event, h11.Data):
            reader.body += event.data  # type: ignore[attr-defined]
        elif isinstance(event, h11.EndOfMessage):
            head: h11.Request = reader.head  # type: ignore[attr-defined]
            headers = [*head.headers, *event.headers]
            body: bytes = reader.body  # type: ignore[attr-defined]
            found.append(Request(head.method.decode(), head.target.decode("latin-1"), headers, body))
            if reader.their_state is not h11.DONE:
                return found
            reader.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE:
                return found
            reader.start_next_cycle()
        else:
            return found


def check_forwarded(case: Case, sent: bytes) -> None:
    """What reached the upstream is what the client may ask for, in its words, and tells nothing that it must not."""
    for request in case.forwarded:
        names = [name for name, _ in request.headers]
        assert not FORBIDDEN & set(names), request
        assert names.count(b"host") == 1
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert request.values(b"x-forwarded-for") == [PEER.encode()]
        assert len(request.values(b"authorization")) == 1
        assert SESSION.encode() not in b";".join(request.values(b"cookie")), request
        query = request.target.partition("?")[2].encode("latin-1")
        told = b" ".join([*request.values(b"authorization"), *request.values(b"referer"), query])
        assert TOKEN.encode() not in unquote_to_bytes(told), request
        path = request.target.partition("?")[0]
        for _ in range(3):
            resolved = posixpath.normpath(path.replace("\\", "/"))
            assert resolved == "/user/ada" or resolved.startswith("/user/ada/"), request.target
            path = unquote(path)
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        wanted = read_requests(reader, sent)
    except Unreadable:
        return
    asked = iter(wanted)
    for request in case.forwarded:
        # h11 reads no further where it believes that a change of protocols was asked for.
        unsure = str(reader.their_state) == "MIGHT_SWITCH_PROTOCOL"
        assert any(is_same(one, request) for one in asked) or unsure, f"{request} was not asked for in {wanted}"


def asked_of(case: Case) -> list[tuple[str, str, bytes]]:
    return [(one.method, one.target, one.body) for one in case.forwarded]


def check_alike(cases: Sequence[Case]) -> None:
    """How the bytes came makes no difference, save that an answer before the end of a request ends its connection."""
    longest = max((asked_of(case) for case in cases), key=len)
    for case in cases:
        got = asked_of(case)
        assert got == longest[: len(got)], f"{got} and {longest}"
        assert len(got) == len(longest) or case.ended


def is_same(asked: Request, forwarded: Request) -> bool:
    target = asked.target
    if target.lower().startswith(("http://", "https://")):
        target = "/" + target.partition("://")[2].partition("/")[2]
    # Tokens in a query are taken out, which is shown by the test of credentials.
    return (asked.method, target.partition("?")[0], asked.body) == (
        forwarded.method,
        forwarded.target.partition("?")[0],
        forwarded.body,
    )
