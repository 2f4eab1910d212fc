"""Traces: one from the click through the log and the bus to the first routed request.

Without a collector configured, spans are not recorded, but their ids are still made and carried, so that log lines of
one click can be found on every process. The SDK and its exporter are imported only when there is a collector.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util import types
from opentelemetry.util._decorator import _agnosticcontextmanager

from orrery_events.recorded import Meta

from .version import version

NAMESPACE = "orrery"
EXPORT_TIMEOUT_S = 5
QUEUE_SPANS_MAX = 2048
FLUSH_TIMEOUT_S = 3.0
PARENT_AGE_MAX_S = 60.0
"""An event older than this is linked, not continued: a trace is not kept open for ever."""

_propagator = TraceContextTextMapPropagator()
_providers: list[TracerProvider] = []


def configure(service: str, instance_id: str, *, otlp_endpoint: str = "") -> None:
    """Sets the process's tracer provider. OpenTelemetry allows one, so later calls change nothing."""
    if _providers:
        return
    provider = _exporting(service, instance_id, otlp_endpoint) if otlp_endpoint else _PropagatingProvider()
    trace.set_tracer_provider(provider)
    _providers.append(provider)


def shutdown() -> None:
    """Sends what is still queued, for at most FLUSH_TIMEOUT_S, in a thread that cannot hold up the process's end."""
    for stop in [p.shutdown for p in _providers if hasattr(p, "shutdown")]:
        thread = threading.Thread(target=stop, name="telemetry-flush", daemon=True)
        thread.start()
        thread.join(FLUSH_TIMEOUT_S)


def tracer() -> Tracer:
    """Starts spans: `with tracer().start_as_current_span("spawn process", kind=SpanKind.INTERNAL): …`."""
    return trace.get_tracer("orrery", version())


def traceparent() -> str:
    """W3C `traceparent` of the current span, or nothing outside one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")


def context_of(value: str) -> Context:
    """The context that a `traceparent` names; an empty one if it names none."""
    return _propagator.extract({"traceparent": value} if value else {}, context=Context())


def context_from(source: Meta | Mapping[str, str]) -> Context:
    """The context in which an event was appended (its log meta), or that came with a request or message's headers."""
    if isinstance(source, Meta):
        return context_of(source.traceparent)
    return context_of(source.get("traceparent", ""))


def links_to(*traceparents: str) -> list[Link]:
    """Links to the spans that the values name; invalid and empty ones are left out."""
    contexts = [trace.get_current_span(context_of(value)).get_span_context() for value in traceparents]
    return [Link(context) for context in contexts if context.is_valid]


@contextmanager
def processing(operation: str, meta: Meta, *, age_s: float, attributes: types.Attributes = None) -> Iterator[Span]:
    """A span around handling one live event: linked to the span that appended it, and its child while that is recent.

    `age_s`: seconds since the event was recorded. Not for replay, which has one span of its own.
    """
    parent = context_from(meta) if age_s < PARENT_AGE_MAX_S else None
    with tracer().start_as_current_span(
        operation, context=parent, kind=SpanKind.CONSUMER, links=links_to(meta.traceparent), attributes=attributes
    ) as span:
        yield span


def _exporting(service: str, instance_id: str, endpoint: str) -> TracerProvider:
    # Together these cost 0.2 s and 15 MB, which a process without a collector need not pay.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider as RecordingProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create(
        {
            "service.namespace": NAMESPACE,
            "service.name": service,
            "service.instance.id": instance_id,
            "service.version": version(),
        }
    )
    provider = RecordingProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=1000)
    )
    return provider


class _PropagatingProvider(TracerProvider):
    """Makes span ids and carries them; records nothing."""

    def get_tracer(self, *_args: Any, **_kwargs: Any) -> Tracer:
        return _TRACER


class _PropagatingTracer(Tracer):
    def start_span(self, name: str, context: Context | None = None, *_args: Any, **_kwargs: Any) -> Span:  # noqa: ARG002
        parent = trace.get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else random.getrandbits(128) or 1
        flags = parent.trace_flags if parent.is_valid else TraceFlags(TraceFlags.SAMPLED)
        return NonRecordingSpan(SpanContext(trace_id, random.getrandbits(64) or 1, is_remote=False, trace_flags=flags))

    @_agnosticcontextmanager
    def start_as_current_span(
        self, name: str, context: Context | None = None, *_args: Any, **_kw: Any
    ) -> Iterator[Span]:
        with trace.use_span(self.start_span(name, context), record_exception=False, set_status_on_exception=False) as s:
            yield s


_TRACER = _PropagatingTracer()
