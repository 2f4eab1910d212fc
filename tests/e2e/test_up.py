"""`orrery up` as an operator meets it: what runs, what is told, what happens when it is killed, stopped, run twice."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from orrery_cli import web
from tests.support.backbone import NatsServer
from tests.support.certificates import Authority
from tests.support.platform import PASSWORD, Person, Platform
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("up"),
]

SLOTS = ["postgres", "nats", "relay", "auth", "api", "spawner", "router-1", "router-2"]
QUICK = {
    "display_name": "Quick",
    "command": ["{python}", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "{home}"],
    "strip_prefix": True,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with Platform.running() as platform:
        yield platform


@contextmanager
def fresh(**options: object) -> Iterator[Platform]:
    """A platform of a test's own, not started."""
    platform = Platform(**options)  # type: ignore[arg-type]
    try:
        yield platform
    finally:
        platform.stop()


async def quick_server(ada: Person) -> None:
    status, answer = await ada.api("PUT", "/profiles/quick", QUICK)
    assert status in (200, 201), (status, answer)
    await ada.start_server("q", "quick")


def ours(platform: Platform) -> list[psutil.Process]:
    """Every process that the platform's supervisor wrote down, itself included."""
    up = json.loads((platform.data_dir / "run" / "up.json").read_text())
    return [psutil.Process(pid) for pid in (up["pid"], *(slot["pid"] for slot in up["slots"].values()))]


def named_after(platform: Platform) -> list[psutil.Process]:
    """Processes with the platform's folder in their argument list: Postgres, nats-server, `orrery up`."""
    root = str(platform.root)
    return [p for p in psutil.process_iter(["cmdline"]) if root in " ".join(p.info["cmdline"] or [])]


async def all_gone(processes: list[psutil.Process]) -> None:
    def gone() -> bool:
        return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    await eventually(gone, timeout_s=20)


async def test_the_banner_tells_what_one_needs(platform: Platform) -> None:
    said = platform.output.read_text()
    for text in (platform.url, "ready in", "PostgreSQL 18.4, embedded", "NATS 2.15.1, embedded", "router ok x2"):
        assert text in said
    assert f"--data-dir {platform.data_dir}" in said
    assert PASSWORD not in said
    assert "/hub/setup/" not in said, "there is an admin: nobody needs a link"
    refused = platform.command("setup-link")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is an admin already: sign in" in refused.stderr


async def test_status_lists_every_process(platform: Platform) -> None:
    body = json.loads(platform.command("status", "-o", "json").stdout)
    assert (body["ready"], body["url"], body["data_dir"]) == (True, platform.url, str(platform.data_dir))
    assert [row["slot"] for row in body["processes"]] == SLOTS
    assert len({row["pid"] for row in body["processes"]}) == len(SLOTS), "each is a process of its own"
    assert len({row["instance"] for row in body["processes"]}) == len(SLOTS)
    head = body["head"]
    assert head >= 8
    for row in body["processes"]:
        assert row["ready"], row
        assert row["state"] == "ready"
        assert psutil.Process(row["pid"]).status() != psutil.STATUS_ZOMBIE
        assert row["url"] or row["service"] in ("relay", "spawner")

    def at_head() -> bool:
        # A heartbeat a second tells those whose events these were not.
        told = json.loads(platform.command("status", "-o", "json").stdout)
        return {(row["position"], row["lag"]) for row in told["processes"]} == {(told["head"], 0)}

    await eventually(at_head, timeout_s=10)
    table = platform.command("status")
    assert table.returncode == 0
    assert all(slot in table.stdout for slot in SLOTS)


async def test_a_healthy_platform_has_nothing_to_complain_of(platform: Platform) -> None:
    for command in (("doctor",), ("replay", "--verify")):
        done = platform.command(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "router-2 at position" in done.stdout


async def test_a_second_up_is_told_of_the_first(platform: Platform) -> None:
    assert platform.process
    done = platform.command("up", "--port", "0")
    assert done.returncode == 1
    assert f"already runs on {platform.data_dir} with pid {platform.process.pid}" in done.stderr
    assert "orrery status" in done.stderr


async def test_another_platform_names_who_has_the_port(platform: Platform) -> None:
    with fresh() as other:
        done = other.command("up", "--port", str(platform.port))
    assert done.returncode == 1
    assert f"port {platform.port} is in use by orrery" in done.stderr


@pytest.mark.invariant(8)
async def test_no_secret_is_in_an_argument_list_and_files_are_private(platform: Platform) -> None:
    place = platform.data_dir
    files = [*(place / "secrets").iterdir(), *place.glob("*/*.password")]
    secrets = {PASSWORD} | {file.read_text().strip() for file in files}
    assert len(secrets) >= 8
    for file in [*files, *(place / "logs").glob("*"), place / "nats" / "nats.conf"]:
        assert file.stat().st_mode & 0o077 == 0, file
    for folder in ("secrets", "run", "logs", "nats", "postgres/data", "postgres/socket"):
        assert (place / folder).stat().st_mode & 0o777 == 0o700, folder
    for process in psutil.process_iter(["cmdline"]):
        said = " ".join(process.info["cmdline"] or [])
        assert not any(secret in said for secret in secrets), process
    logged = "".join(file.read_text(errors="replace") for file in (place / "logs").iterdir())
    assert not any(secret in logged for secret in secrets)


async def test_postgres_runs_as_an_ordinary_user(platform: Platform) -> None:
    user = psutil.Process(await platform.pid("postgres")).username()
    assert user in ("orrery", "postgres", "nobody") if os.geteuid() == 0 else user == pwd.getpwuid(os.geteuid()).pw_name


async def test_nobody_takes_the_port_while_routers_are_away(platform: Platform) -> None:
    pids = [await platform.pid(slot) for slot in ("router-1", "router-2")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", platform.port))
    for slot, pid in zip(("router-1", "router-2"), pids, strict=True):
        await platform.replaced(slot, pid)
    assert (await web.get(f"{platform.url}/hub/api")).status == 200
    said = platform.output.read_text()
    assert f"router-1 (pid {pids[0]}) was killed by SIGKILL" in said
    assert re.search(r"router-2 started again as pid \d+", said)


async def test_kill_9_of_the_supervisor_takes_all_but_the_servers_and_the_next_up_finds_them(
    platform: Platform,
) -> None:
    async with platform.sign_in() as ada:
        await quick_server(ada)
        before = platform.server_pids()
        assert before
        processes = ours(platform)
        assert platform.process
        platform.process.kill()
        platform.process.wait()
        assert platform.command("status").returncode == 3
        # At once, while what was left behind is still on its way out.
        await platform.start()
        assert await asyncio.to_thread(lambda: platform.command("replay", "--verify").returncode) == 0
        await all_gone(processes)
        assert platform.server_pids() == before, "the notebook never noticed"
        found = await ada.ready_server("q")
        assert found["ready"]
        assert (await ada.fetch("/user/ada/q/"))[0] == 200


async def test_ctrl_c_tells_what_it_does_and_leaves_servers_alone(platform: Platform) -> None:
    before, processes = platform.server_pids(), ours(platform)
    said = await platform.interrupt()
    assert platform.process
    assert platform.process.returncode == 0
    assert "Stopping. 1 running server left running" in said
    for what in ("routers", "auth, api, spawner", "relay", "NATS", "PostgreSQL"):
        assert re.search(rf"{what} +stopped +[0-9.]+ s", said), said
    await all_gone(processes)
    assert platform.server_pids() == before
    assert not [f for f in (platform.data_dir / "run").iterdir() if f.suffix == ".json"]


async def test_down_ends_it_from_another_terminal_and_servers_too_if_asked(platform: Platform) -> None:
    await platform.start()
    async with platform.sign_in() as ada:
        await ada.ready_server("q")
    processes = ours(platform)
    done = await asyncio.to_thread(platform.command, "down", "--stop-servers")
    assert done.returncode == 0, done.stderr
    assert "Servers stopped: 1" in done.stdout
    assert platform.process
    assert platform.process.wait(5) == 0
    await all_gone(processes)
    await eventually(lambda: not platform.server_pids())


async def test_up_stop_servers_takes_servers_along() -> None:
    with fresh(env={"ORRERY_STOP_SERVERS": "1"}, routers=1) as platform:
        await platform.start()
        async with platform.sign_in() as ada:
            await quick_server(ada)
        said = await platform.interrupt()
        assert "Stopping, and 1 running server first" in said
        assert re.search(r"servers +stopped", said)
        assert not platform.server_pids()


async def test_your_own_postgres_and_nats_switch_the_embedded_off(database_url: str, nats_server: NatsServer) -> None:
    backends = {"ORRERY_DATABASE_URL": database_url, "ORRERY_NATS_URL": nats_server.relay_url}
    with fresh(env=backends, routers=1) as platform:
        await platform.start(bootstrap=False)
        assert "PostgreSQL, yours" in platform.output.read_text()
        link = re.search(rf"{platform.url}/hub/setup/\S+", platform.output.read_text())
        assert link, "an empty log: somebody must become the first admin"
        assert (await web.get(link.group())).status == 200
        again = platform.command("setup-link", ORRERY_DATABASE_URL=database_url)
        assert again.returncode == 0, again.stderr
        assert (await web.get(again.stdout.strip())).status == 200
        assert (await web.get(link.group())).status == 404, "only the newest is good"
        slots = {row["slot"] for row in await platform.status()}
        assert slots == {"relay", "auth", "api", "spawner", "router-1", "postgres (yours)", "nats (yours)"}
        await eventually(lambda: platform.command("status").returncode == 0, timeout_s=20)
        assert not (platform.data_dir / "postgres").exists()
        done = await asyncio.to_thread(platform.command, "events", "tail", ORRERY_DATABASE_URL="")
        assert "instance.started" in done.stdout, "found by --data-dir alone"
        await platform.interrupt()


async def test_a_setting_that_a_service_refuses_is_told_by_up() -> None:
    with fresh(env={"ORRERY_DRAIN_TIMEOUT_S": "soon"}) as platform:
        done = await asyncio.to_thread(platform.command, "up", "--port", "0")
        assert done.returncode == 1
        assert "cannot start: setting drain_timeout_s (from ORRERY_DRAIN_TIMEOUT_S) is not usable" in done.stderr
        assert not [
            p for p in psutil.process_iter(["cmdline"]) if str(platform.root) in " ".join(p.info["cmdline"] or [])
        ]


async def test_an_interrupted_start_leaves_nothing() -> None:
    with fresh() as platform:
        args = ["up", "--data-dir", str(platform.data_dir), "--port", str(platform.port)]
        process = subprocess.Popen([*platform.orrery, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        await eventually((platform.data_dir / "run" / "up.json").exists)
        process.terminate()
        output, _ = await asyncio.to_thread(process.communicate, None, 30)
        assert process.returncode == 0, output
        assert not [
            p for p in psutil.process_iter(["cmdline"]) if str(platform.root) in " ".join(p.info["cmdline"] or [])
        ]


async def test_each_service_as_a_program_of_its_own_with_logs_shown() -> None:
    with fresh(env={"ORRERY_PRELOAD": "0", "ORRERY_LOGS": "1"}, routers=1) as platform:
        await platform.start()
        commands = [psutil.Process(row["pid"]).cmdline() for row in await platform.status() if row["service"] == "api"]
        assert commands[0][1:3] == ["-m", "orrery_cli.supervisor.target"]
        await eventually(lambda: re.search(r"^api +\| .*process_ready", platform.output.read_text(), re.MULTILINE))
        await platform.interrupt()


async def test_everything_below_a_path_and_a_terminal_that_is_closed() -> None:
    with fresh(env={"ORRERY_BASE_URL": "/hub-a/"}, routers=1) as platform:
        args = ["up", "--data-dir", str(platform.data_dir), "--port", str(platform.port), "--routers", "1"]
        process = subprocess.Popen(
            [*platform.orrery, *args],
            stdout=subprocess.PIPE,
            env={**os.environ, **platform.env},
            start_new_session=True,
        )
        assert process.stdout
        said = b""
        while b"Ctrl-C" not in said:
            said += await asyncio.to_thread(process.stdout.readline)
        link = re.search(rf"{platform.url}/hub-a/hub/setup/\S+", said.decode())
        assert link
        assert (await web.get(link.group())).status == 200
        again = await asyncio.to_thread(platform.command, "setup-link")
        assert again.returncode == 0, again.stderr
        assert (await web.get(again.stdout.strip())).status == 200
        assert (await web.get(link.group())).status == 404, "only the newest is good"
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert not named_after(platform)


async def test_a_certificate_is_all_that_https_takes(tmp_path: Path) -> None:
    cert_file, key_file = Authority(tmp_path).issue("hub", "hub.example.org")
    files = {"ORRERY_TLS_CERT_FILES": str(cert_file), "ORRERY_TLS_KEY_FILES": str(key_file)}
    with fresh(routers=1, env=files) as platform:
        await platform.start()
        url = f"https://127.0.0.1:{platform.port}"
        assert url in platform.output.read_text()
        assert (await web.get(f"{url}/hub/login")).status == 200
        assert (await web.get(f"http://127.0.0.1:{platform.port}/hub/login")).status == 0
        done = await asyncio.to_thread(platform.command, "doctor")
        assert done.returncode == 0, done.stdout
