"""The embedded Postgres and NATS: who may do what, what lies where, and what happens after a kill."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from orrery_cli.embedded.nats import Nats
from orrery_cli.embedded.osuser import Account, first_blocked
from orrery_cli.embedded.postgres import Postgres
from orrery_cli.errors import EmbeddedError
from orrery_events import subjects
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.wait import eventually


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_postgres_runs_as_somebody_unprivileged(postgres: PostgresServer) -> None:
    uids = set(psutil.Process(postgres.pid).uids())
    if os.geteuid() == 0:
        assert 0 not in uids
        assert pwd.getpwuid(uids.pop()).pw_name in ("orrery", "postgres", "nobody")
    else:
        assert uids == {os.geteuid()}


async def test_postgres_listens_on_no_network_address(postgres: PostgresServer) -> None:
    assert not psutil.Process(postgres.pid).net_connections(kind="inet")


@pytest.mark.invariant(8)
async def test_nobody_gets_in_without_a_password(postgres: PostgresServer, tmp_path: Path) -> None:
    for user in ("orrery", "postgres"):
        for password in (None, "", "wrong"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                await asyncpg.connect(
                    host=str(postgres.postgres.socket_dir),
                    user=user,
                    password=password,
                    database="orrery",
                    passfile=str(tmp_path / "none"),
                )
    connection = await asyncpg.connect(postgres.url)
    assert await connection.fetchval("SHOW password_encryption") == "scram-sha-256"
    assert not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = 'orrery'")
    await connection.close()
    hba = [line for line in (postgres.postgres.data / "pg_hba.conf").read_text().splitlines() if line[:1] != "#"]
    assert {line.split()[-1] for line in hba if line.strip()} == {"scram-sha-256"}


@pytest.mark.invariant(8)
async def test_modes_and_argument_lists(postgres: PostgresServer, nats_server: NatsServer) -> None:
    cluster, home = postgres.postgres, nats_server.store_dir.parent
    assert mode(cluster.data) == 0o700
    assert mode(cluster.socket_dir) == 0o700
    passwords = [*cluster.home.glob("*.password"), *home.glob("*.password")]
    assert len(passwords) == 4
    for file in (*passwords, home / "nats.conf"):
        assert mode(file) == 0o600, file
        assert file.stat().st_uid == os.geteuid()
    assert mode(home) == 0o700
    secrets = [file.read_text().strip() for file in passwords]
    for process in psutil.process_iter(["cmdline"]):
        said = " ".join(process.info["cmdline"] or [])
        assert not any(secret in said for secret in secrets), process


async def test_what_was_committed_survives_a_kill(own_postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(own_postgres.url)
    await connection.execute("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
    await own_postgres.kill()
    assert (own_postgres.postgres.data / "postmaster.pid").exists(), "the stale file is there"
    await own_postgres.restart()
    connection = await asyncpg.connect(own_postgres.url)
    assert await connection.fetchval("SELECT count(*) FROM t") == 1
    await connection.close()


async def test_a_server_left_behind_is_ended_and_a_stranger_with_its_pid_is_not(own_postgres: PostgresServer) -> None:
    """What `orrery up` meets after it was killed."""
    postgres, left = Postgres(own_postgres.postgres.home), own_postgres.pid
    await asyncio.to_thread(postgres.prepare)
    await eventually(lambda: psutil.Process(left).status() == psutil.STATUS_ZOMBIE)

    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (postgres.data / "postmaster.pid").write_text(f"{stranger.pid}\n{postgres.data}\n1\n5432\n")
        if postgres.account:
            os.chown(postgres.data / "postmaster.pid", postgres.account.uid, postgres.account.gid)
        await own_postgres.restart()
        assert stranger.poll() is None
        connection = await asyncpg.connect(own_postgres.url)
        await connection.close()
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_long_path_has_its_socket_elsewhere_and_the_same_one_again() -> None:
    server = PostgresServer()
    folder = server.root / ("x" * 90)
    folder.mkdir(mode=0o711)
    server.postgres = Postgres(folder / "pg", settings={"fsync": "off"})
    try:
        server.launch()
        await server.ready()
        first = server.postgres.socket_dir
        assert first.parent != folder / "pg"
        assert mode(first) == 0o700
        await server.restart()
        assert server.postgres.socket_dir == first
        connection = await asyncpg.connect(server.url)
        await connection.close()
    finally:
        server.remove()


async def test_an_interrupted_first_start_is_begun_again(postgres: PostgresServer) -> None:
    home = postgres.root / "second"
    (home / "staging-old" / "data").mkdir(parents=True)
    (home / "staging-old" / "data" / "PG_VERSION").write_text("18\n")
    second = Postgres(home, settings={"fsync": "off"})
    assert await asyncio.to_thread(second.prepare) is True
    assert not list(home.glob("staging-*"))
    assert await asyncio.to_thread(second.prepare) is False


async def test_another_major_version_is_named(own_postgres: PostgresServer) -> None:
    await own_postgres.stop()
    (own_postgres.postgres.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedError, match="made by PostgreSQL 16 and this release brings 18"):
        own_postgres.launch()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the database to another user")
async def test_a_folder_that_the_database_user_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = mode(closed)
    with pytest.raises(EmbeddedError, match=r"who cannot enter .*: choose another --data-dir"):
        Postgres(closed / "pg").prepare()
    assert mode(closed) == before, "it is not ours to open"


def test_the_first_folder_in_the_way_is_found(tmp_path: Path) -> None:
    stranger = Account("stranger", 12345, 12345)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (*list(tmp_path.parents)[:3], tmp_path, tmp_path / "a", inner):
        if folder.owner() == pwd.getpwuid(os.geteuid()).pw_name:
            folder.chmod(0o755)
    assert first_blocked(inner / "not there yet", stranger) is None
    (tmp_path / "a").chmod(0o750)
    assert first_blocked(inner, stranger) == tmp_path / "a"


@pytest.fixture
async def refused(nats_server: NatsServer) -> AsyncIterator[tuple[Client, list[str]]]:
    """A service's connection, and what the server refused it."""
    refusals: list[str] = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    client = await nats.connect(nats_server.url, error_cb=on_error)
    yield client, refusals
    await client.close()


@pytest.mark.invariant(2)
async def test_only_the_relay_may_publish_events_and_change_the_stream(
    nats_server: NatsServer, refused: tuple[Client, list[str]]
) -> None:
    relay = await nats.connect(nats_server.relay_url)
    await relay.jetstream().add_stream(StreamConfig(name=subjects.STREAM, subjects=[subjects.ALL_EVENTS]))
    await relay.jetstream().publish("orrery.v1.evt.user.x.created", b"{}")

    client, refusals = refused
    stream = subjects.STREAM
    forbidden = ["orrery.v1.evt.user.x.created", subjects.HEAD, "$JS.API.STREAM.CREATE.OTHER"]
    forbidden += [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("UPDATE", "PURGE", "MSG.DELETE", "DELETE", "RESTORE")]
    for subject in forbidden:
        await client.publish(subject, b"{}")
    await eventually(lambda: all(any(s.lower() in text.lower() for text in refusals) for s in forbidden))
    state = (await relay.jetstream().stream_info(subjects.STREAM)).state
    assert (state.messages, state.last_seq) == (1, 1)
    read = await client.jetstream().stream_info(stream)
    assert read.state.last_seq == 1, "reading is allowed"
    await relay.close()


async def test_nats_comes_back_on_its_port_with_what_it_had(nats_server: NatsServer) -> None:
    relay = await nats.connect(nats_server.relay_url)
    await relay.jetstream().add_stream(StreamConfig(name="KEPT", subjects=["kept"]))
    await relay.jetstream().publish("kept", b"1")
    await relay.close()
    before = nats_server.url
    await nats_server.kill()
    await nats_server.restart()
    assert nats_server.url == before
    relay = await nats.connect(nats_server.relay_url)
    assert (await relay.jetstream().stream_info("KEPT")).state.messages == 1
    await relay.close()


async def test_a_nats_left_behind_is_ended(nats_server: NatsServer) -> None:
    again = Nats(nats_server.store_dir.parent)
    left = nats_server.pid
    await asyncio.to_thread(again.prepare)
    await eventually(lambda: psutil.Process(left).status() == psutil.STATUS_ZOMBIE)
    assert again.url("service") == nats_server.url


async def test_nats_takes_another_port_when_a_stranger_has_its_own(nats_server: NatsServer) -> None:
    await nats_server.stop()
    port = int(nats_server.url.rpartition(":")[2])
    stranger = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    async with stranger:
        await nats_server.restart()
        assert nats_server.url.rpartition(":")[2] != str(port)
        client = await nats.connect(nats_server.url)
        await client.close()


def test_the_servers_end_with_their_supervisor() -> None:
    """kill -9 leaves no time to clean up; the kernel does it."""
    code = """
import asyncio, os, signal, sys
from tests.support.backbone import NatsServer, PostgresServer
p, n = PostgresServer(), NatsServer()
p.launch(); n.launch()
async def ready(): await p.ready(); await n.ready()
asyncio.run(ready())
print(p.pid, n.pid, p.root, n.root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    *pids, one, two = done.stdout.split()
    for pid in map(int, pids):
        for process in filter(psutil.pid_exists, [pid]):
            psutil.Process(process).wait(20)
    for folder in (one, two):
        shutil.rmtree(folder)
