"""Slots and the forking process, with real processes in them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orrery_cli.supervisor import logs as log_files
from orrery_cli.supervisor import slot as slots
from orrery_cli.supervisor.children import Child, Spec
from orrery_cli.supervisor.logs import Logs
from orrery_cli.supervisor.preload import Preloader
from orrery_cli.supervisor.slot import Slot
from tests.support.wait import eventually


class Bench:
    """Starts processes of tests/support/children.py and reads what they noted."""

    def __init__(self, folder: Path, *, forks: bool = True) -> None:
        self.notes_dir = folder / "notes"
        self.notes_dir.mkdir()
        self.preloader = Preloader(wanted=forks)
        self.death_fd, self.held = os.pipe()
        self.output = folder / "out.log"
        self.said: list[str] = []
        self.started: list[Child] = []

    async def start(self, function: str) -> Child:
        env = {"NOTES": str(self.notes_dir), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)}
        env |= {"ORRERY_DEATH_FD": str(self.death_fd), "SECRET_IN_ENV": "only-here"}
        spec = Spec(
            target=f"tests.support.children:{function}",
            name="orrery-test-1",
            title=("orrery", "serve", "test"),
            env=env,
        )
        output = os.open(self.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            child = await self.preloader.start(spec, output=output, death_fd=self.death_fd)
        finally:
            os.close(output)
        self.started.append(child)
        return child

    async def note(self, pid: int) -> dict[str, Any]:
        file = self.notes_dir / f"{pid}.json"
        await eventually(file.exists, timeout_s=20)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def slot(self, function: str, **options: Any) -> Slot:
        options = {"stop_timeout_s": 15.0, **options}
        return Slot("test-1", "test", lambda: self.start(function), note=self.said.append, **options)

    def close(self) -> None:
        for child in self.started:
            child.send_signal(signal.SIGKILL)
        self.preloader.close()
        os.close(self.death_fd)


@pytest.fixture(params=["forked", "program"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Both ways of starting a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        bench = Bench(tmp_path, forks=request.param == "forked")
        yield bench
        bench.close()


@pytest.fixture
async def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    bench = Bench(tmp_path)
    yield bench
    bench.close()


async def test_a_process_is_one_of_its_own(bench: Bench) -> None:
    child = await bench.start("sleeper")
    note = await bench.note(child.pid)
    assert note["pid"] == note["sid"] == child.pid, "a session of its own: Ctrl-C in the terminal is not for it"
    assert note["threads"] == 1
    assert note["environment"]["SECRET_IN_ENV"] == "only-here"
    assert "PYTEST_CURRENT_TEST" not in note["environment"]
    child.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(child.wait(), 10) == 0
    child.send_signal(signal.SIGTERM)  # and nothing happens


async def test_how_it_ended_is_known(bench: Bench) -> None:
    child = await bench.start("fails")
    assert await asyncio.wait_for(child.wait(), 20) == 7
    assert "the thing is broken" in bench.output.read_text()
    child = await bench.start("raises")
    assert await asyncio.wait_for(child.wait(), 20) == 1
    assert "RuntimeError: deliberately" in bench.output.read_text()
    child = await bench.start("sleeper")
    await bench.note(child.pid)
    child.send_signal(signal.SIGKILL)
    assert await asyncio.wait_for(child.wait(), 10) == -signal.SIGKILL


async def test_it_ends_with_its_supervisor(bench: Bench) -> None:
    child = await bench.start("mourner")
    await bench.note(child.pid)
    os.close(bench.held)
    assert await asyncio.wait_for(child.wait(), 10) == 0


async def test_forks_look_like_programs_of_their_own(forked: Bench) -> None:
    first, second = await forked.start("sleeper"), await forked.start("sleeper")
    notes = [await forked.note(child.pid) for child in (first, second)]
    for note in notes:
        assert note["cmdline"] == ["orrery", "serve", "test"]
        assert note["comm"] == "orrery-test-1"
        assert len(note["open"]) <= 6, "output three times, the death pipe, the folder that was listed"
    assert notes[0]["uuid"] != notes[1]["uuid"], "forks do not share the state of random numbers"


async def test_the_forking_process_may_die(forked: Bench) -> None:
    before = await forked.start("sleeper")
    await forked.note(before.pid)
    parent = psutil.Process(before.pid).parent()
    assert parent is not None
    parent.kill()
    parent.wait(10)
    assert psutil.pid_exists(before.pid), "what it started lives on"
    after = await forked.start("sleeper")
    await forked.note(after.pid)
    assert (psutil.Process(after.pid).parent() or parent).pid != parent.pid
    before.send_signal(signal.SIGKILL)
    assert await asyncio.wait_for(before.wait(), 10) in (None, -signal.SIGKILL), "its end is seen all the same"


async def test_a_slot_replaces_what_dies_at_once_and_then_more_slowly(bench: Bench) -> None:
    slot = bench.slot("sleeper")
    await slot.open()
    assert slot.identity
    first = slot.identity.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: slot.identity is not None and slot.identity.pid != first, timeout_s=20)
    assert slot.identity
    assert bench.said == [
        f"test-1 (pid {first}) was killed by SIGKILL",
        f"test-1 started again as pid {slot.identity.pid}",
    ]
    await slot.close()
    assert slot.deaths == 1
    assert not psutil.pid_exists(bench.started[-1].pid)


async def test_a_slot_does_not_spin_on_what_always_fails(forked: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "BACKOFF_S", (0.0, 30.0))
    slot = forked.slot("fails")
    await slot.open()
    await eventually(lambda: slot.deaths == 2, timeout_s=20)
    assert slot.last_end == "ended with code 7"
    await asyncio.wait_for(slot.close(), 5)
    assert len(forked.said) == 3, "died, started again, died; not a third time"


async def test_a_stubborn_process_is_killed_in_the_end_or_at_once_when_hurried(forked: Bench) -> None:
    slot = forked.slot("stubborn", stop_timeout_s=0.3)
    await slot.open()
    assert slot.identity
    await forked.note(slot.identity.pid)
    await asyncio.wait_for(slot.close(), 10)

    slot = forked.slot("stubborn", stop_timeout_s=60)
    await slot.open()
    assert slot.identity
    await forked.note(slot.identity.pid)
    hurry = asyncio.Event()
    closing = asyncio.create_task(slot.close(hurry=hurry))
    hurry.set()
    await asyncio.wait_for(closing, 10)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logs:
    monkeypatch.setattr(log_files, "FILE_BYTES_MAX", 1000)
    return Logs(tmp_path)


def test_log_files_have_a_bound(small: Logs) -> None:
    handle = small.open("api-1")
    for number in range(5):
        os.write(handle, f"{number} ".encode() * 600)
        small.rotate("api-1")
    os.write(handle, b"last words\n")
    os.close(handle)
    assert small.last_line("api-1") == "last words"
    names = sorted(path.name for path in small.folder.iterdir())
    assert names == ["api-1.log", "api-1.log.1", "api-1.log.2"]
    assert small.path("api-1").stat().st_size == len("last words\n")
    assert {path.stat().st_mode & 0o777 for path in small.folder.iterdir()} == {0o600}


async def test_the_live_view_shows_whole_lines_of_every_slot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Logs(tmp_path)
    api, router = logs.open("api"), logs.open("router-1")
    os.write(api, b"before\n")
    showing = asyncio.create_task(logs.show())
    await asyncio.sleep(0)
    os.write(api, b"half a ")
    os.write(router, b"one\ntwo\n")
    shown = ""

    def seen(text: str) -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return text in shown

    await eventually(lambda: seen("two"))
    os.write(api, b"line\n")
    await eventually(lambda: seen("half a line"))
    showing.cancel()
    assert shown.splitlines() == ["router-1 | one", "router-1 | two", "api      | half a line"]
    os.close(api)
    os.close(router)


def test_the_forking_process_imports_everything_without_a_thread() -> None:
    """A thread that an import starts would be missing in every fork."""
    code = """
import importlib, threading
from orrery_cli.proxy import run
from orrery_cli.supervisor import preload
for module in (*preload.MODULES, *run.MODULES): importlib.import_module(module)
import os
assert threading.active_count() == 1, threading.enumerate()
assert len(os.listdir("/proc/self/task")) == 1, "a native thread"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
