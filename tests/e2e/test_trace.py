"""One click, one trace: from the start request through the log and the bus to the route on every router."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.platform import Platform
from tests.support.wait import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Collector:
    """A real OTLP/HTTP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.linked: dict[str, set[str]] = defaultdict(set)
        self.raw = bytearray()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.trace_id.hex()].append((service, span.name))
                    for link in span.links:
                        self.linked[link.trace_id.hex()].add(service)
        return web.Response(body=b"", content_type="application/x-protobuf")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield collector
    await runner.cleanup()


async def test_a_click_is_one_trace_through_every_service(collector: Collector) -> None:
    platform = Platform(env={"ORRERY_OTLP_ENDPOINT": collector.url})
    trace_id = secrets.token_hex(16)
    traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    try:
        await platform.start()
        async with platform.sign_in() as ada:
            headers = {"Authorization": f"token {ada.token}", "traceparent": traceparent}
            async with (
                aiohttp.ClientSession(platform.url) as http,
                http.post("/hub/api/users/ada/server", headers=headers) as answer,
            ):
                assert answer.status in (201, 202)
            await ada.ready_server()
            assert (await ada.fetch("/user/ada/api/status"))[0] == 200

            wanted = {"api", "relay", "spawner", "router"}

            def complete() -> bool:
                services = {service for service, _ in collector.spans[trace_id]}
                routers = [name for service, name in collector.spans[trace_id] if service == "router"]
                return wanted <= services and sum("route" in name for name in routers) >= platform.routers

            try:
                await eventually(complete, timeout_s=30)
            except (AssertionError, TimeoutError):
                raise AssertionError(f"the trace holds only {sorted(collector.spans[trace_id])}") from None
            assert ada.token.encode() not in collector.raw, "no secret in a trace"
            assert b"orrery-session=" not in collector.raw
    finally:
        await asyncio.to_thread(platform.stop)
