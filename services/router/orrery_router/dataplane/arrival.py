"""What the connections of one listener have in common, and whom a connection is from. Pure."""

from __future__ import annotations

from typing import Final

from orrery_router.passing import Networks, Peer, is_in, networks_of

from .proxy_protocol import Source

UNIX: Final = "unix"
"""Among the trusted proxies: whoever may open a unix socket of ours."""
PEERS_MAX: Final = 4096
MAPPED: Final = "::ffff:"
"""How an IPv4 address looks on a socket for both families."""


class Trust:
    """Whose word is believed about where a request comes from."""

    def __init__(self, text: str) -> None:
        """`10.0.0.0/8, ::1, unix`. Raises ValueError that names the part that is none."""
        parts = [part.strip() for part in text.split(",")]
        self.unix = UNIX in parts
        self.networks: Networks = networks_of(",".join(part for part in parts if part != UNIX))

    def covers(self, address: str) -> bool:
        """An empty address is that of a unix socket's peer."""
        return is_in(address, self.networks) if address else self.unix


class Arrival:
    """One listener, as requests that come by it need to know it."""

    __slots__ = ("_peers", "answer_header", "port", "secure", "trust")

    def __init__(self, trust: Trust, *, secure: bool = False, port: int = 0, hsts_max_age_s: int = 0) -> None:
        """`port`: 0 for a unix socket."""
        self.trust, self.secure = trust, secure
        self.port = b"%d" % port if port else b""
        self.answer_header = (
            b"Strict-Transport-Security: max-age=%d\r\n" % hsts_max_age_s if secure and hsts_max_age_s else b""
        )
        """A line of every answer's head, with its end; or nothing."""
        self._peers: dict[str, Peer] = {}
        """By address: the same ones come again and again."""

    def marked(self, answer: bytes) -> bytes:
        """An answer with that line, before all others of its head: a browser heeds the first of its name."""
        return answer.replace(b"\r\n", b"\r\n" + self.answer_header, 1) if self.answer_header else answer

    def peer(self, peername: object) -> Peer:
        """Of a connection, from what its socket says."""
        address = peername[0] if isinstance(peername, tuple) else ""
        known = self._peers.get(address)
        if known is None:
            if len(self._peers) >= PEERS_MAX:
                self._peers.clear()
            plain = address.removeprefix(MAPPED)
            known = Peer(plain, trusted=self.trust.covers(plain), secure=self.secure, port=self.port)
            self._peers[address] = known
        return known

    def told(self, peer: Peer, source: Source) -> Peer:
        """The same after a trusted proxy's PROXY protocol header."""
        address = source.address.removeprefix(MAPPED) if "." in source.address else source.address
        return Peer(
            address or peer.address,
            trusted=self.trust.covers(address) if address else peer.trusted,
            secure=peer.secure or source.tls,
            port=b"%d" % source.port if source.port else peer.port,
        )
