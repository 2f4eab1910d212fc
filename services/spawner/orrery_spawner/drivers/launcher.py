"""Becomes the server: the last few milliseconds before its command runs.

The spawner starts this file as a script of its own, with the server's environment, and file descriptor 3 open on the
generation's locked lock file. It records its own pid and start mark (which `exec` keeps), then becomes the command. The
lock stays locked for as long as the server lives. So whoever comes later, even if the spawner was killed between the
fork and any line after it, finds either a record, or a locked lock and soon a record, or a free lock and no process.

Only the standard library, so that it starts in some 15 ms:
`python -I -S launcher.py DIRECTORY ATTEMPT PORT HOME COMMAND…`.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

STATE_FILE = "state.json"
LAUNCH_ERROR_FILE = "launch-error.json"
LOCK_FD = 3
EXIT_CANNOT_EXECUTE = 127
LINUX = sys.platform == "linux"


def start_mark(pid: int) -> str:
    """Text that differs between any two processes that ever have this pid; empty if there is no such process now.

    On Linux: the boot's id and the start time in clock ticks since boot, which no change of the clock moves.
    """
    if not LINUX:
        import psutil  # noqa: PLC0415 (the script runs without it on Linux)

        try:
            return f"created-{psutil.Process(pid).create_time():.2f}"
        except psutil.Error:
            return ""
    fields = _stat_fields(pid)
    return f"{boot_id()}-{fields[19]}" if fields else ""


def is_alive(pid: int, mark: str) -> bool:
    """True if the process that had this mark when it was started still runs."""
    return start_mark(pid) == mark and not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """True for a process that has ended and waits for its parent to look."""
    if not LINUX:
        import psutil  # noqa: PLC0415

        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] in ("Z", "X")


def boot_id() -> str:
    """Names this run of the machine; empty where the system has no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def write_json(path: Path, value: object) -> None:
    """Writes a file that is never seen half-written, by threads at the same time either."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{_thread.get_ident()}")
    draft.write_text(json.dumps(value))
    draft.replace(path)


def close_inherited() -> None:
    """Whatever else the spawner was given open by its own parent is none of the server's business."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 (plain names, and no pathlib walk)
        if int(name) > LOCK_FD:
            # One of them was the listing's own.
            with suppress(OSError):
                os.close(int(name))


def become(directory: Path, attempt: int, port: int, home: str, command: list[str]) -> None:
    """Does not return: the process is the command afterwards, or has ended with EXIT_CANNOT_EXECUTE."""
    # Failure to become a session leader means that we are one already.
    if os.getsid(0) != os.getpid():
        os.setsid()
    pid = os.getpid()
    record = {"pid": pid, "mark": start_mark(pid), "boot": boot_id(), "attempt": attempt, "port": port}
    write_json(directory / STATE_FILE, {**record, "started_at": time.time()})
    close_inherited()
    # Python ignores these, and what is ignored stays ignored through exec.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    doing = f"enter the home folder {home!r}"
    try:
        os.chdir(home)
        doing = f"execute {command[0]!r}"
        os.execvp(command[0], command)  # noqa: S606 (there is no shell on purpose)
    except OSError as error:
        message = f"cannot {doing}: {error.strerror}"
        write_json(directory / LAUNCH_ERROR_FILE, {"attempt": attempt, "message": message})
        os._exit(EXIT_CANNOT_EXECUTE)


if __name__ == "__main__":
    os.set_inheritable(LOCK_FD, True)
    become(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
