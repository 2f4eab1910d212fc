"""Settings that the command line reads by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orrery_cli.datadir import DataDir
from orrery_cli.supervisor.lifetime import service_stop_timeout_s
from orrery_cli.supervisor.logs import Logs
from orrery_cli.supervisor.preload import Preloader
from orrery_cli.supervisor.services import Backends, Services
from orrery_runtime.config import Settings
from orrery_runtime.stopping import STEP_TIMEOUT_S, stop_timeout_s


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ORRERY_")]:
        monkeypatch.delenv(name)


def test_a_service_may_take_as_long_as_it_was_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def bound() -> float:
        settings = Settings.load()
        return stop_timeout_s(
            drain_notice_s=settings.drain_notice_s,
            drain_timeout_s=settings.drain_timeout_s,
            websocket_drain_s=settings.websocket_drain_s,
        )

    assert service_stop_timeout_s() == bound() == 10.5 + 2 * STEP_TIMEOUT_S
    monkeypatch.setenv("ORRERY_WEBSOCKET_DRAIN_S", "120")
    assert service_stop_timeout_s() == bound() == 120.5 + 2 * STEP_TIMEOUT_S
    file = tmp_path / "orrery.toml"
    file.write_text("drain_timeout_s = 300\ndrain_notice_s = 2\n")
    monkeypatch.setenv("ORRERY_CONFIG", str(file))
    assert service_stop_timeout_s() == bound() == 302 + 2 * STEP_TIMEOUT_S
    for wrong in ("soon", "inf", "nan", "-1"):
        monkeypatch.setenv("ORRERY_DRAIN_NOTICE_S", wrong)
        assert service_stop_timeout_s() == 300.5 + 2 * STEP_TIMEOUT_S, "the services tell the mistake"


def test_and_is_not_killed_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORRERY_WEBSOCKET_DRAIN_S", "120")
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    services = Services(
        data_dir,
        Backends(database_url_file=tmp_path, nats_url_file=tmp_path, relay_nats_url_file=tmp_path),
        Logs(data_dir.logs),
        Preloader(wanted=False),
        host="127.0.0.1",
        port=1,
        death_fd=0,
        note=lambda _: None,
        moved=lambda: None,
    )
    assert {slot.stop_timeout_s for slot in services.slots(2)} == {140.5}
