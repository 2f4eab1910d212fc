"""Publishing rows with the compare-and-set that keeps sequence and position equal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util import types

from .. import subjects
from ..errors import UnknownEventType
from ..heartbeat import HEADS_HEADER, encode_heads
from ..ids import derived_id, new_id
from ..quick_client import QuickClient
from ..recorded import Recorded, to_headers

BATCH_MAX = 500
"""Messages of one atomic batch; NATS takes up to 1,000."""
ATOMIC_MIN = 65
"""Fewer are sent each for itself: NATS makes a folder and files for every atomic batch, and deletes them again."""
ACK_TIMEOUT_S = 5.0
PIPELINE_MAX = 64
"""Messages sent before an answer is waited for, at most; as many of the stream's last ones are proven by `Settler`."""
LINKS_MAX = 128

EXPECTED_LAST_SEQUENCE = "Nats-Expected-Last-Sequence"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"

_WRONG_LAST_SEQUENCE = 10071
_ATOMIC_DISABLED = 10174
_BATCH_ERRORS = frozenset({10174, 10175, 10176, 10177, 10199})
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]+")
_propagator = TraceContextTextMapPropagator()


class WrongLastSequence(Exception):
    """The stream does not end where we thought."""


class Overloaded(Exception):
    """NATS takes no more at the moment (429, or a limit of the account or disk)."""


class Message(msgspec.Struct, frozen=True):
    """A row on its way to the stream."""

    position: int
    subject: str
    headers: dict[str, str]
    data: bytes
    traceparent: str
    type: str


def subject_of(recorded: Recorded) -> str:
    """Where the row is published. A type that this release does not know, or an id that would mean something to NATS,
    is represented by a hash of its stream."""
    try:
        aggregate_id = recorded.event().aggregate_id()
    except (UnknownEventType, msgspec.MsgspecError):
        aggregate_id = ""
    if not _SAFE_ID.fullmatch(aggregate_id):
        aggregate_id = derived_id("aggregate", aggregate_id or recorded.stream_id)
    return subjects.event_subject(recorded.type, aggregate_id)


def message_of(recorded: Recorded, heads: Mapping[str, int]) -> Message:
    """`heads`: category sequences as of the row's position, itself included."""
    headers = to_headers(recorded)
    headers[HEADS_HEADER] = encode_heads(heads)
    return Message(
        recorded.position,
        subject_of(recorded),
        headers,
        recorded.data,
        recorded.meta.traceparent,
        recorded.type,
    )


class Publisher:
    """Publishes on one connection. Either stores all messages at exactly their positions or raises; what was stored
    before an error stays, which the next look at the stream shows. Of no use after an error."""

    def __init__(self, client: QuickClient, *, traced: bool) -> None:
        self._client = client
        self._traced = traced
        version = client.connected_server_version
        self.atomic = (version.major, version.minor) >= (2, 12)
        self._inbox = client.new_inbox()
        self._answers: dict[str, Msg] = {}
        """By the subject that they came to."""
        self._awaited = 0
        self._complete = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def on(cls, client: QuickClient, *, traced: bool = False) -> AsyncIterator[Publisher]:
        """`traced`: spans are made of what is sent, which costs as much again. Raises nats.errors.Error and OSError."""
        self = cls(client, traced=traced)
        # One subscription for all answers: each that comes or goes costs NATS what it remembers of all others.
        subscription = await client.subscribe_inline(f"{self._inbox}.*", self._receive)
        try:
            yield self
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    async def publish(self, messages: Sequence[Message]) -> None:
        """Consecutive positions. Raises WrongLastSequence, Overloaded, nats.errors.Error, OSError."""
        with _spans(messages) if self._traced else contextlib.nullcontext():
            try:
                if self.atomic and len(messages) >= ATOMIC_MIN:
                    await self._batch(messages)
                else:
                    await self._pipeline(messages)
            except nats.js.errors.APIError as error:
                raise _translate(error) from error

    async def _batch(self, messages: Sequence[Message]) -> None:
        """One atomic batch (NATS ADR-50). Only the commit asks for an answer, which also speaks for the rest."""
        batch_id = new_id()
        try:
            for number, message in enumerate(messages, 1):
                headers = {**message.headers, BATCH_ID: batch_id, BATCH_SEQUENCE: str(number)}
                if number == 1:
                    headers[EXPECTED_LAST_SEQUENCE] = str(message.position - 1)
                if number < len(messages):
                    await self._client.publish(message.subject, message.data, headers=headers)
                else:
                    headers[BATCH_COMMIT] = "1"
                    answer = await self._client.request(
                        message.subject, message.data, timeout=ACK_TIMEOUT_S, headers=headers
                    )
                    _check_answer(answer, message)
        except nats.js.errors.APIError as error:
            if error.err_code not in _BATCH_ERRORS:
                raise
            self.atomic = self.atomic and error.err_code != _ATOMIC_DISABLED
            await self._pipeline(messages)

    async def _pipeline(self, messages: Sequence[Message]) -> None:
        """Each with its own compare-and-set and its own answer: after the first that is refused all later ones are,
        too, unless somebody else's message took its place.

        nats-py's `publish_async` is not used: its futures have no time limit, a lost answer holds its slot for ever,
        and an error that NATS answers never reaches the future.
        """
        for start in range(0, len(messages), PIPELINE_MAX):
            await self._pipe(messages[start : start + PIPELINE_MAX])

    async def _pipe(self, messages: Sequence[Message]) -> None:
        replies = [f"{self._inbox}.{message.position}" for message in messages]
        self._answers, self._awaited = {}, len(messages)
        self._complete.clear()
        for message, reply in zip(messages, replies, strict=True):
            headers = {**message.headers, EXPECTED_LAST_SEQUENCE: str(message.position - 1)}
            await self._client.publish(message.subject, message.data, reply=reply, headers=headers)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await self._complete.wait()
        for message, reply in zip(messages, replies, strict=True):
            answer = self._answers.get(reply)
            if answer is None:
                raise nats.errors.TimeoutError
            _check_answer(answer, message)

    async def _receive(self, answer: Msg) -> None:
        self._answers[answer.subject] = answer
        if len(self._answers) >= self._awaited:
            self._complete.set()


def _check_answer(answer: Msg, message: Message) -> None:
    """Raises unless the message was stored at exactly its position."""
    if not answer.data:
        # A status without a body: nobody takes messages for this subject.
        raise nats.js.errors.NoStreamResponseError
    body = json.loads(answer.data)
    if "error" in body:
        raise nats.js.errors.APIError.from_error(body["error"])
    if body.get("seq") != message.position:
        # The stream is not the one we think it is, or it takes no notice of the expected sequence.
        raise WrongLastSequence(f"stored at {body.get('seq')} instead of {message.position}")


def _translate(error: nats.js.errors.APIError) -> Exception:
    if error.err_code == _WRONG_LAST_SEQUENCE:
        return WrongLastSequence(error.description or "")
    if error.code in (429, 500, 503):
        return Overloaded(error.description or str(error))
    return error


@contextmanager
def _spans(messages: Sequence[Message]) -> Iterator[None]:
    """A `send` span: child of the append for a single message, one with links for a batch."""
    contexts = [_propagator.extract({"traceparent": m.traceparent}) for m in messages[:LINKS_MAX] if m.traceparent]
    if not contexts:
        yield
        return
    attributes: types.Attributes = {
        "messaging.system": "nats",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.template": f"{subjects.EVENT_ROOT}.{{category}}.{{id}}.{{fact}}",
        "messaging.batch.message_count": len(messages),
    }
    links = [Link(trace.get_current_span(context).get_span_context()) for context in contexts]
    tracer = trace.get_tracer("orrery.relay")
    if len({link.context.trace_id for link in links}) == 1:
        # All of one append, or of one click: its trace goes on here.
        name = f"send {messages[0].type}" if len(messages) == 1 else "send events"
        span = tracer.start_as_current_span(
            name, context=contexts[0], kind=SpanKind.CLIENT, attributes=attributes, links=links
        )
    else:
        span = tracer.start_as_current_span("send events", kind=SpanKind.CLIENT, attributes=attributes, links=links)
    with span:
        yield
