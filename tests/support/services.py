"""Services as processes of their own on a test's own database and NATS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orrery_auth.setup import bootstrap_admin
from orrery_events.log import EventLog, create_pool
from orrery_runtime.secrets import EDGE_HEADER, Secrets
from tests.support.wait import eventually

SECRET_KEY = "a secret key of a test, forty characters"
AUTH_KEY = "another secret of a test, forty characters"
PASSWORD = "correct horse battery staple"
NOWHERE = "nats://127.0.0.1:9"
"""A NATS that is down."""
MODULES = {"relay": "orrery_runtime.relay_main"}


class ServiceProcess:
    """One process of one service."""

    def __init__(self, bench: Bench, service: str, slot: str, env: dict[str, str]) -> None:
        self.bench, self.service, self.slot = bench, service, slot
        self.output = bench.root / f"{slot}.log"
        module = MODULES.get(service, f"orrery_{service}.app")
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())"],
                env=bench.environment(service, slot, env),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def run_file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bench.root / "run" / f"{self.slot}.json").read_text())
        return found

    @property
    def url(self) -> str:
        return str(self.run_file["url"])

    async def ready(self) -> ServiceProcess:
        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.slot} ended with {self.process.returncode}: {self.log}")
            return "process_ready" in self.log

        await eventually(is_ready, timeout_s=20, interval_s=0.02)
        return self

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 20)


class Bench:
    """Any number of services on one log."""

    def __init__(self, root: Path, database_url: str, log: EventLog) -> None:
        self.root, self.database_url, self.log = root, database_url, log
        self.nats_url = self.relay_url = NOWHERE
        self.secrets = Secrets(SECRET_KEY)
        self._processes: list[ServiceProcess] = []

    @property
    def edge(self) -> dict[str, str]:
        """The header by which routers prove themselves."""
        return {EDGE_HEADER: self.secrets.edge_proof}

    def environment(self, service: str, slot: str, env: dict[str, str]) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ORRERY_")}
        return {
            **plain,
            "ORRERY_DATABASE_URL": self.database_url,
            "ORRERY_NATS_URL": self.relay_url if service == "relay" else self.nats_url,
            "ORRERY_SECRET_KEY": SECRET_KEY,
            "ORRERY_AUTH_KEY": AUTH_KEY,
            "ORRERY_SLOT": slot,
            "ORRERY_RUN_DIR": str(self.root / "run"),
            "ORRERY_DATA_DIR": str(self.root / "data"),
            "ORRERY_LOG_FORMAT": "json",
            "ORRERY_DRAIN_NOTICE_S": "0.05",
            **env,
        }

    async def start(self, service: str, slot: str = "", **env: str) -> ServiceProcess:
        process = ServiceProcess(self, service, slot or service, env)
        self._processes.append(process)
        return await process.ready()

    async def admin(self, name: str = "ada") -> None:
        await bootstrap_admin(self.database_url, name, PASSWORD)

    def close(self) -> None:
        for one in self._processes:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait(10)
        shutil.rmtree(self.root, ignore_errors=True)


@asynccontextmanager
async def bench_on(database_url: str) -> AsyncIterator[Bench]:
    root = Path(tempfile.mkdtemp(prefix="orrery-services-"))
    (root / "run").mkdir()
    (root / "data").mkdir()
    pool = await create_pool(database_url, application_name="test")
    log = EventLog(pool, producer="test")
    await log.start()
    bench = Bench(root, database_url, log)
    try:
        yield bench
    finally:
        bench.close()
        await log.close()
        await pool.close()
