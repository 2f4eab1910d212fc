"""`make run` in a fresh copy of the sources, with nothing installed and nobody's home folder to lean on."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orrery_cli import web
from tests.support.wait import eventually
from tests.tidy.sources import ROOT, tracked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "UV_CACHE_DIR", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")
"""What says where packages come from; pip's own configuration is kept too."""


def copy_sources(to: Path) -> None:
    """What a clone would hold."""
    for path in tracked():
        target = to / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def environment(home: Path) -> dict[str, str]:
    uv = [str(Path(sys.executable).with_name("uv")), "cache", "dir"]
    cache = subprocess.run(uv, capture_output=True, text=True, check=False).stdout.strip()
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PIP_")}
    user_config = Path.home() / ".config" / "pip" / "pip.conf"
    # Downloads may come from where this machine keeps them; nothing else does.
    return {
        **({"PIP_CONFIG_FILE": str(user_config)} if user_config.exists() else {}),
        **({"UV_CACHE_DIR": cache} if cache else {}),
        **kept,
        "HOME": str(home),
        "PYTHON": sys.executable,
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    """The database runs as an unprivileged user when this runs as root, and must be able to get there."""
    root = Path(tempfile.mkdtemp(prefix="orrery-clone-"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root, ignore_errors=True)


async def test_make_run(folder: Path) -> None:
    """The packages of run.lock are all that it needs: what the tests install on top is not there."""
    clone, home, data = folder / "orrery", folder / "home", folder / "data"
    home.mkdir()
    copy_sources(clone)
    output = folder / "output.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(
            ["make", "run", f"ARGS=--port 0 --routers 1 --data-dir {data}"],
            cwd=clone,
            env=environment(home),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def link() -> re.Match[str] | None:
        said = output.read_text()
        assert process.poll() is None or pytest.fail(f"make run ended with {process.returncode}:\n{said}")
        return re.search(r"http://\S+/hub/setup/\S+", said)

    try:
        found = await eventually(link, timeout_s=240, interval_s=0.2)
        assert found
        assert (await web.get(found.group())).status == 200
        assert "Installing into .venv" in output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        code = await asyncio.to_thread(process.wait, 60)
    assert code in (0, 2, -signal.SIGINT), output.read_text()
    assert "Stopped in" in output.read_text()
