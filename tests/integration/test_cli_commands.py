"""Commands that fail say what is wrong and what to do, in one sentence, with an exit code; and the small ones work."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from orrery_cli import datadir, natsinfo, servers, verify, web
from orrery_cli.datadir import DataDir
from orrery_cli.errors import CliError
from orrery_events.catalog.server import Ready, StartRequested, server_stream
from orrery_events.catalog.user import UserCreated, user_stream
from orrery_events.log import EventLog, create_pool
from orrery_events.server_state import Phase
from tests.support.backbone import NatsServer

ORRERY = [sys.executable, "-m", "orrery_cli.main"]


async def orrery(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ORRERY_")}
    return await asyncio.to_thread(
        subprocess.run,
        [*ORRERY, *args],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_sentence(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What the command said, after checking that it is all it said."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("orrery: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


async def test_a_port_in_use_names_who_has_it(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "d"), "--port", str(port)))
    assert f"port {port} is in use by" in said
    assert f"pid {os.getpid()}" in said
    assert f"--port {port + 1}" in said


async def test_a_stranger_who_shares_the_port_is_in_the_way_too(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("0.0.0.0", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "d"), "--port", str(port)))
    assert f"pid {os.getpid()}" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("LISTEN", "http://127.0.0.1:0"), ("PROXY_PROTOCOL", "true"), ("TLS_CLIENT_CA_FILE", "clients.pem")],
)
async def test_what_only_single_routers_can_do_is_said(tmp_path: Path, name: str, value: str) -> None:
    said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "d"), **{f"ORRERY_{name}": value}), 2)
    assert f"setting {name.lower()} is for routers" in said
    assert not (tmp_path / "d").exists()


async def test_a_data_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "file" / "d")))
    assert f"{tmp_path}/file is not a folder" in said
    assert "choose another with --data-dir" in said
    said = one_sentence(await orrery("up", "--data-dir", "/proc/orrery"))
    assert "choose another with --data-dir" in said


async def test_an_unreachable_database(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://orrery:hidden-word@127.0.0.1:{nobody.getsockname()[1]}/orrery"
        for args in (("up", "--data-dir", str(tmp_path / "d"), "--port", "0"), ("migrate",)):
            said = one_sentence(await orrery(*args, ORRERY_DATABASE_URL=url))
            assert "cannot be used" in said
            assert "correct ORRERY_DATABASE_URL" in said
            assert "hidden-word" not in said
        for service in (["api"], ["router", "--workers", "2"]):
            done = await orrery(
                "serve", *service, ORRERY_DATABASE_URL=url, ORRERY_STARTUP_TIMEOUT_S="0.5", ORRERY_SECRET_KEY="x" * 32
            )
            assert done.returncode == 1
            assert "correct ORRERY_DATABASE_URL" in done.stderr
            assert "hidden-word" not in done.stderr + done.stdout


async def test_a_wrong_database_password(tmp_path: Path, empty_database_url: str) -> None:
    wrong = empty_database_url.replace(f":{urlsplit(empty_database_url).password}@", ":hidden-word@")
    said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "d"), "--port", "0", ORRERY_DATABASE_URL=wrong))
    assert "refused the user or the password" in said
    assert "hidden-word" not in said


async def test_a_wrong_nats_password(tmp_path: Path, database_url: str, nats_server: NatsServer) -> None:
    both = {"ORRERY_DATABASE_URL": database_url, "ORRERY_NATS_URL": nats_server.wrong_url}
    said = one_sentence(await orrery("up", "--data-dir", str(tmp_path / "d"), "--port", "0", **both))
    assert "NATS refused the user or password given in ORRERY_NATS_URL" in said
    done = await orrery("serve", "relay", **both, ORRERY_SECRET_KEY="x" * 32)
    assert done.returncode == 1
    assert "NATS refused the user or password" in done.stderr.splitlines()[-1]


async def test_a_missing_bootstrap_password(tmp_path: Path) -> None:
    said = one_sentence(await orrery("up", "--data-dir", str(tmp_path), "--bootstrap-admin", "ada"), 2)
    assert "set ORRERY_BOOTSTRAP_PASSWORD" in said


async def test_where_nothing_runs_that_is_said(tmp_path: Path) -> None:
    for command in (("status",), ("status", "-o", "json"), ("down",), ("events", "tail")):
        said = one_sentence(await orrery(*command, "--data-dir", str(tmp_path)), 3)
        assert str(tmp_path) in said
    done = await orrery("doctor", "--data-dir", str(tmp_path), "-o", "json")
    assert done.returncode == 3
    assert json.loads(done.stdout)[-1]["code"] == "ORR-UP-01"


async def test_wrong_usage_has_its_own_code() -> None:
    assert (await orrery("serve", "teapot")).returncode == 2
    assert (await orrery("replay")).returncode == 2
    assert "is for routers" in one_sentence(await orrery("serve", "api", "--workers", "2"), 2)
    assert (await orrery("up", "--port", "99999")).returncode == 2


async def test_migrate_makes_the_tables_once(empty_database_url: str) -> None:
    done = await orrery("migrate", ORRERY_DATABASE_URL=empty_database_url)
    assert (done.returncode, done.stdout) == (0, "migrated: es, auth, api\n")
    done = await orrery("migrate", ORRERY_DATABASE_URL=empty_database_url)
    assert (done.returncode, done.stdout) == (0, "nothing to do: the tables are up to date\n")


@asynccontextmanager
async def a_log(url: str) -> AsyncIterator[EventLog]:
    pool = await create_pool(url, application_name="test")
    log = EventLog(pool, producer="test")
    await log.start()
    yield log
    await log.close()
    await pool.close()


async def fill(log: EventLog) -> None:
    """Two people; ada's server runs."""
    for name in ("ada", "grace"):
        await log.append(user_stream(name), [UserCreated(user_id=name, name=name, admin=False, created_at=1.0)])
    facts: dict[str, Any] = {"server_id": "s1", "user_id": "ada", "user_name": "ada", "generation": 1}
    await log.append(server_stream("s1"), [StartRequested(**facts), Ready(**facts, target="http://127.0.0.1:1")])


async def test_events_tail_prints_cloudevents_and_resumes(tmp_path: Path, database_url: str) -> None:
    async with a_log(database_url) as log:
        await fill(log)
    data_dir = ("--data-dir", str(tmp_path))
    done = await orrery("events", "tail", *data_dir, "-o", "json", "--from", "2", ORRERY_DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [int(event["sequence"]) for event in events] == [2, 3, 4]
    assert events[1]["type"] == "orrery.server.start_requested.v1"
    assert events[1]["data"]["user_name"] == "ada"
    assert events[1]["specversion"] == "1.0"

    done = await orrery("events", "tail", *data_dir, ORRERY_DATABASE_URL=database_url)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3", "4"]
    assert "\x1b" not in done.stdout, "no colours without a terminal"


async def test_events_tail_follows_and_says_how_to_resume(tmp_path: Path, database_url: str) -> None:
    args = [*ORRERY, "events", "tail", "--follow", "-o", "json", "--from", "1", "--data-dir", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *args, env={**os.environ, "ORRERY_DATABASE_URL": database_url}, stdout=-1, stderr=-1
    )
    assert process.stdout
    async with a_log(database_url) as log:
        await fill(log)
    for position in range(1, 5):
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert int(json.loads(line)["sequence"]) == position
    process.send_signal(2)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert said.decode().strip() == f"Resume with: orrery events tail --follow --from 5 --data-dir {tmp_path}"


@pytest.mark.invariant(3)
async def test_replay_verify_sees_what_differs(tmp_path: Path, database_url: str) -> None:
    async with a_log(database_url) as log:
        await fill(log)
        good = await verify.verify(log, [])
        assert {f.what: f.ok for f in good} == {
            "log": True,
            **{f"{name} from es.latest": True for name in ("api", "auth", "proxy", "router", "spawner")},
        }
        live = verify.Live(service="router", slot="router-1", epoch=1, position=3, digest="something else")
        found = {f.what: f.ok for f in await verify.verify(log, [live])}
        assert found["router-1 at position 3"] is False

    done = await orrery("replay", "--verify", "--data-dir", str(tmp_path), ORRERY_DATABASE_URL=database_url)
    assert done.returncode == 0, done.stdout
    assert "4 events to position 4, 2 categories, 3 streams, gapless" in done.stdout

    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM es.latest WHERE category = 'user' AND position = 2")
    await connection.close()
    done = await orrery(
        "replay", "--verify", "--data-dir", str(tmp_path), "-o", "json", ORRERY_DATABASE_URL=database_url
    )
    assert done.returncode == 1
    differing = {f["what"]: f["detail"] for f in json.loads(done.stdout) if not f["ok"]}
    assert differing["log"] == "es.latest and the history differ about position 2"
    assert "api from es.latest" in differing


@pytest.mark.invariant(1)
async def test_replay_verify_sees_a_hole_in_the_log(database_url: str) -> None:
    async with a_log(database_url) as log:
        await fill(log)
        connection = await asyncpg.connect(database_url)
        await connection.execute("ALTER TABLE es.events DISABLE TRIGGER USER")
        await connection.execute("DELETE FROM es.events WHERE position = 2")
        await connection.close()
        broken = (await verify.verify(log, []))[0]
    assert not broken.ok
    assert "position 3 follows 1" in broken.detail


async def test_stopping_servers_goes_through_the_log(database_url: str) -> None:
    async with servers.opened(database_url) as log:
        await fill(log)
        assert await servers.count_running(log) == 1
        with pytest.raises(CliError, match="1 of 1 servers do not stop"):
            await servers.stop_all(log, timeout_s=0.2)
        assert [s.phase for s in await servers.current(log)] == [Phase.STOP_REQUESTED]
        assert await servers.count_running(log) == 0
    with pytest.raises(CliError, match="Postgres does not answer"):
        async with servers.opened("postgresql://127.0.0.1:1/none"):
            pass


async def test_nats_is_asked_without_a_client_library(nats_server: NatsServer) -> None:
    assert await natsinfo.stream_last_sequence(nats_server.relay_url, timeout_s=3) is None
    with pytest.raises(ValueError, match="refused us"):
        await natsinfo.stream_last_sequence(nats_server.wrong_url, timeout_s=3)
    await nats_server.kill()
    with pytest.raises(OSError, match="Connect"):
        await natsinfo.stream_last_sequence(nats_server.relay_url, timeout_s=3)


async def test_what_does_not_speak_http_is_no_answer() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 ready\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await web.get(f"http://127.0.0.1:{port}/")).status in (0, 220)
    assert await web.get(f"http://127.0.0.1:{port}/") == web.Answer(0)


def test_a_data_directory_belongs_to_one_up(tmp_path: Path) -> None:
    first, second = DataDir(tmp_path / "d"), DataDir(tmp_path / "d")
    first.prepare()
    first.lock()
    assert second.lock_holder() == os.getpid()
    with pytest.raises(CliError, match=rf"already runs on .* with pid {os.getpid()}: see `orrery status"):
        second.lock()


def test_folders_and_secrets_are_private(tmp_path: Path) -> None:
    place = DataDir(tmp_path / "d")
    place.prepare()
    place.write_run_file("api", {"pid": 1})
    secret = place.generated_secret("secret_key")
    assert len(secret.read_text().strip()) == 64
    assert place.generated_secret("secret_key").read_text() == secret.read_text(), "made once"
    for folder in (place.run, place.logs, place.secrets):
        assert folder.stat().st_mode & 0o777 == 0o700
    for file in (secret, place.run / "api.json"):
        assert file.stat().st_mode & 0o777 == 0o600
    (place.run / "broken.json").write_text("{")
    assert place.run_files() == {"api": {"pid": 1}}


def test_the_default_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert datadir.default() == Path("/var/lib/orrery")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert datadir.default().name == "orrery"
    assert datadir.default() != Path("/var/lib/orrery")
