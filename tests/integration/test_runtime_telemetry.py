"""Spans reach a collector, and a collector that is away hinders nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from orrery_events.recorded import Meta
from orrery_runtime import telemetry
from tests.integration.test_runtime_process import Start, start
from tests.support.backbone import NatsServer

__all__ = ["start"]

TRACE_ID = "ab" * 16
PARENT = f"00-{TRACE_ID}-{'cd' * 8}-01"


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        received.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    await runner.cleanup()


async def test_spans_reach_the_collector_at_the_latest_when_the_process_ends(
    start: Start,
    database_url: str,
    nats_server: NatsServer,
    collector: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    url, received = collector
    service = start(database_url=database_url, nats_url=nats_server.url, otlp_endpoint=url)
    ready = await service.ready()
    async with (
        aiohttp.ClientSession(headers={"traceparent": PARENT}) as http,
        http.get(f"{ready['url']}/hub/api/hello?token=secret-value") as answer,
    ):
        assert answer.headers["traceresponse"].split("-")[1] == TRACE_ID
    service.process.send_signal(signal.SIGTERM)
    assert await service.ended() == 0
    spans = {
        span.name: (resource, span)
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    resource, span = spans["GET /hub/api/hello"]
    attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert attributes["service.name"] == "api"
    assert attributes["service.instance.id"] in service.log.read_text()
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == "cd" * 8
    assert not any(b"secret-value" in request.SerializeToString() for request in received)
    (line,) = [line for line in service.lines() if line["event"] == "http_request"]
    assert line["trace_id"] == TRACE_ID, "the log line is found by the trace"


async def test_a_collector_that_is_away_does_not_hold_up_the_end(
    start: Start,
    database_url: str,
    nats_server: NatsServer,
) -> None:
    service = start(database_url=database_url, nats_url=nats_server.url, otlp_endpoint="http://127.0.0.1:9")
    ready = await service.ready()
    async with aiohttp.ClientSession() as http, http.get(f"{ready['url']}/hub/api/hello"):
        pass
    service.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert await service.ended(15) == 0
    assert time.monotonic() - began < 10


def test_a_trace_context_survives_the_log() -> None:
    meta = Meta(traceparent=PARENT)
    with telemetry._TRACER.start_as_current_span("append", context=telemetry.context_from(meta)):
        inside = telemetry.traceparent()
    assert inside.split("-")[1] == TRACE_ID
    assert inside != PARENT
    assert telemetry.traceparent() == ""


@pytest.mark.parametrize("text", ["", "x", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-short-short-01"])
def test_nonsense_is_no_context(text: str) -> None:
    assert telemetry.links_to(text) == []
    with telemetry._TRACER.start_as_current_span("x", context=telemetry.context_of(text)):
        assert len(telemetry.traceparent()) == 55


def test_links_name_the_creation_context() -> None:
    (link,) = telemetry.links_to(PARENT, "")
    assert link.context.trace_id == int(TRACE_ID, 16)


async def test_concurrent_tasks_do_not_mix_their_traces() -> None:
    async def one() -> tuple[str, str]:
        with telemetry._TRACER.start_as_current_span("outer"):
            outer = telemetry.traceparent().split("-")[1]
            await asyncio.sleep(0)
            with telemetry._TRACER.start_as_current_span("inner"):
                return outer, telemetry.traceparent().split("-")[1]

    pairs = await asyncio.gather(*(one() for _ in range(20)))
    assert all(outer == inner for outer, inner in pairs)
    assert len({outer for outer, _ in pairs}) == 20
