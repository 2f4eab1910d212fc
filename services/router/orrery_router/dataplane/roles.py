"""What the data plane asks of those who decide for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orrery_router.passing import Peer
    from orrery_router.plan import Miss, Plan
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


class Witness(Protocol):
    """Is told what was used."""

    def touch(self, server_id: str) -> None: ...
