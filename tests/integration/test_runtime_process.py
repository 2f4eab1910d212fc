"""The life of a real process: how it starts, what it says when it cannot, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from orrery_events.log import EventLog, create_pool
from orrery_events.log.leases import Lease
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.wait import eventually

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"


class Service:
    """One process of tests.support.runtime_service."""

    def __init__(self, tmp_path: Path, env: dict[str, str], *, pass_fds: tuple[int, ...] = ()) -> None:
        command = ["-m", "tests.support.runtime_service"]
        if env.get("TEST_SERVICE") == "relay":
            command = ["-c", "import sys; from orrery_runtime.relay_main import main; sys.exit(main())"]
        self.log = tmp_path / f"service-{len(list(tmp_path.iterdir()))}.log"
        self.run_dir = tmp_path / "run"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ORRERY_")}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={
                    **clean,
                    "ORRERY_SECRET_KEY": SECRET,
                    "ORRERY_RUN_DIR": str(self.run_dir),
                    "ORRERY_SLOT": "api-1",
                    "ORRERY_DRAIN_NOTICE_S": "0.2",
                    "PYTHONWARNINGS": "default",
                    **env,
                },
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]

    async def ready(self) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log.read_text()
            for line in self.lines():
                if line["event"] == "process_ready":
                    return line
            return None

        found = await eventually(check, timeout_s=30)
        assert found
        return found

    async def ended(self, timeout_s: float = 20) -> int:
        return await asyncio.to_thread(self.process.wait, timeout_s)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Service]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    services: list[Service] = []

    def begin(**settings: Any) -> Service:
        pass_fds = settings.pop("pass_fds", ())
        env = {(k if k.isupper() else f"ORRERY_{k.upper()}"): str(v) for k, v in settings.items()}
        services.append(Service(tmp_path, env, pass_fds=pass_fds))
        return services[-1]

    yield begin
    for service in services:
        service.remove()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await create_pool(database_url, application_name="test", max_size=2)
    yield pool
    await pool.close()


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.text()


async def facts(pool: asyncpg.Pool) -> list[str]:
    rows = await pool.fetch("SELECT type FROM es.events ORDER BY position")
    return [row["type"] for row in rows]


async def test_start_serve_drain_stop(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url, TEST_FAILING_TASK=1)
    ready = await service.ready()
    assert (await get(f"{ready['ops_url']}/livez"))[0] == 200

    async def is_ready() -> bool:
        return (await get(f"{ready['ops_url']}/readyz"))[0] == 200

    await eventually(is_ready)
    status = json.loads((await get(f"{ready['ops_url']}/status"))[1])
    assert status["slot"] == "api-1"
    assert status["pid"] == service.process.pid
    assert status["url"] == ready["url"]
    assert status["ready"] is True
    assert [t["name"] for t in status["tails"]] == ["identity"]
    run_file = service.run_dir / "api-1.json"
    assert json.loads(run_file.read_text()).items() >= {
        "service": "api", "slot": "api-1", "instance_id": status["instance"], "pid": service.process.pid,
        "url": ready["url"], "ops_url": ready["ops_url"],
    }.items()  # fmt: skip
    code, text = await get(f"{ready['ops_url']}/readyz?verbose")
    assert code == 200
    assert "[+]postgres ok" in text
    code, text = await get(f"{ready['ops_url']}/metrics")
    assert "orrery_build_info{" in text
    assert 'orrery_task_failures_total{task="fails"}' in text
    assert json.loads((await get(f"{ready['url']}/hub/api/hello"))[1]) == {"name": None}

    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0
    assert await facts(pool) == ["instance.started", "instance.draining", "instance.stopped"]
    assert await pool.fetchval("SELECT count(*) FROM es.instances") == 0
    assert not run_file.exists()
    said = service.events()
    assert said.index("signal_received") < said.index("process_draining") < said.index("process_stopped")
    assert "stop_step_failed" not in said
    (failure,) = [line for line in service.lines() if line["event"] == "task_failed"][:1]
    assert failure["causes"] == ["RuntimeError: on purpose"]
    assert SECRET not in service.log.read_text()


async def test_the_relay_says_how_far_the_stream_is(start: Start, database_url: str, nats_server: NatsServer) -> None:
    service = start(database_url=database_url, nats_url=nats_server.relay_url, TEST_SERVICE="relay", slot="relay-1")
    ready = await service.ready()

    async def leads() -> dict[str, Any] | None:
        status = json.loads((await get(f"{ready['ops_url']}/status"))[1])
        return status if status["position"] > 0 else None

    status = await eventually(leads)
    assert status
    assert (status["lag"], status["tails"][0]["mode"]) == (0, "leading")
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0


async def test_sigterm_lets_requests_finish(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url, drain_notice_s=1)
    ready = await service.ready()
    until = tmp_path / "finish"
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{ready['url']}/hub/api/slow?until={until}") as answer,
    ):
        assert await answer.content.readline() == b"begun\n"
        service.process.send_signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await get(f"{ready['ops_url']}/readyz"))[0] == 503

        await eventually(unready)
        assert (await get(f"{ready['url']}/hub/api/hello"))[0] == 200, "during the notice it still answers"

        async def refuses() -> bool:
            try:
                await get(f"{ready['url']}/hub/api/hello")
            except aiohttp.ClientConnectionError:
                return True
            return False

        await eventually(refuses)
        assert service.process.poll() is None, "the request under way keeps it alive"
        assert "instance.draining" in await facts(pool)
        assert "instance.stopped" not in await facts(pool), "others must not take over while it works"
        until.touch()
        assert await answer.content.readline() == b"done\n"
    assert await service.ended() == 0
    assert (await facts(pool))[-1] == "instance.stopped"


async def test_a_request_that_never_ends_is_cut_after_the_drain_timeout(
    start: Start, database_url: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url, drain_timeout_s=0.3)
    ready = await service.ready()
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{ready['url']}/hub/api/slow?until={tmp_path / 'never'}") as answer,
    ):
        await answer.content.readline()
        service.process.send_signal(signal.SIGTERM)
        assert await service.ended(15) == 0


async def test_it_ends_when_its_supervisor_is_gone(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    read_end, write_end = os.pipe()
    try:
        service = start(database_url=database_url, nats_url=nats_server.url, death_fd=read_end, pass_fds=(read_end,))
        await service.ready()
    finally:
        os.close(read_end)
        os.close(write_end)
    assert await service.ended() == 0
    assert "supervisor_gone" in service.events()
    assert (await facts(pool))[-1] == "instance.stopped"


async def test_it_ends_when_its_supervisor_is_gone_before_it_is_ready(start: Start, tmp_path: Path) -> None:
    """Postgres never answers, so the process is in the middle of its start."""
    read_end, write_end = os.pipe()
    service = start(
        database_url=f"postgresql://u:p@/d?host={tmp_path}",
        startup_timeout_s=60,
        death_fd=read_end,
        pass_fds=(read_end,),
    )
    os.close(read_end)
    await eventually(lambda: "postgres_awaited" in service.events())
    os.close(write_end)
    assert await service.ended(10) == 0


@pytest.mark.invariant(6)
async def test_losing_the_lease_to_a_successor_ends_the_process(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url)
    await service.ready()
    successor = EventLog(pool, producer="test")
    await successor.start()
    try:
        lease = Lease(successor, pool, service="api", slot="api-1", instance_id="successor")
        await lease.acquire()
        assert await service.ended(Lease.REFRESH_S + 15) == 1
        assert "lease_lost" in service.events()
        last = await pool.fetchrow("SELECT type, data FROM es.events ORDER BY position DESC LIMIT 1")
        assert last["type"] == "instance.started", "the loser must not announce the end of its successor"
        assert await pool.fetchval("SELECT instance_id FROM es.instances WHERE slot = 'api-1'") == "successor"
    finally:
        await successor.close()


async def test_a_process_that_is_ending_already_passes_its_slot_on(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    """In a restart without a gap the successor is there before the end."""
    service = start(database_url=database_url, nats_url=nats_server.url, drain_notice_s=Lease.REFRESH_S + 2)
    await service.ready()
    successor = EventLog(pool, producer="test")
    await successor.start()
    try:
        await Lease(successor, pool, service="api", slot="api-1", instance_id="successor").acquire()
        service.process.terminate()
        assert await service.ended(Lease.REFRESH_S + 20) == 0
        assert "lease_passed_on" in service.events()
        assert await pool.fetchval("SELECT instance_id FROM es.instances WHERE slot = 'api-1'") == "successor"
    finally:
        await successor.close()


async def test_a_process_that_claims_nothing_takes_its_slot_again(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    """As after an outage of Postgres, in which every lease has run out."""
    service = start(database_url=database_url, nats_url=nats_server.url, TEST_RENEW="1")
    await service.ready()
    instance = await pool.fetchval("DELETE FROM es.instances RETURNING instance_id")

    async def back() -> bool:
        return bool(await pool.fetchval("SELECT 1 FROM es.instances WHERE instance_id = $1", instance))

    await eventually(back, timeout_s=Lease.REFRESH_S + 10)
    assert service.process.poll() is None

    # The lease is taken first; then it is told.
    async def told() -> bool:
        return (await facts(pool)).count("instance.started") == 2

    await eventually(told)


async def test_two_processes_in_one_slot_do_not_fight(
    start: Start, pool: asyncpg.Pool, database_url: str, nats_server: NatsServer
) -> None:
    first = start(database_url=database_url, nats_url=nats_server.url, TEST_RENEW="1")
    await first.ready()
    second = start(database_url=database_url, nats_url=nats_server.url, TEST_RENEW="1")
    await second.ready()
    assert await first.ended(Lease.REFRESH_S + 15) == 1
    assert second.process.poll() is None
    assert json.loads((second.run_dir / "api-1.json").read_text())["pid"] == second.process.pid


async def test_it_starts_and_answers_without_nats(start: Start, database_url: str) -> None:
    service = start(database_url=database_url, nats_url="nats://127.0.0.1:9")
    ready = await service.ready()
    code, text = await get(f"{ready['ops_url']}/readyz?verbose")
    assert code == 200
    assert "[~]nats degraded: ORR-NATS-01" in text


async def test_losing_postgres_makes_it_unready_and_answers_503(
    start: Start, own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    url = await own_postgres.create_database(migrated=True)
    service = start(database_url=url, nats_url=nats_server.url)
    ready = await service.ready()
    await own_postgres.kill()

    async def unready() -> bool:
        return (await get(f"{ready['ops_url']}/readyz"))[0] == 503

    await eventually(unready)
    assert "[-]postgres failed: ORR-DB-01" in (await get(f"{ready['ops_url']}/readyz?verbose"))[1]
    assert (await get(f"{ready['ops_url']}/livez"))[0] == 200
    assert (await get(f"{ready['url']}/hub/api/hello"))[0] == 200
    await own_postgres.restart()

    async def is_ready() -> bool:
        return (await get(f"{ready['ops_url']}/readyz"))[0] == 200

    await eventually(is_ready)


async def test_a_router_stays_ready_without_postgres_and_nats(
    start: Start, own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    url = await own_postgres.create_database(migrated=True)
    service = start(database_url=url, nats_url=nats_server.url, TEST_SERVICE="router")
    ready = await service.ready()
    await own_postgres.kill()
    await nats_server.kill()

    async def noticed() -> bool:
        text = (await get(f"{ready['ops_url']}/readyz?verbose"))[1]
        return "[~]postgres degraded: ORR-DB-01" in text and "[~]nats degraded: ORR-NATS-01" in text

    await eventually(noticed, timeout_s=20)
    assert (await get(f"{ready['ops_url']}/readyz"))[0] == 200
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended(40) == 0, "it ends without them, too"


async def refused(service: Service, *words: str) -> str:
    """It ended with one clear sentence that holds the words."""
    assert await service.ended(30) == 1
    output = service.log.read_text()
    sentences = [line for line in output.splitlines() if line.startswith("orrery api: ")]
    assert len(sentences) == 1, output
    assert "Traceback" not in output
    for word in words:
        assert word in sentences[0]
    return sentences[0]


async def test_an_unreachable_database_is_one_clear_sentence(start: Start) -> None:
    service = start(database_url="postgresql://orrery:hunter22@127.0.0.1:9/orrery", startup_timeout_s=1)
    sentence = await refused(service, "127.0.0.1:9/orrery", "cannot be reached", "ORRERY_DATABASE_URL")
    assert "hunter22" not in service.log.read_text()
    assert "refused" in sentence.lower()


async def test_a_missing_database_setting_is_one_clear_sentence(start: Start) -> None:
    await refused(start(), "database_url is missing", "ORRERY_DATABASE_URL")


async def test_a_wrong_database_password_is_one_clear_sentence(start: Start, database_url: str) -> None:
    wrong = database_url.replace("postgresql://orrery:", "postgresql://orrery:wrong-", 1)
    assert wrong != database_url
    await refused(start(database_url=wrong), "refused the user or password", "ORRERY_DATABASE_URL")


async def test_a_database_without_tables_is_one_clear_sentence(start: Start, empty_database_url: str) -> None:
    await refused(start(database_url=empty_database_url, startup_timeout_s=2.5), "no Orrery tables", "migrat")


async def test_a_wrong_nats_password_is_one_clear_sentence(
    start: Start, database_url: str, nats_server: NatsServer
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.wrong_url)
    await refused(service, "NATS refused the user or password", "ORRERY_NATS_URL")
    assert "wrong" not in service.log.read_text()


@pytest.mark.invariant(8)
async def test_a_crash_is_logged_and_redacted(start: Start, database_url: str, nats_server: NatsServer) -> None:
    """A bug in a service's body must not print a traceback past the log."""
    secret = "postgresql://orrery:hunter22@db/x"
    service = start(database_url=database_url, nats_url=nats_server.url, TEST_CRASH=f"cannot parse {secret} {SECRET}")
    assert await service.ended() == 1
    (line,) = [line for line in service.lines() if line["event"] == "process_failed"]
    assert line["causes"] == ["ValueError: cannot parse postgresql://orrery:[redacted]@db/x [redacted]"]
    output = service.log.read_text()
    assert "hunter22" not in output
    assert SECRET not in output
    assert all(text.startswith("{") for text in output.splitlines())


async def test_a_port_in_use_is_one_clear_sentence(start: Start, database_url: str, nats_server: NatsServer) -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        await refused(start(ops_port=port), f"port {port} is in use", "ops_port")
        service = start(database_url=database_url, nats_url=nats_server.url, port=port)
        await refused(service, f"port {port} is in use", "another port")


async def test_a_wrong_setting_is_one_clear_sentence(start: Start, tmp_path: Path) -> None:
    await refused(start(port="x"), "setting port (from ORRERY_PORT)")
    config = tmp_path / "orrery.toml"
    config.write_text('slto = "x"\n')
    await refused(start(config=config), "did you mean 'slot'")


async def test_a_missing_secret_key_is_one_clear_sentence(
    start: Start, database_url: str, nats_server: NatsServer
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url, secret_key="")
    await refused(service, "secret_key is missing", "openssl rand -hex 32")


async def test_a_run_dir_that_cannot_be_written_is_one_clear_sentence(
    start: Start, database_url: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    service = start(database_url=database_url, nats_url=nats_server.url, run_dir=tmp_path / "file" / "run")
    await refused(service, "cannot write to", "run_dir")
