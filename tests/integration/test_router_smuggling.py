"""Request smuggling: nothing reaches a real upstream but what the router authorised, however a request is spelled."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support.backbone import PostgresServer
from tests.support.routers import Bench
from tests.support.smuggling import requests, sequences
from tests.support.smuggling.answers import Got, read_answers
from tests.support.smuggling.requests import Probe
from tests.support.smuggling.upstreams import UPSTREAMS, Recorder, Seen, missing
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-smuggling"),
    pytest.mark.timeout(90),
]

FAMILIES = {**requests.FAMILIES, **sequences.FAMILIES}
REFUSALS = (400, 405, 413, 414, 431, 501)
HEAD_BYTES_MAX, BODY_BYTES_MAX = 8192, 100_000
COUNTER = re.compile(r'^orrery_router_requests_refused_total\{code="\d+"\} ([\d.]+)$', re.MULTILINE)
NUMBERS = itertools.count(1)


class Stage:
    """One router before every upstream that can be had, each of them under ada's name and under bob's."""

    def __init__(self, bench: Bench, recorders: dict[str, Recorder], http: aiohttp.ClientSession) -> None:
        self.bench, self.recorders, self.http = bench, recorders, http

    def seen(self, kind: str, canary: str) -> list[Seen]:
        return [seen for seen in self.recorders[kind].read() if canary in seen.target]

    async def refusals(self) -> float:
        async with self.http.get(self.bench.routers[0].ops_url + "/metrics") as answer:
            return sum(float(number) for number in COUNTER.findall(await answer.text()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Stage]:
    root: Path = tmp_path_factory.mktemp("smuggling")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, AsyncExitStack() as stack:
        recorders: dict[str, Recorder] = {}
        bob = await bench.person("bob")
        for kind, upstream in UPSTREAMS.items():
            if missing(kind):
                continue
            recorders[kind] = await stack.enter_async_context(upstream(root))
            for owner in (bench.ada, bob):
                await bench.route(recorders[kind].url, owner=owner, server=kind)
        await bench.router(
            ORRERY_HEAD_BYTES_MAX=str(HEAD_BYTES_MAX),
            ORRERY_MAX_BODY_BYTES=str(BODY_BYTES_MAX),
        )
        async with aiohttp.ClientSession() as http:
            yield Stage(bench, recorders, http)
    await postgres.drop_database(url)


def filled(text: str, words: dict[str, str]) -> str:
    """A template with its words, then with the lengths of what they were put into."""
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    text = re.sub(r"\{length:(.*?)\}", lambda m: str(len(m[1])), text, flags=re.DOTALL)
    return re.sub(r"\{hex:(.*?)\}", lambda m: f"{len(m[1]):x}", text, flags=re.DOTALL)


async def visit(stage: Stage, kind: str, canary: str) -> None:
    """The next request to the same server gets its own answer: nothing of an earlier one is left over."""
    path = f"/user/ada/{kind}/{canary}"
    cookie = stage.bench.ada.cookie["Cookie"]
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    (got,) = read_answers(await stage.bench.raw(request.encode()), ["GET"])
    assert (got.status, got.body.decode()) == (200, f"GET {path}"), "the answer to the next request"
    await eventually(lambda: stage.seen(kind, canary))


async def run(stage: Stage, kind: str, probe: Probe) -> int:
    """Sends it; the number of refusals that the router must have counted. Raises AssertionError."""
    canary = f"canary{next(NUMBERS)}x"
    words = {
        "prefix": f"/user/ada/{kind}",
        "here": f"/user/ada/{kind}/{canary}",
        "there": f"/user/bob/{kind}/smuggled-{canary}",
        "cookie": stage.bench.ada.cookie["Cookie"],
    }
    answer = await stage.bench.raw(filled(probe.text, words).encode("latin-1"), end=probe.ends)
    got = read_answers(answer, [*probe.methods, "GET"][: max(1, len(probe.statuses))])
    await visit(stage, kind, f"canary{next(NUMBERS)}x")
    check_answers(probe, got)
    check_seen(probe, stage.seen(kind, canary), words, got)
    return sum(answer.status in REFUSALS for answer in got)


@pytest.mark.parametrize("kind", UPSTREAMS)
@pytest.mark.parametrize("family", FAMILIES)
async def test_an_upstream_sees_what_was_authorised_and_nothing_else(stage: Stage, family: str, kind: str) -> None:
    if reason := missing(kind):
        pytest.skip(reason)
    failed: dict[str, str] = {}
    counted = await stage.refusals()
    for name, probe in FAMILIES[family].items():
        try:
            refused = await run(stage, kind, probe)
        except (AssertionError, TimeoutError) as error:
            failed[name] = f"{type(error).__name__} {error}".partition("\n")[0]
            counted = await stage.refusals()
            continue
        if await stage.refusals() != counted + refused:
            failed[name] = f"{await stage.refusals() - counted} refusals were counted and not {refused}"
        counted = await stage.refusals()
    assert not failed, "\n\n".join(f"{name}: {why}" for name, why in failed.items())


def check_answers(probe: Probe, got: list[Got]) -> None:
    if probe.statuses == ((),):
        assert all(answer.status in (400, 408) for answer in got)
        return
    fits = [answer.status in allowed for answer, allowed in zip(got, probe.statuses, strict=False)]
    assert got, "no answer"
    assert all(fits), f"{probe.statuses} and not {[answer.status for answer in got]}"
    closes = got[-1].values(b"connection") == [b"close"]
    assert len(got) == len(probe.statuses) or closes, f"{len(got)} answers to {len(probe.statuses)} requests"
    for answer in got:
        if answer.status in (400, 431):
            assert answer.values(b"connection") == [b"close"], "what follows cannot be trusted"
        assert not answer.values(b"set-cookie")
        assert not answer.values(b"x")


def check_seen(probe: Probe, seen: list[Seen], words: dict[str, str], got: list[Got]) -> None:
    wanted = [(method, filled(target, words), filled(body, words)) for method, target, body in probe.passed]
    whole = [(one.method, one.target, one.body) for one in seen if one.body is not None]
    broken = [one for one in seen if one.body is None]
    passed = any(answer.status == 200 for answer in got)
    complete = len(got) == len(probe.statuses)
    assert whole == (wanted if passed else []) or (not complete and whole == wanted[: len(whole)]), seen
    assert probe.begun or not broken, seen
    assert all((one.method, one.target) == ("POST", words["here"]) for one in broken), seen
    assert {one.forwarded_for for one in seen if one.body is not None} <= {"127.0.0.1"}
    assert {one.host for one in seen if one.body is not None} <= {probe.host, "X" if probe.host == "x" else probe.host}
