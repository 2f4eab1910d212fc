"""The slots of our own services: what each is given, and where it writes its log."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from orrery_cli.datadir import DataDir
from orrery_cli.given import given, toml

from .children import Child, Spec, clean_environment
from .lifetime import service_stop_timeout_s
from .logs import Logs
from .preload import Preloader
from .slot import Slot

TARGETS: Final = {
    "relay": "orrery_runtime.relay_main:main",
    "auth": "orrery_auth.app:main",
    "api": "orrery_api.app:main",
    "spawner": "orrery_spawner.app:main",
    "router": "orrery_router.app:main",
}
"""Service to its entry point. `orrery serve` runs the same ones."""


class Backends(msgspec.Struct, frozen=True, kw_only=True):
    """How services reach Postgres and NATS: files that hold a URL, so that no password is in an environment."""

    database_url_file: Path
    nats_url_file: Path
    relay_nats_url_file: Path
    """The relay's own NATS user: nobody else may publish events."""


class Services:
    """Makes slots for services."""

    def __init__(
        self,
        data_dir: DataDir,
        backends: Backends,
        logs: Logs,
        preloader: Preloader,
        *,
        host: str,
        port: int,
        death_fd: int,
        note: Callable[[str], None],
        moved: Callable[[], None],
    ) -> None:
        self._data_dir = data_dir
        self._backends = backends
        self._logs = logs
        self._preloader = preloader
        self._public = {"ORRERY_HOST": host, "ORRERY_PORT": str(port)}
        self._death_fd = death_fd
        self._note = note
        self._moved = moved

    def slots(self, routers: int) -> list[Slot]:
        """One of each, and the routers."""
        slots = [self._slot(service, service) for service in ("relay", "auth", "api", "spawner")]
        return [*slots, *(self._slot("router", f"router-{n}") for n in range(1, routers + 1))]

    def _slot(self, service: str, slot: str) -> Slot:
        return Slot(
            slot,
            service,
            self._starter(service, slot),
            note=self._note,
            moved=self._moved,
            stop_timeout_s=service_stop_timeout_s(),
        )

    def _starter(self, service: str, slot: str) -> Callable[[], Awaitable[Child]]:
        spec = Spec(
            target=TARGETS[service],
            name=f"orrery-{slot}",
            title=("orrery", "serve", service),
            env=self.environment(service, slot),
        )

        async def start() -> Child:
            output = self._logs.open(slot)
            try:
                return await self._preloader.start(spec, output=output, death_fd=self._death_fd)
            finally:
                os.close(output)

        return start

    def environment(self, service: str, slot: str) -> dict[str, str]:
        """Everything that a service is told. Secrets are named by file."""
        data_dir, backends = self._data_dir, self._backends
        told = {
            "ORRERY_SLOT": slot,
            "ORRERY_DATA_DIR": str(data_dir.path),
            "ORRERY_RUN_DIR": str(data_dir.run),
            "ORRERY_DEATH_FD": str(self._death_fd),
            "ORRERY_WORKERS": "1",
        }
        files = {
            "database_url": backends.database_url_file,
            "nats_url": backends.relay_nats_url_file if service == "relay" else backends.nats_url_file,
        }
        for name in ("secret_key", *(["auth_key"] if service == "auth" else [])):
            if given(name) is None:
                files[name] = data_dir.generated_secret(name)
        # What the TOML file says, services read there: the same setting in two places is an error.
        toml_names = toml()
        files = {n: f for n, f in files.items() if n not in toml_names and f"{n}_file" not in toml_names}
        if service == "router":
            told |= self._public
        env = clean_environment(told)
        for name, file in files.items():
            env.pop(f"ORRERY_{name.upper()}", None)
            env[f"ORRERY_{name.upper()}_FILE"] = str(file)
        return env
