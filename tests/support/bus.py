"""The log, the bus and the relay of one test, without the services around them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg

from orrery_events.bus import Bus
from orrery_events.catalog.auth import SessionRevoked, session_stream
from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.log import Appended, EventLog, create_pool
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.relay import Relay
from orrery_events.stream import find_stream
from orrery_events.tail import Tail
from orrery_events.tasks import end_tasks
from tests.support.wait import eventually


class Applied:
    """A projection that remembers everything it was given."""

    def __init__(self) -> None:
        self.routes: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.positions: list[int] = []

    def apply(self, recorded: Recorded, event: Event) -> None:
        self.positions.append(recorded.position)
        match event:
            case RouteSet():
                self.routes[event.route_id] = event.target
            case RouteRemoved():
                self.routes.pop(event.route_id, None)
            case SessionRevoked():
                self.revoked.add(event.session_id)

    def digest(self) -> str:
        return hashlib.sha256(repr((sorted(self.routes.items()), sorted(self.revoked))).encode()).hexdigest()


class Backbone:
    """A process's pool, log and bus, and what a test starts on them."""

    def __init__(self, database_url: str, pool: asyncpg.Pool, bus: Bus, log: EventLog, stack: AsyncExitStack) -> None:
        self.database_url = database_url
        self.pool = pool
        self.bus = bus
        self.events = log
        self.log = log
        self._stack = stack
        self._count = 0

    async def stream_created(self) -> str:
        """When the stream was made: another time is another stream. Empty: there is none."""
        assert self.bus.client is not None
        info = await find_stream(self.bus.client.jetstream())
        return str(info.created) if info else ""

    async def background(self, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def main() -> None:
            await run()

        task = asyncio.create_task(main())

        self._stack.push_async_callback(end_tasks, task)
        return task

    async def relay(self, name: str = "relay-a") -> Relay:
        relay = Relay(self.log, self.pool, self.bus, database_url=self.database_url, name=name)
        await self.background(relay.run)
        return relay

    async def tail(self, name: str = "test", categories: tuple[str, ...] = ("auth", "route")) -> Tail[Applied]:
        tail = Tail(self.log, self.bus, Applied, categories=categories, name=name)
        await tail.start()
        self._stack.push_async_callback(tail.stop)
        return tail

    async def set_route(self, target: str = "http://127.0.0.1:1", number: int | None = None) -> Appended:
        if number is None:
            self._count += 1
            number = self._count
        prefix = f"/user/u{number}/"
        event = RouteSet(route_id=route_id_of(prefix), prefix=prefix, target=target)
        return await self.log.append(f"route-{number}", [event])

    async def revoke(self, session_id: str = "s1") -> Appended:
        event = SessionRevoked(session_id=session_id, user_id="u", issued_at=1.0, expires_at=2.0)
        return await self.log.append(session_stream(session_id), [event])

    async def stream_state(self) -> tuple[int, int]:
        """First and last sequence of the stream."""
        assert self.bus.client is not None
        state = (await self.bus.client.jetstream().stream_info("ORRERY_EVENTS")).state
        return state.first_seq, state.last_seq

    async def relayed(self, position: int, *, timeout_s: float = 20.0) -> None:
        """Waits until the stream ends exactly at the position."""

        async def there() -> bool:
            try:
                return (await self.stream_state())[1] == position
            except Exception:  # noqa: BLE001 (NATS may be on its way)
                return False

        await eventually(there, timeout_s=timeout_s)

    async def expected(self, categories: tuple[str, ...] = ("auth", "route")) -> Applied:
        """The fold of the whole log."""
        state = Applied()
        position = 0
        while rows := await self.log.read_all(after_position=position):
            for row in rows:
                if row.category in categories:
                    state.apply(row, row.event())
            position = rows[-1].position
        return state

    async def assert_stream_equals_log(self) -> int:
        """Every message at sequence P is the row at position P, byte for byte. Returns how many were compared."""
        assert self.bus.client is not None
        js = self.bus.client.jetstream()
        first, last = await self.stream_state()
        rows = {row.position: row for row in await self.log.read_all(after_position=first - 1, limit=10_000)}
        for sequence in range(first, last + 1):
            message = await js.get_msg("ORRERY_EVENTS", sequence)
            row = rows[sequence]
            assert message.headers is not None
            assert message.headers["ce-id"] == row.event_id
            assert int(message.headers["ce-sequence"]) == sequence
            assert message.data == row.data
        return last - first + 1


@asynccontextmanager
async def backbone(database_url: str, nats_url: str, *, name: str = "test") -> AsyncIterator[Backbone]:
    """Pool, bus and log; NATS need not be there."""
    async with AsyncExitStack() as stack:
        pool = await create_pool(database_url, application_name=name, max_size=5)
        stack.push_async_callback(pool.close)
        bus = Bus(nats_url, name=name)
        stack.push_async_callback(bus.stop)
        await bus.start()
        log = EventLog(pool, producer=f"test/{name}", nudge=bus.nudge)
        stack.push_async_callback(log.close)
        await log.start()
        yield Backbone(database_url, pool, bus, log, stack)
