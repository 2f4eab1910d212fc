"""The log on a real Postgres."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from orrery_events.catalog.route import RouteRemoved, RouteSet
from orrery_events.catalog.server import Ready
from orrery_events.catalog.user import UserCreated, UserDeleted, UserUpdated, user_stream
from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.ids import uuid7
from orrery_events.log import (
    EventLog,
    Lease,
    LeaseLost,
    create_pool,
    ensure_partitions,
    expire_instances,
    live_instances,
)
from orrery_events.log.reader import CHUNK, LATEST_SQL
from orrery_runtime.migrate import ES, upgrade
from tests.support.backbone import PostgresServer
from tests.support.wait import eventually


@pytest.fixture
async def url(postgres: PostgresServer) -> str:
    url = await postgres.create_database(migrated=False)
    assert await upgrade(url, [ES]) == ["es"]
    return url


@asynccontextmanager
async def opened(url: str, producer: str = "test") -> AsyncIterator[EventLog]:
    pool = await create_pool(url, application_name="test")
    log = EventLog(pool, producer=producer)
    await log.start()
    try:
        yield log
    finally:
        await log.close()
        await pool.close()


@pytest.fixture
async def log(url: str) -> AsyncIterator[EventLog]:
    async with opened(url) as log:
        yield log


def user(name: str, *, admin: bool = False) -> UserCreated:
    return UserCreated(user_id=f"id-{name}", name=name, admin=admin)


async def test_append_and_read_back(log: EventLog) -> None:
    first = await log.append(user_stream("ada"), [user("ada")], expected_version=0, actor="service:test")
    assert (first.first_position, first.last_position, first.stream_version, first.duplicate) == (1, 1, 1, False)
    updated = UserUpdated(user_id="id-ada", name="ada", admin=True)
    second = await log.append(user_stream("ada"), [updated], expected_version=1)
    assert second.stream_version == 2

    rows = await log.read_stream(user_stream("ada"))
    assert [r.event() for r in rows] == [user("ada"), updated]
    assert rows[0].meta.actor == "service:test"
    assert rows[0].meta.producer == "test"
    assert await log.read_all(after_position=1) == rows[1:]
    assert await log.read_category("user", after_seq=1) == rows[1:]
    head = await log.head()
    assert (head.position, head.seqs(), head.epoch) == (2, {"user": 2}, 1)


async def test_one_command_spans_categories_atomically(log: EventLog) -> None:
    ready = Ready(server_id="s", user_id="u", user_name="ada", generation=1, target="http://127.0.0.1:1")
    route = RouteSet(route_id="r", prefix="/user/ada/", target="http://127.0.0.1:1")
    done = await log.append("server-s", [ready, route], expected_version=0)
    assert done.last_position - done.first_position == 1
    rows = await log.read_all(after_position=0)
    assert [(r.category, r.category_seq, r.stream_version) for r in rows] == [("server", 1, 1), ("route", 1, 2)]


async def test_one_of_many_wins_an_expected_version(log: EventLog) -> None:
    outcomes = await asyncio.gather(
        *(log.append("user-x", [user(f"u{i}")], expected_version=0) for i in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(o, BaseException) for o in outcomes) == 1
    conflicts = [o for o in outcomes if isinstance(o, Conflict)]
    assert len(conflicts) == 49
    assert {c.current_version for c in conflicts} == {1}
    assert (await log.head()).position == 1


async def test_the_same_command_id_appends_once(url: str, log: EventLog) -> None:
    command_id = uuid7()
    assert await log.find_command(command_id) is None
    first = await log.append("user-x", [user("x")], command_id=command_id)
    found = await log.find_command(command_id)
    assert found is not None
    assert (found.first_position, found.last_position, found.duplicate) == (1, 1, True)
    again = await log.append("user-x", [user("x")], command_id=command_id)
    assert (again.first_position, again.duplicate) == (first.first_position, True)
    async with opened(url, "other") as other:
        elsewhere = await other.append("user-x", [user("x")], command_id=command_id, expected_version=0)
        assert (elsewhere.first_position, elsewhere.duplicate) == (first.first_position, True)
    both = await asyncio.gather(*(log.append("user-y", [user("y")], command_id=(c := command_id)) for _ in range(3)))
    assert {b.first_position for b in both} == {1}, c
    assert (await log.head()).position == 1


async def audit(log: EventLog) -> list[int]:
    """Reads everything and asserts that all numbers are gapless and unique; returns the positions."""
    rows = [r async for r in all_rows(log)]
    assert [r.position for r in rows] == list(range(1, len(rows) + 1))
    for key, number in (("category", "category_seq"), ("stream_id", "stream_version")):
        seen: dict[str, int] = {}
        for row in rows:
            group = getattr(row, key)
            assert getattr(row, number) == seen.get(group, 0) + 1, (row, key)
            seen[group] = getattr(row, number)
    assert len({r.event_id for r in rows}) == len(rows)
    head = await log.head()
    assert head.position == len(rows)
    return [r.position for r in rows]


async def all_rows(log: EventLog):  # type: ignore[no-untyped-def]
    position = 0
    while rows := await log.read_all(after_position=position):
        for row in rows:
            yield row
        position = rows[-1].position


@pytest.mark.invariant(1)
async def test_positions_are_gapless_whatever_happens(own_postgres: PostgresServer) -> None:
    """Four appenders, conflicts, duplicates, cancelled callers, and Postgres killed in the middle."""
    url = await own_postgres.create_database(migrated=False)
    await upgrade(url, [ES])
    acknowledged: set[int] = set()

    async def writer(number: int, log: EventLog, stop: asyncio.Event) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            stream = f"user-{count % 7}" if count % 3 == 0 else f"user-{number}-{count}"
            expected = 0 if count % 5 == 0 else None
            try:
                done = await log.append(stream, [user(f"{number}-{count}"), user("b")], expected_version=expected)
            except (Conflict, LogUnavailable):
                continue
            acknowledged.update(range(done.first_position, done.last_position + 1))

    async with opened(url, "a") as a, opened(url, "b") as b:
        stop = asyncio.Event()
        writers = [asyncio.create_task(writer(i, log, stop)) for i, log in enumerate((a, a, b, b))]
        await eventually(lambda: len(acknowledged) >= 200)
        await own_postgres.kill()
        before = len(acknowledged)
        await own_postgres.restart()
        await eventually(lambda: len(acknowledged) >= before + 200, timeout_s=20)
        stop.set()
        await asyncio.gather(*writers)
        positions = set(await audit(a))
        assert acknowledged <= positions, "an acknowledged append is in the log"


@pytest.mark.invariant(1)
async def test_events_cannot_be_changed(url: str, log: EventLog) -> None:
    await log.append("user-x", [user("x")])
    connection = await asyncpg.connect(url)
    try:
        for statement in ("UPDATE es.events SET type = 'x'", "DELETE FROM es.events", "TRUNCATE es.events"):
            with pytest.raises(asyncpg.RestrictViolationError, match="immutable"):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_refused_command_does_not_take_its_batch_with_it(log: EventLog) -> None:
    outcomes = await asyncio.gather(
        log.append("user-\x00", [user("bad")]),
        *(log.append(f"user-{i}", [user(f"u{i}")]) for i in range(5)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], asyncpg.PostgresError)
    assert not any(isinstance(o, BaseException) for o in outcomes[1:])
    await audit(log)


async def test_latest_is_the_last_event_of_every_key_that_is_not_gone(log: EventLog) -> None:
    await log.append("user-a", [user("a"), UserUpdated(user_id="id-a", name="a2")])
    await log.append("user-b", [user("b"), UserDeleted(user_id="id-b", name="b")])
    await log.append("server-s", [RouteSet(route_id="r", prefix="/x/", target="http://127.0.0.1:1")])
    await log.append("server-s", [RouteRemoved(route_id="r", prefix="/x/")])
    async with log.snapshot(["user", "route"]) as snapshot:
        assert [r.event() async for r in snapshot.latest()] == [UserUpdated(user_id="id-a", name="a2")]
        assert [r.position async for r in snapshot.events()] == [1, 2, 3, 4, 5, 6]


async def test_what_is_latest_is_read_without_the_rest_of_the_log(log: EventLog) -> None:
    """However long the log is: one look-up for each key that is alive."""
    alive, times = 20, 100
    for _ in range(times):
        await log.append("users", [user(str(number)) for number in range(alive)])
    for analyse in (False, True):
        if analyse:
            await log.pool.execute("ANALYZE es.events, es.latest")
        async with log.snapshot(["user"]) as snapshot:
            assert len([r async for r in snapshot.latest()]) == alive
            # In the same transaction, and therefore planned in the same way.
            plan = await snapshot._connection.fetch(f"EXPLAIN (ANALYZE, COSTS off, TIMING off) {LATEST_SQL}", ["user"])
        text = "\n".join(row[0] for row in plan)
        found = re.findall(r"Scan using events_p0_pkey .*rows=(\S+) loops=(\d+)", text)
        assert [(float(rows), int(loops)) for rows, loops in found] == [(1, alive)], text


async def test_a_snapshot_may_be_left_in_the_middle(log: EventLog) -> None:
    """While Postgres is asked for the next rows already."""
    count = 3 * CHUNK
    for start in range(0, count, 500):
        await log.append("users", [user(str(number)) for number in range(start, start + 500)])
    for _ in range(3):
        async with log.snapshot(["user"]) as snapshot:
            async for recorded in snapshot.latest():
                assert recorded.position == 1
                break

    async def fails() -> None:
        async with log.snapshot(["user"]) as snapshot:
            async for _ in snapshot.events():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    async with log.snapshot(["user"]) as snapshot:
        assert [r.position async for r in snapshot.latest()] == list(range(1, count + 1))


async def test_a_snapshot_stands_still(url: str, log: EventLog) -> None:
    await log.append("user-a", [user("a")])
    async with opened(url) as reader, reader.snapshot(["user"]) as snapshot:
        await log.append("user-b", [user("b")])
        assert snapshot.head.position == 1
        assert [r.position async for r in snapshot.latest()] == [1]


async def test_an_append_reads_no_table_as_a_whole(url: str, log: EventLog) -> None:
    """A plan is made while the tables are empty. Read whole, each append would take longer than the last."""
    count = 600
    for number in range(count):
        await log.append(f"user-{number}", [user(str(number))])
    connection = await asyncpg.connect(url)

    async def counted() -> dict[str, int]:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        rows = await connection.fetch(
            "SELECT relname, seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE schemaname = 'es'"
        )
        looked_up = {row["relname"]: row["idx_scan"] for row in rows}
        assert min(looked_up["stream_head"], looked_up["command_dedup"]) >= count, looked_up
        return {row["relname"]: row["seq_tup_read"] for row in rows}

    try:
        read = await eventually(counted, timeout_s=20)
        assert max(read.values()) < count, read
    finally:
        await connection.close()


async def test_partitions_are_made_ahead_and_at_need(url: str, log: EventLog) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("UPDATE es.log_head SET position = 9999999")
        done = await log.append("user-a", [user("a"), user("b"), user("c")])
        assert done.last_position == 10_000_002
        await connection.execute("UPDATE es.log_head SET position = 19500000")
        await ensure_partitions(log.pool)
        assert await connection.fetchval("SELECT partitioned_to FROM es.log_head") == 30_000_000
    finally:
        await connection.close()


async def test_without_postgres_there_is_a_clear_error(own_postgres: PostgresServer) -> None:
    url = await own_postgres.create_database(migrated=False)
    await upgrade(url, [ES])
    async with opened(url) as log:
        await log.append("user-a", [user("a")])
        await own_postgres.kill()
        with pytest.raises(LogUnavailable, match="retry"):
            await log.read_all(after_position=0)
        with pytest.raises(LogUnavailable, match="retry"):
            await log.append("user-b", [user("b")])
        await own_postgres.restart()
        await log.append("user-c", [user("c")])
        await audit(log)


async def test_a_lease_belongs_to_the_last_process_in_the_slot(log: EventLog) -> None:
    def lease(instance_id: str) -> Lease:
        return Lease(log, log.pool, service="api", slot="api-1", instance_id=instance_id, url="http://127.0.0.1:1")

    old, new = lease("old"), lease("new")
    await old.acquire()
    assert old.fresh()
    await new.acquire()
    with pytest.raises(LeaseLost):
        await old.refresh()
    assert [row.instance_id for row in await live_instances(log.pool, "api")] == ["new"]
    await old.release()
    assert [r.type for r in await log.read_all(after_position=0)] == ["instance.started"] * 2, (
        "the old process must not declare its successor stopped"
    )
    await new.drain()
    await new.release()
    assert await live_instances(log.pool) == []


async def test_a_lease_that_ran_out_is_declared_lost_once(log: EventLog) -> None:
    lease = Lease(log, log.pool, service="spawner", slot="spawner-1", instance_id="gone")
    await lease.acquire()
    await log.pool.execute("UPDATE es.instances SET expires_at = now() - interval '1 second'")
    assert await live_instances(log.pool) == []
    assert await expire_instances(log, log.pool) == ["gone"]
    assert await expire_instances(log, log.pool) == []
    assert [r.type for r in await log.read_all(after_position=0)] == ["instance.started", "instance.lost"]
    with pytest.raises(LeaseLost):
        await lease.refresh()


async def test_migrations_may_run_twice_and_at_once(empty_database_url: str) -> None:
    changed = await asyncio.gather(*(upgrade(empty_database_url, [ES]) for _ in range(3)))
    assert sorted(changed) == [[], [], ["es"]]
    assert await upgrade(empty_database_url, [ES]) == []
