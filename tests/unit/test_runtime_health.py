"""Checks and the ops port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from orrery_runtime import health as module
from orrery_runtime.health import Health, OpsServer


@pytest.fixture
async def health() -> Health:
    return Health("test")


@pytest.fixture
async def ops(health: Health) -> AsyncIterator[str]:
    server = OpsServer(health, lambda: {"service": "test"})
    await server.start("127.0.0.1", 0)
    yield server.url
    await server.stop()


async def get(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


async def fine() -> str:
    return ""


async def broken() -> str:
    raise OSError("no route")


async def test_ready_only_between_start_and_drain(health: Health, ops: str) -> None:
    assert await get(f"{ops}/readyz") == (503, "starting\n")
    assert (await get(f"{ops}/livez"))[0] == 200
    health.state = "ready"
    assert await get(f"{ops}/readyz") == (200, "ok\n")
    health.state = "draining"
    assert await get(f"{ops}/readyz") == (503, "draining\n")
    assert (await get(f"{ops}/livez"))[0] == 200


async def test_a_required_check_makes_it_unready_and_another_only_degraded(health: Health, ops: str) -> None:
    health.state = "ready"
    health.add("good", fine, code="ORR-X-00")
    health.add("nice", broken, code="ORR-X-01", required=False)
    assert (await get(f"{ops}/readyz"))[0] == 200
    health.add("needed", broken, code="ORR-X-02")
    status, text = await get(f"{ops}/readyz?verbose")
    assert status == 503
    assert text.splitlines() == [
        "[+]good ok",
        "[~]nice degraded: ORR-X-01 OSError: no route",
        "[-]needed failed: ORR-X-02 OSError: no route",
        "ready: not ready",
    ]
    status, body = await get(f"{ops}/status")
    assert (status, body["service"], body["ready"]) == (200, "test", False)
    assert [c["ok"] for c in body["checks"]] == [True, False, False]


async def test_a_check_that_hangs_is_cut_and_probes_share_one_run(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_S", 0.05)
    runs = 0

    async def hangs() -> str:
        nonlocal runs
        runs += 1
        await asyncio.Event().wait()
        return ""

    health.add("hangs", hangs, code="ORR-X-03")
    answers = await asyncio.gather(*(health.results() for _ in range(20)))
    assert runs == 1
    assert all(not a[0].ok and "no answer" in a[0].message for a in answers)


async def test_metrics_are_prometheus_text(ops: str) -> None:
    status, text = await get(f"{ops}/metrics")
    assert status == 200
    assert 'orrery_ready{service="test"} 0.0' in text
