"""The short way of a request: whole in one piece, let pass, answered in one piece, and nothing else happens meanwhile.

Most requests are like that, and this is where they go through as few steps as they can. Nothing is made for them: what
an `Exchange` would hold are four values of the client's connection (`_under_way`). Nothing is left out either:

- A request that was let pass before, byte by byte, goes on as it did then if its leave still holds (`Decider.again`:
  the route, the identities, the place it comes from, the time). What it says cannot have changed; what follows can.
- A head that llhttp has accepted as that of a whole response with a length need not be parsed again to know where that
  response ends; it goes on as it did then. It counts only if the piece that came is exactly that long.

Whatever else happens while a request is under way (an answer that is unknown, in pieces, too long or of another kind; a
second request; a client or a server that leaves; a slow reader; the clock; the end of the router) puts it on the long
way (`take_long_way`): an `Exchange` in the very state in which it would be, had it been there from the beginning.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from orrery_router.domain import plain_path
from orrery_router.lines import Line
from orrery_router.passing import Peer
from orrery_router.plan import Plan, Repeat

from .answers import NO_ANSWER, KnownAnswer
from .head import NO_FIELDS, BadRequest, Fields, Head

if TYPE_CHECKING:
    from .arrival import Arrival
    from .exchange import Exchange
    from .server import DataPlane
    from .upstream import Upstream

NOBODY: Final = Peer("", trusted=False)
END_OF_HEAD: Final = b"\r\n\r\n"
NOTHING: Final[tuple[bytes, Fields, Sequence[Line]]] = (b"\n", NO_FIELDS, ())
SHORT_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"POST", b"PUT", b"PATCH"})


class ShortWay(asyncio.Protocol, ABC):
    """What a client's connection (`Client`) needs for it."""

    transport: asyncio.Transport | None = None
    writable = True
    quiet = True
    """Between two requests: what comes now is the beginning of one."""
    _current: Exchange | None = None
    _block = b""
    """The header lines, if what is being parsed is one head that came in one piece."""
    _last: tuple[bytes, Fields, Sequence[Line]] = NOTHING
    """The block of the last request, what it says, and its lines that were set aside; the next is often the same."""
    _repeat: Repeat | None = None
    """The last request that may come again."""
    _known: KnownAnswer = NO_ANSWER
    """The last answer that could come again."""
    _pipe: Upstream | None = None
    """After a switch of protocols: where every byte goes, whatever it is; and whose use of it that is."""
    _pipe_server_id = ""
    _under_way: tuple[Head, Plan, bytes, Upstream] | None = None
    """The request that is on the short way: what was sent of it to whom, and by what plan for requests like it."""

    def __init__(self, server: DataPlane, arrival: Arrival, peer: Peer | None) -> None:
        """`peer`: where its transport does not say it."""
        self.server, self.arrival = server, arrival
        self.peer = peer or NOBODY
        self.last_at = monotonic()

    def data_received(self, data: bytes) -> None:
        if self._pipe is not None:
            self._pipe.write(data)
            self.server.activity.touch(self._pipe_server_id)
            return
        if self._under_way is not None:
            self.take_long_way()
        self.last_at = monotonic()
        if not self.quiet:
            self.received(data)
            return
        repeat, server = self._repeat, self.server
        if repeat is None or repeat.data != data:
            repeat = server.repeats.find(data)
        if repeat is not None and self.writable:
            sent = server.gateway.again(repeat, self.peer.place)
            if sent is not None and self._send(repeat.head, repeat.plan, sent):
                self._repeat = repeat
                return
        if data[-4:] == END_OF_HEAD:
            self._one_head(data)
        else:
            self.received(data)

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Bytes that take the long way."""

    @abstractmethod
    def begin(self, head: Head) -> Exchange:
        """A request that takes the long way, and is whole."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection once what was written is out."""

    def _send(self, head: Head, plan: Plan, sent: bytes) -> bool:
        """False: there is no connection at hand. `sent`: the request's head, which is all of it."""
        upstream = self.server.pool.take(plan.targets[0], fresh=False)
        if upstream is None or upstream.transport is None:
            return False
        self.quiet = False
        self._under_way = (head, plan, sent, upstream)
        upstream.shortcut = self
        upstream.transport.write(sent)
        return True

    def _one_head(self, data: bytes) -> None:
        """What may be one head and nothing else."""
        block, fields, varying = self._last
        end = data.find(b"\r\n")
        line = data[:end]
        known: Fields | None = fields
        if len(data) - end - 2 != len(block) or not data.endswith(block):
            block = data[end + 2 :]
            known = self.server.known.find(block)
            varying = ()
            if known is None and (read := self.server.known.read(block)) is not None:
                known, varying = read
            if known is not None:
                self._last = (block, known, varying)
        if known is not None and line[-9:] == b" HTTP/1.1" and len(data) <= self.server.bounds.head_bytes_max:
            method, _, target = line[:-9].partition(b" ")
            path = plain_path(target, self.server.base_url)
            if path is not None and method in SHORT_METHODS:
                self.quiet = False
                self._begin(Head(method, target, known, path, varying), data)
                return
        # One head and nothing after it: what llhttp makes of it is worth to be remembered.
        self._block = block if line and block.find(END_OF_HEAD) == len(block) - 4 else b""
        self.received(data)
        self._block = b""

    def _begin(self, head: Head, data: bytes) -> None:
        """A head that is known to be whole, and all there is."""
        gateway = self.server.gateway
        try:
            decision = gateway.decide(head, self.peer, last_look=False)
        except BadRequest as error:
            exchange = self.begin(head)
            exchange.refuse(error.status, error.message)
            return
        if isinstance(decision, Plan) and head.method == b"GET" and self.writable and decision.is_simple:
            repeat = gateway.repeat(data, head, decision)
            if repeat is not None and self.server.repeats.learn(data, repeat):
                self._repeat = repeat
            if self._send(head, decision, decision.head):
                return
            # An exchange crosses out the targets that fail.
            decision = decision.of(decision.head)
        exchange = self.begin(head)
        exchange.follow(decision)

    def answered(self, upstream: Upstream, data: bytes) -> None:
        """What came from where the request went."""
        known, server, transport = self._known, self.server, self.transport
        if len(data) != known.size or not data.startswith(known.head):
            found = server.answers.find(data[: data.find(END_OF_HEAD) + 4])
            known = self._known = found or NO_ANSWER
        if self._under_way is None or len(data) != known.size or server.draining or transport is None:
            self.take_long_way()
            upstream.data_received(data)
            return
        head, plan, _, _ = self._under_way
        self._under_way = upstream.shortcut = None
        way, lines, keep_alive = plan.way, known.lines, head.fields.keep_alive
        if not keep_alive:
            lines = lines[:-2] + b"Connection: close\r\n\r\n"
        if lines is not known.head:
            data = lines + data[len(known.head) :]
        if self.arrival.answer_header:
            data = self.arrival.marked(data)
        if not transport.is_closing():
            transport.write(data)
        now = monotonic()
        server.pool.release(upstream, now)
        if known.status < 300:
            server.activity.touch(way.server_id)
        server.tally.add(known.status // 100, way.kind, now - self.last_at)
        self.last_at = now
        if keep_alive:
            self.quiet = True
        else:
            self.close()

    def forget(self) -> None:
        """What this connection remembers by itself: there are many that idle."""
        self._repeat, self._known, self._last = None, NO_ANSWER, NOTHING

    def take_long_way(self) -> None:
        """Something happens that the short way does not know."""
        if self._under_way is not None:
            head, plan, sent, upstream = self._under_way
            self._under_way = None
            exchange = self.begin(head)
            exchange.take_over(plan.of(sent), upstream)
