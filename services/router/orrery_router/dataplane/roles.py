"""What the data plane asks of those who decide for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orrery_router.passing import Peer
    from orrery_router.plan import Miss, Plan, Repeat
    from orrery_router.replies import Later, Reply

    from .head import Head


class Replier(Protocol):
    """Makes the answers that no upstream gives."""

    def page(
        self, head: Head, status: int, message: str, request_id: str = "", *, close: bool = False
    ) -> Reply | Later:
        """An error. A Reply, never Later, with `close`."""
        ...

    def unavailable(self, head: Head, request_id: str, message: str) -> Reply | Later:
        """503."""
        ...


class Decider(Protocol):
    """Says what becomes of a request."""

    @property
    def replies(self) -> Replier: ...

    def decide(self, head: Head, peer: Peer, *, last_look: bool, proven: bool = True) -> Plan | Reply | Later | Miss:
        """`last_look`: there is nothing left to wait for. `proven`: and it was proven that nothing is missing."""
        ...

    def repeat(self, data: bytes, head: Head, plan: Plan) -> Repeat | None:
        """What must be remembered of a request that may come again. None: it is decided anew each time. `data`: all of
        it; a GET without a body."""
        ...

    def again(self, repeat: Repeat, place: str) -> bytes | None:
        """The same request has come again, from `place` (`Peer.place`): what goes on. None: it must be decided anew."""
        ...


class Witness(Protocol):
    """Is told what was used."""

    def touch(self, server_id: str) -> None: ...
