"""The process driver on real processes: every call twice, spawners that die in between, what servers get to see."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orrery_events.ids import new_id
from orrery_spawner.drivers import files, processes
from orrery_spawner.drivers.base import DriverUnavailable, LaunchRefused, LaunchSpec, ServerKey
from orrery_spawner.drivers.process import ProcessDriver
from tests.support.spawners import HTTP_SERVER, marked_processes
from tests.support.wait import eventually

SECRET = "the-server-s-own-secret-6f1e"
SLEEPER = ("{python}", "-c", "import time; time.sleep(600)")


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path)
    yield driver
    await driver.close()


@pytest.fixture
def key() -> Iterator[ServerKey]:
    key = ServerKey(new_id(), 1)
    yield key
    for process in of(key.server_id):
        with suppress(psutil.Error):
            process.kill()
            process.wait(5)


def of(server_id: str) -> list[psutil.Process]:
    return [process for process, env in marked_processes() if env["ORRERY_SERVER_ID"] == server_id]


def spec(key: ServerKey, command: tuple[str, ...] = SLEEPER, **changed: object) -> LaunchSpec:
    values: dict[str, object] = {
        "key": key,
        "user_name": "ada",
        "command": command,
        "public_path": "/user/ada/",
        "base_url": "/",
        "secret_env": "MY_SECRET",
        "secret": SECRET,
    }
    return LaunchSpec(**{**values, **changed})  # type: ignore[arg-type]


async def launched(driver: ProcessDriver, spec: LaunchSpec) -> str:
    await driver.prepare(spec)
    target = await driver.reserve(spec)
    await driver.start(spec)
    return target


async def exited(driver: ProcessDriver, key: ServerKey) -> None:
    async def ended() -> bool:
        return (await driver.inspect(key)).state == "exited"

    await eventually(ended)


async def test_every_call_twice_is_as_good_as_once(driver: ProcessDriver, key: ServerKey) -> None:
    wanted = spec(key, tuple(HTTP_SERVER))
    for _ in range(2):
        await driver.prepare(wanted)
    target = await driver.reserve(wanted)
    assert await driver.reserve(wanted) == target
    first, second = await driver.start(wanted), await driver.start(wanted)
    assert (first.state, first.target) == (second.state, second.target) == ("running", target)
    assert len(of(key.server_id)) == 1
    await eventually(lambda: processes.port_taken(int(target.rpartition(":")[2])))
    assert await driver.owns_target(key) is True
    for _ in range(2):
        assert (await driver.stop(key, 5)).state in ("exited", "absent")
    assert not of(key.server_id)
    for _ in range(2):
        await driver.remove(key)
        await driver.purge(key.server_id)
    assert await driver.survey() == []


async def test_twenty_starts_at_once_are_one_process(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    other = ProcessDriver(tmp_path)
    wanted = spec(key)
    await driver.prepare(wanted)
    await driver.reserve(wanted)
    seen = await asyncio.gather(*(d.start(wanted) for _ in range(10) for d in (driver, other)))
    assert {observed.state for observed in seen} == {"running"}
    assert len(of(key.server_id)) == 1
    await other.close()


DYING_SPAWNER = """
import asyncio, sys
from pathlib import Path
from orrery_spawner.drivers.base import LaunchSpec, ServerKey
from orrery_spawner.drivers.process import ProcessDriver
async def main():
    driver = ProcessDriver(Path(sys.argv[1]))
    spec = LaunchSpec(key=ServerKey(sys.argv[2], 1), user_name="ada", command=tuple(sys.argv[3:]), public_path="/",
                      base_url="/", secret_env="", secret="")
    await driver.prepare(spec)
    await driver.reserve(spec)
    await driver.start(spec)
asyncio.run(main())
"""


@pytest.mark.invariant(6)
async def test_killed_right_after_the_fork(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    """The spawner is gone before the server has even recorded itself; the next one looks at that very moment."""
    env = {**os.environ, "ORRERY_FAILPOINTS": "spawner.after_fork=kill"}
    arguments = [sys.executable, "-c", DYING_SPAWNER, str(tmp_path), key.server_id, *SLEEPER]
    done = await asyncio.to_thread(subprocess.run, arguments, env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    observed = await driver.start(spec(key))
    assert observed.state == "running"
    assert len(of(key.server_id)) == 1


async def test_adopted_servers_are_watched_and_ended(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", DYING_SPAWNER, str(tmp_path), key.server_id, *SLEEPER]
    assert (await asyncio.to_thread(subprocess.run, arguments, check=False)).returncode == 0
    (server,) = of(key.server_id)
    heard: list[ServerKey] = []
    driver.on_exit(heard.append)
    (observed,) = await driver.survey()
    assert (observed.key, observed.state) == (key, "running")
    server.kill()
    await eventually(lambda: heard == [key])
    after = await driver.inspect(key)
    assert (after.state, after.exit_code, after.vanished) == ("exited", None, False), "nobody of us was its parent"


async def test_a_reused_pid_is_not_taken_for_the_server(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    await launched(driver, spec(key))
    folder = files.GenerationFolder(tmp_path / "servers", key)
    record = folder.record(1)
    assert record is not None
    assert record.alive
    innocent = files.ProcessRecord(
        pid=os.getpid(), mark=record.mark, boot=record.boot, attempt=1, port=record.port, started_at=record.started_at
    )
    assert not innocent.alive
    processes.signal_group(innocent, signal.SIGKILL)  # would have killed the test


async def test_exit_codes_are_kept(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    await launched(driver, spec(key, ("sh", "-c", "echo last words; exit 7")))
    await exited(driver, key)
    assert (await driver.inspect(key)).exit_code == 7
    assert await driver.logs(key, 5) == ["last words"]
    successor = ProcessDriver(tmp_path)
    assert (await successor.inspect(key)).exit_code == 7
    await successor.close()
    (again,) = await driver.survey()
    assert (await driver.start(spec(key))) == again, "what has ended is not started again within its generation"


async def test_a_command_that_cannot_be_executed(driver: ProcessDriver, key: ServerKey) -> None:
    await launched(driver, spec(key, ("no-such-program", "{port}")))
    await exited(driver, key)
    observed = await driver.inspect(key)
    assert observed.launch_error == "cannot execute 'no-such-program': No such file or directory"


async def test_stop_ends_what_will_not_end_and_what_has_left_the_group(driver: ProcessDriver, key: ServerKey) -> None:
    stubborn = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    await launched(driver, spec(key, ("{python}", "-c", stubborn)))

    async def is_up() -> bool:
        return await driver.logs(key, 1) == ["up"]

    await eventually(is_up)
    assert len(of(key.server_id)) == 2
    observed = await driver.stop(key, 0.3)
    assert (observed.state, observed.exit_code) == ("exited", -signal.SIGKILL)
    assert not of(key.server_id)


async def test_stop_is_kind_first(driver: ProcessDriver, key: ServerKey) -> None:
    polite = "trap 'echo goodbye; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    await launched(driver, spec(key, ("sh", "-c", polite)))

    async def is_up() -> bool:
        return await driver.logs(key, 1) == ["up"]

    await eventually(is_up)
    assert (await driver.stop(key, 10)).exit_code == 0
    assert await driver.logs(key, 1) == ["goodbye"]


async def test_remove_refuses_what_runs(driver: ProcessDriver, key: ServerKey) -> None:
    await launched(driver, spec(key))
    with pytest.raises(DriverUnavailable, match="still runs"):
        await driver.remove(key)
    await driver.purge(key.server_id)
    assert (await driver.inspect(key)).state == "running"


@pytest.mark.invariant(8)
async def test_what_a_server_gets_to_see(tmp_path: Path, key: ServerKey) -> None:
    platform = {
        "PATH": os.environ["PATH"],
        "LC_TIME": "de_DE.UTF-8",
        "ORRERY_SECRET_KEY": "platform secret",
        "ORRERY_DATABASE_URL": "postgresql://u:p@h/d",
        "AWS_SECRET_ACCESS_KEY": "also secret",
        "HTTPS_PROXY": "http://user:password@proxy",
        "HOME": "/root",
    }
    driver = ProcessDriver(tmp_path, environ=platform)
    target = await launched(driver, spec(key, (*SLEEPER, "{port}", "{base_url}", "{home}", "{user}", "{not_ours} {}")))
    (server,) = of(key.server_id)
    await eventually(lambda: "launcher.py" not in " ".join(server.cmdline()))
    env = server.environ()
    home = str(tmp_path / "homes" / "ada")
    port = target.rpartition(":")[2]
    assert server.cmdline()[3:] == [port, "/", home, "ada", "{not_ours} {}"]
    assert not [word for word in server.cmdline() if SECRET in word]
    assert env["MY_SECRET"] == SECRET
    assert (env["HOME"], env["USER"], env["PORT"], env["ORRERY_BASE_URL"]) == (home, "ada", port, "/user/ada/")
    assert env["LC_TIME"] == "de_DE.UTF-8"
    assert env["ORRERY_SERVER_ID"] == key.server_id
    assert {name for name in env if name.startswith("ORRERY_")} == {
        "ORRERY_SERVER_ID",
        "ORRERY_GENERATION",
        "ORRERY_BASE_URL",
    }
    for secret in ("platform secret", "u:p@", "also secret", "password@proxy"):
        assert secret not in str(env)
    assert env["JUPYTER_RUNTIME_DIR"].startswith(home)
    assert os.stat(home).st_mode & 0o777 == 0o700  # noqa: PTH116
    assert server.cwd() == home
    assert os.getsid(server.pid) == server.pid
    fds = Path(f"/proc/{server.pid}/fd")
    await eventually(lambda: {fd.readlink().name for fd in fds.iterdir()} == {"null", "server.log", "lock-1"})
    await driver.close()


async def test_what_cannot_be_started(driver: ProcessDriver, key: ServerKey) -> None:
    for wrong in (spec(key, ()), spec(key, secret_env="NOT POSSIBLE"), spec(key, secret_env="HOME")):
        await driver.prepare(wrong)
        await driver.reserve(wrong)
        with pytest.raises(LaunchRefused):
            await driver.start(wrong)
    for name in ("", "..", "a/b", ".ssh"):
        with pytest.raises(LaunchRefused):
            await driver.prepare(spec(key, user_name=name))
    with pytest.raises(DriverUnavailable, match="nothing is reserved"):
        await driver.start(spec(ServerKey(key.server_id, 9)))
    assert not of(key.server_id)


async def test_a_port_that_something_else_has_taken(driver: ProcessDriver, key: ServerKey) -> None:
    wanted = spec(key)
    target = await launched(driver, wanted)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", int(target.rpartition(":")[2])))
        stranger.listen()
        assert await driver.target_taken(key)
        assert await driver.owns_target(key) is False
    assert not await driver.target_taken(key)
    await driver.stop(key, 1)
    again = await driver.reserve(wanted, attempt=2)
    assert again != target
    assert await driver.reserve(wanted, attempt=2) == again
    assert (await driver.inspect(key)).state == "absent", "of the second attempt there is nothing yet"
    observed = await driver.start(wanted)
    assert (observed.state, observed.target) == ("running", again)


async def test_logs_have_a_bound(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    flood = "import time\nfor n in range(150_000): print('x' * 90, n)\nprint('end', flush=True)\ntime.sleep(600)"
    await launched(driver, spec(key, ("{python}", "-c", flood)))

    async def all_printed() -> bool:
        return await driver.logs(key, 1) == ["end"]

    await eventually(all_printed, timeout_s=20)
    log = tmp_path / "servers" / key.server_id / "g1" / "server.log"
    assert log.stat().st_size > files.LOG_BYTES_MAX
    await driver.housekeep()
    assert log.stat().st_size <= files.LOG_BYTES_KEPT
    assert await driver.logs(key, 1) == ["end"]


async def test_logs_of_earlier_generations_go(driver: ProcessDriver, key: ServerKey, tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        this = ServerKey(key.server_id, generation)
        await launched(driver, spec(this, ("echo", f"generation {generation}")))
        await exited(driver, this)
        await driver.stop(this, 1)
        await driver.remove(this)
    folder = tmp_path / "servers" / key.server_id
    assert [p.name for p in folder.iterdir()] == ["g3"]
    await driver.purge(key.server_id)
    assert not folder.exists()


async def test_closing_does_not_wait_for_a_stop(driver: ProcessDriver, key: ServerKey) -> None:
    await launched(driver, spec(key, ("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done")))

    async def is_deaf() -> bool:
        return await driver.logs(key, 1) == ["deaf"]

    await eventually(is_deaf)
    stopping = asyncio.ensure_future(driver.stop(key, 60))
    await driver.inspect(key)
    started = time.monotonic()
    await driver.close()
    with pytest.raises(DriverUnavailable):
        await stopping
    assert time.monotonic() - started < 5
    assert of(key.server_id), "it goes on running"
