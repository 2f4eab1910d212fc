"""One request and its answer, between a client's connection and an upstream's."""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Final

from orrery_router import passing
from orrery_router.lines import Header
from orrery_router.plan import Miss, Plan
from orrery_router.replies import Later, Reply, too_large
from orrery_router.target import Target

from . import limits
from .answers import known_answer
from .frames import Frames
from .head import IDEMPOTENT, BadRequest, Head, chunk, last_chunk
from .upstream import EXCESS, Upstream

if TYPE_CHECKING:
    from .connection import Client


BODYLESS: Final = (204, 304)


class Exchange:
    """Made for every request; lives until its answer is written. Implements `Answer`."""

    # Most requests change few of these: what they do not change is not made for them.
    finished = False
    response_begun = False
    waiting_since = 0.0
    """When the whole request was handed on; 0: not yet, or the answer has begun."""
    status = 0
    plan: Plan | None = None
    _upstream: Upstream | None = None
    _task: asyncio.Task[None] | None = None
    _pending: list[bytes] | None = None
    """What came while there was no upstream to send it to."""
    _pending_bytes = 0
    _received = 0
    _body_sent = False
    _chunked_answer = False
    _close_after = False
    _was_short = False  # It was on the short way, which its answer may be worth to be known for.
    frames: Frames | None = None
    """Where the server of a WebSocket is in what it sends."""

    def __init__(self, client: Client, head: Head, *, request_ended: bool) -> None:
        self.client, self.head, self.request_ended = client, head, request_ended
        self.began_at = client.last_at

    # From the client

    def check_and_start(self) -> None:
        try:
            self.head.check()
        except BadRequest as error:
            self.refuse(error.status, error.message)
            return
        self.start()

    def start(self) -> None:
        """Decides and begins. Everything after this happens in callbacks."""
        client = self.client
        try:
            decision = client.server.gateway.decide(self.head, client.peer, last_look=False)
        except BadRequest as error:
            self.refuse(error.status, error.message)
            return
        self.follow(decision)

    def take_over(self, plan: Plan, upstream: Upstream) -> None:
        """Begins where the short way could not go on: the whole request was sent, and nothing came yet."""
        self.plan, self._upstream, self._was_short = plan, upstream, True
        upstream.begin(self)
        self.waiting_since = self.client.last_at

    def request_body(self, data: bytes) -> None:
        if self.finished:
            return
        self._received += len(data)
        plan = self.plan
        if plan is not None and plan.way.body_bytes_max and self._received > plan.way.body_bytes_max:
            self._drop_upstream()
            self.refuse(413, too_large(plan.way.body_bytes_max))
            return
        if plan is not None and plan.way.server_id:
            self.client.server.activity.touch(plan.way.server_id)
        self._send(chunk(data) if self.head.chunked else data)

    def request_end(self, trailers: list[Header]) -> None:
        self.request_ended = True
        if self.finished:
            return
        if self.head.chunked:
            # Before it is decided where they go it is not known what they must not say.
            plan = self.plan
            kept = passing.trailers(trailers, but=plan.way.secret_header) if plan is not None else []
            self._send(last_chunk(kept))
        if self._upstream is not None:
            self.waiting_since = monotonic()

    def client_writable(self, *, writable: bool) -> None:
        if self._upstream is not None:
            self._upstream.pause(paused=not writable)

    def client_gone(self) -> None:
        """Nobody waits for the answer any more."""
        self._drop_upstream()
        self._finish(499)

    def tick(self, now: float) -> None:
        plan = self.plan
        if plan is not None and self.waiting_since and now - self.waiting_since > plan.way.response_timeout_s:
            self._drop_upstream()
            self._unavailable("did not answer in time")

    # Forwarding

    def follow(self, decision: Plan | Reply | Later | Miss) -> None:
        if isinstance(decision, Plan):
            if decision.way.body_bytes_max and self._received > decision.way.body_bytes_max:
                self.refuse(413, too_large(decision.way.body_bytes_max))
                return
            self.plan = decision
            self._forward(decision)
        elif isinstance(decision, Miss):
            self._run(self._look_again())
        else:
            self.reply(decision)

    async def _look_again(self) -> None:
        server = self.client.server
        proven = await server.catch_up()
        if self.finished:
            return
        try:
            decision = server.gateway.decide(self.head, self.client.peer, last_look=True, proven=proven)
        except BadRequest as error:
            self.refuse(error.status, error.message)
            return
        self.follow(decision)

    def _forward(self, plan: Plan) -> None:
        upstream = None
        if not self.head.upgrade:
            upstream = self.client.server.pool.take(plan.targets[0], fresh=self.head.method not in IDEMPOTENT)
        if upstream is None:
            self._run(self._connect(plan))
        else:
            self._attach(upstream, plan)

    async def _connect(self, plan: Plan) -> None:
        while True:
            target = plan.targets[0]
            try:
                upstream = await self.client.server.pool.connect(target, plan.way.connect_timeout_s)
            except (OSError, TimeoutError) as error:
                if self.finished:
                    return
                if self._next_target(plan, target):
                    continue
                self._unreachable(error)
                return
            if self.finished:
                upstream.close()
                return
            self._attach(upstream, plan)
            return

    def _attach(self, upstream: Upstream, plan: Plan) -> None:
        self._upstream = upstream
        upstream.begin(self)
        if not self.client.writable:
            # Answers before this one still wait for a slow reader, who is told only once.
            upstream.pause(paused=True)
        upstream.write(plan.head)
        if self._pending is not None and not self.head.upgrade:
            self._send_kept(upstream)
        if self.request_ended:
            self.waiting_since = self.client.last_at

    def _send(self, data: bytes) -> None:
        if self._upstream is not None:
            self._body_sent = True
            self._upstream.write(data)
        else:
            self.keep(data)

    def keep(self, data: bytes) -> None:
        """For an upstream that has yet to be there or to agree to a switch; refused, no byte may pass for a request."""
        if self._pending is None:
            self._pending = []
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > limits.PENDING_BYTES_MAX:
            self.client.hold("connecting")

    def _send_kept(self, upstream: Upstream) -> None:
        if self._pending is None:
            return
        pending, self._pending, self._pending_bytes = self._pending, None, 0
        for data in pending:
            upstream.write(data)
            self._body_sent = True
        self.client.free("connecting")

    def _next_target(self, plan: Plan, failed: Target) -> bool:
        """True if another instance may be asked."""
        plan.targets = [t for t in plan.targets if t != failed]
        return bool(plan.targets)

    def _unreachable(self, error: BaseException) -> None:
        if isinstance(error, ssl.SSLError):
            self.refuse(502, "No secure connection could be made: the certificate of what answers there is not right.")
        elif isinstance(error, TimeoutError):
            self._unavailable("did not take the connection in time")
        else:
            self._unavailable("cannot be reached")

    def _unavailable(self, reason: str) -> None:
        plan = self.plan
        what = "This server" if plan is not None and not plan.way.trusted else "This part of the platform"
        request_id = plan.request_id if plan else ""
        self.reply(self.client.server.gateway.replies.unavailable(self.head, request_id, f"{what} {reason}."))

    # Answer

    def response_started(self, status: int, head: bytes, body: bytes, *, chunked: bool) -> int:  # noqa: ARG002 (the length says it already)
        plan, request, server = self.plan, self.head, self.client.server
        self.waiting_since = 0.0
        self.status = status
        self.response_begun = True
        passed = passing.from_upstream(head, trusted=plan is None or plan.way.trusted, base_url=server.base_url)
        lines, left, more = passed.lines, passed.length, b"\r\n"
        if plan is not None:
            lines = plan.put_right(lines, status, request.host)
        if self.client.arrival.answer_header:
            lines = self.client.arrival.marked(lines)
        if status in BODYLESS or request.method == b"HEAD":
            left, body = EXCESS if body else 0, b""
        elif left >= 0:
            left -= len(body)
            if left < 0:
                left, body = EXCESS, body[:left]
        elif request.http10:
            self._close_after = True
        else:
            self._chunked_answer, more = True, b"Transfer-Encoding: chunked\r\n\r\n"
            body = chunk(body) if body else b""
        # Nobody reads the rest of a body that was not wanted.
        if request.is_last or not self.request_ended or server.draining:
            self._close_after = True
        if self._close_after:
            more = b"Connection: close\r\n" + more
        self.client.write(b"".join((lines, more, body)))
        if self._was_short and left == 0 and self._upstream is not None and self._upstream.reusable:
            known = known_answer(head, status, passed.lines, len(body))
            if known is not None:
                server.answers.learn(known.head, known)
        return left

    def informational(self, head: bytes) -> None:
        if not self.head.http10:
            passed = passing.from_upstream(head, trusted=False, base_url="/")
            self.client.write(passed.lines + b"\r\n")

    def response_body(self, data: bytes) -> None:
        if not self.finished:
            self.client.write(chunk(data) if self._chunked_answer else data)

    def response_ended(self, trailers: list[Header]) -> None:
        upstream, self._upstream = self._upstream, None
        client, plan = self.client, self.plan
        if self._chunked_answer:
            client.write(last_chunk(passing.trailers(trailers)))
        if upstream is not None:
            # An answer before the whole request was read leaves the connection in an unknown state.
            upstream.detach(reusable=self.request_ended and not self.head.upgrade)
        if self.status < 300 and plan is not None:
            client.server.activity.touch(plan.way.server_id)
        self._finish(self.status)

    def switched(self, head: bytes, rest: bytes) -> bool:
        """101: from now on bytes are bytes."""
        if not self.head.upgrade:
            return False
        self.waiting_since, self.response_begun, self.status = 0.0, True, 101
        trusted = self.plan is not None and self.plan.way.trusted
        passed = passing.from_upstream(head, trusted=trusted, base_url=self.client.server.base_url)
        more = b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % self.head.upgrade
        self.client.write(self.client.arrival.marked(passed.lines) + more)
        self.frames = Frames()
        if rest:
            self.upstream_bytes(rest)
        self.client.splice(self._upstream, self.plan.way.server_id if self.plan is not None else "")
        if self._upstream is not None:
            self._send_kept(self._upstream)
        self.head.forget()
        if self.plan is not None:
            self.plan.head = b""
        return True

    def upstream_bytes(self, data: bytes) -> None:
        if self.client.lingering:
            return
        if self.frames is not None:
            self.frames.feed(data)
        self.client.write(data)
        if self.plan is not None:
            self.client.server.activity.touch(self.plan.way.server_id)

    def upstream_closed(self) -> None:
        self._upstream, self._close_after = None, True
        self._finish(101)

    def upstream_failed(self, reason: str, *, invalid: bool) -> None:
        upstream, self._upstream, plan = self._upstream, None, self.plan
        if self.finished or plan is None:
            return
        if self.response_begun:
            self._close_after = True
            self.client.abort()  # Half an answer must not look like a whole one.
            self._finish(502)
            return
        if upstream is not None and self._may_repeat(plan, upstream):
            self._run(self._connect(plan))
        elif invalid:
            self.refuse(502, f"The server's answer cannot be passed on: {reason}.")
        else:
            request_id = plan.request_id
            self.reply(
                self.client.server.gateway.replies.unavailable(self.head, request_id, f"No answer came: {reason}.")
            )

    def _may_repeat(self, plan: Plan, upstream: Upstream) -> bool:
        """True where sending it again does no harm: on a new connection to the same target if an old one was closed
        under us (a new one is never old), else to the next target (there is one fewer each time)."""
        if self.head.method not in IDEMPOTENT or self._body_sent or self.head.upgrade:
            return False
        return upstream.used > 1 or self._next_target(plan, upstream.target)

    def upstream_writable(self, *, writable: bool) -> None:
        if writable:
            self.client.free("upstream")
        else:
            self.client.hold("upstream")

    # Own answers

    def refuse(self, status: int, message: str) -> None:
        """An answer of our own to a request that goes no further."""
        request_id = self.plan.request_id if self.plan else ""
        close = status in (400, 405, 408, 413, 431)
        if status < 500:
            self.client.server.refused(status)
        self.reply(self.client.server.gateway.replies.page(self.head, status, message, request_id, close=close))

    def reply(self, reply: Reply | Later) -> None:
        if self.finished:
            return
        if isinstance(reply, Later):
            self._run(self._reply_later(reply))
            return
        if self.response_begun:
            self.client.abort()
            self._finish(reply.status)
            return
        self.response_begun = True
        self._close_after = (reply.close or not self.request_ended or self.head.is_last) or self.client.server.draining
        content = reply.content
        if self._close_after and not reply.close:
            content = content.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        self.client.write(self.client.arrival.marked(content))
        self._finish(reply.status)

    async def _reply_later(self, later: Later) -> None:
        self.reply(await later.fetch())

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.detach(reusable=False)
        if self._task is not None:
            self._task.cancel()

    def _run(self, coroutine: object) -> None:
        self._task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]

    def _finish(self, status: int) -> None:
        if not self.finished:
            self.finished = True
            self.client.server.observe(self, status)
            self.client.exchange_finished(self, close=self._close_after)
