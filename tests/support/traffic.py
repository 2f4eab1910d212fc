"""Requests and answers on wires that are bytes, one piece at a time, to see which way they take."""

from __future__ import annotations

import time
from typing import Any

from orrery_events.catalog.auth import KeyAnnounced
from orrery_events.catalog.route import RouteSet
from orrery_events.catalog.user import UserCreated
from orrery_events.principal import SESSION_COOKIE
from orrery_router.dataplane.arrival import Arrival
from orrery_router.dataplane.connection import Client
from orrery_router.dataplane.upstream import Upstream
from orrery_router.domain import route_of
from orrery_runtime.identity import Claims, sign
from orrery_runtime.jws import SigningKey
from tests.support.inprocess import ARRIVAL, Wire, plane

GET = b"GET /user/ada/x HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Traffic:
    """One client's connection and those to servers, after the same request and its answer a few times."""

    def __init__(self, *, answer: bytes = OK, request: bytes = GET, arrival: Arrival = ARRIVAL, warm: int = 3) -> None:
        self.plane, self.pool = plane(own_state=True)
        self.used: list[str] = []
        self.plane.activity = self
        self.client, self.wire = self.connect(arrival)
        for _ in range(warm):
            self.ask(request)
            self.say(answer)
        self.wire.sent = b""
        if warm:
            self.server_wire.sent = b""

    def connect(self, arrival: Arrival = ARRIVAL) -> tuple[Client, Wire]:
        client, wire = Client(self.plane, arrival, None), Wire()
        client.connection_made(wire)
        return client, wire

    def touch(self, server_id: str) -> None:
        self.used.append(server_id)

    @property
    def server(self) -> Upstream:
        return self.pool.opened[-1][0]

    @property
    def server_wire(self) -> Wire:
        return self.pool.opened[-1][1]

    def ask(self, request: bytes = GET) -> None:
        self.client.data_received(request)

    def say(self, answer: bytes) -> None:
        self.server.data_received(answer)

    def is_short(self) -> bool:
        """A request is under way the short way."""
        return self.client._under_way is not None

    @property
    def state(self) -> Any:
        return self.plane.gateway._state()  # type: ignore[attr-defined]

    def route(self, name: str = "ada", **more: Any) -> None:
        """Sets somebody's route anew."""
        facts: dict[str, Any] = {
            "route_id": name, "prefix": f"/user/{name}/", "target": "http://127.0.0.1:9", "policy": "public",
            "owner_id": name, "owner_name": name, "server_id": name, "server_name": "", "generation": 1,
            "secret_header": "Authorization",
        }  # fmt: skip
        self.state.table.set(route_of(RouteSet(**{**facts, **more})))

    def apply(self, event: Any) -> None:
        class Recorded:
            class meta:  # noqa: N801
                traceparent = ""

        self.state.apply(Recorded, event)

    def counted(self) -> tuple[list[int], list[int]]:
        """Requests by first digit of the status, and how many of their durations were counted."""
        tally = self.plane.tally
        return tally.requests["server"], [sum(counts) for counts in tally.buckets]


class Session(Traffic):
    """The same with somebody who signed in, and a server that is only theirs."""

    def __init__(self, *, life_s: float = 3600) -> None:
        super().__init__(warm=0)
        key = SigningKey.generate("k1")
        self.apply(KeyAnnounced(kid=key.kid, public_key=key.public_key, not_before=0.0))
        self.apply(UserCreated(user_id="ada", name="ada", admin=False, created_at=0.0))
        now = time.time()
        self.session = sign(Claims(sub="ada", jti="j1", iat=now, exp=now + life_s), key, kind="session")
        self.request = GET[:-2] + f"Cookie: {SESSION_COOKIE}={self.session}\r\n\r\n".encode()
        self.route(policy="owner")
        for _ in range(3):
            self.ask(self.request)
            self.say(OK)
        self.wire.sent = self.server_wire.sent = b""
