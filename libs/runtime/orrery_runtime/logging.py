"""Structured logs: one JSON object per line, or columns on a terminal, on standard error.

An event name is a constant snake_case phrase; what varies is in fields:

    log = structlog.get_logger("orrery.spawner")
    log.info("server_ready", server_id=server_id, duration_s=1.3)

Every line carries service, instance and, inside a trace, trace_id and span_id. Everything passes the redaction, lines
of the standard library's logging included.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import Any, Literal, TextIO, cast

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from .redaction import redact

Format = Literal["auto", "json", "console"]
CAUSES_MAX = 10
QUIET_LOGGERS = {"asyncio": logging.WARNING, "aiohttp.access": logging.CRITICAL, "nats": logging.WARNING}
"""Least level per library; the HTTP kit writes its own line per request."""

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(
    service: str, instance_id: str, *, level: str = "info", fmt: Format = "auto", stream: TextIO | None = None
) -> structlog.stdlib.BoundLogger:
    """Sets up logging of the whole process and returns the service's logger. May be called again."""
    sink = _Sink(stream or sys.stderr)
    console = fmt == "console" or (fmt == "auto" and sink.stream.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _identify(service, instance_id),
        _add_trace,
        _add_exception,
        _redact,
        _render_console if console else _render_json,
    ]
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *args: _Sink(sink.stream, name=args[0] if args else ""),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [*(h for h in root.handlers if not isinstance(h, _Bridge)), _Bridge(processors, sink)]
    root.setLevel(number)
    for name, least in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(number, least))
    logging.captureWarnings(capture=True)
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(f"orrery.{service}"))


class _Sink:
    """Writes whole lines. A reader that went away loses lines; it must not end the process."""

    def __init__(self, stream: TextIO, *, name: str = "") -> None:
        self.stream = stream
        self.name = name

    def msg(self, line: str) -> None:
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = fatal = exception = log = msg


class _Bridge(logging.Handler):
    """Sends records of the standard library's logging through the same processors."""

    def __init__(self, processors: list[Processor], sink: _Sink) -> None:
        super().__init__()
        self._processors = processors
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: Any = {"event": "library_log", "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                line["exc_info"] = record.exc_info
            for processor in self._processors:
                line = processor(self._sink, record.levelname.lower(), line)
            self._sink.msg(line)
        except Exception:  # noqa: BLE001 (logging must not raise into the code that logs)
            self.handleError(record)


def _identify(service: str, instance_id: str) -> Processor:
    def add(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["timestamp"] = datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds")
        event.setdefault("service", service)
        event.setdefault("instance", instance_id)
        if logger.name:
            event.setdefault("logger", logger.name)
        return event

    return add


def _add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _add_exception(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    if info is None and method == "exception":
        info = True
    error: BaseException | None = None
    if isinstance(info, BaseException):
        error = info
    elif isinstance(info, tuple):
        error = info[1]
    elif info:
        error = sys.exc_info()[1]
    if error is not None:
        event["causes"] = causes(error)
        event["exception"] = "".join(traceback.format_exception(error))
    return event


def causes(error: BaseException) -> list[str]:
    """The exception and what led to it, outermost first: `["LogUnavailable: …", "ConnectionRefusedError: …"]`."""
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None and len(chain) < CAUSES_MAX:
        chain.append(f"{type(current).__name__}: {current}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return cast("EventDict", redact(event))


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in ("timestamp", "level", "service", "event") if key in event}
    return _encoder.encode({**ordered, **event}).decode()


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}
_HIDDEN_ON_CONSOLE = ("instance", "logger", "trace_id", "span_id", "causes")


def _render_console(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """`12:03:04.123 info    router  server_ready  server_id=… duration_s=1.3`"""
    at, level = str(event.pop("timestamp", ""))[11:23], str(event.pop("level", ""))
    name, service = str(event.pop("event", "")), str(event.pop("service", ""))
    exception = event.pop("exception", "")
    for key in _HIDDEN_ON_CONSOLE:
        event.pop(key, None)
    fields = " ".join(f"{key}={value}" for key, value in event.items())
    head = f"{at} \x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m{service:<8} {name}"
    return "\n".join(part for part in (f"{head}  {fields}".rstrip(), str(exception).rstrip()) if part)
