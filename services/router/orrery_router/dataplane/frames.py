"""Where a WebSocket's frames end (RFC 6455 §5.2), so that one of our own can be put between two of them."""

from __future__ import annotations

from typing import Final

from .limits import FRAMES_PER_PIECE_MAX

CLOSE: Final = 8
OPCODE: Final = 0x0F
MASKED: Final = 0x80
LOST: Final = -1


class Frames:
    """Follows the lengths in the headers of one direction's frames and looks at nothing else; it changes no byte.

    A piece that is one frame, or lies within one, costs a comparison or two. A piece of very many tiny frames is not
    worth being followed, and a server that sends such ones would have the router count instead of pass on: then the
    place in the stream is lost for good, and `between` is never true again.
    """

    __slots__ = ("_header", "_left")

    def __init__(self) -> None:
        self._left = 0
        """Bytes until the next frame begins, or LOST."""
        self._header = b""
        """What came of a header that was cut in two."""

    @property
    def between(self) -> bool:
        """True: everything so far was whole frames, none of which ends the connection."""
        return self._left == 0 and not self._header

    def feed(self, data: bytes) -> None:
        """What came next."""
        left, size = self._left, len(data)
        if size <= left:
            self._left = left - size
        elif left == 0 and 1 < size == data[1] + 2 < 128 and data[0] & OPCODE != CLOSE and not self._header:
            return  # One small frame, as most are.
        elif left != LOST:
            self._follow(data, left)

    def _follow(self, data: bytes, at: int) -> None:
        """`at`: where the next frame begins."""
        if self._header:
            data, self._header = self._header + data, b""
        size = len(data)
        for _ in range(FRAMES_PER_PIECE_MAX):
            if at >= size:
                self._left = at - size
                return
            begin, at = at, _end(data, at)
            if at == 0:
                self._header, self._left = data[begin:], 0
                return
            if data[begin] & OPCODE == CLOSE:
                break  # Nothing may follow it.
        else:
            if at == size:
                self._left = 0
                return
        self._left, self._header = LOST, b""


def _end(data: bytes, at: int) -> int:
    """Where the frame that begins at `at` ends; 0: its header is not whole."""
    if at + 2 > len(data):
        return 0
    length = data[at + 1] & ~MASKED
    body = at + (2 if length < 126 else 4 if length == 126 else 10)
    if data[at + 1] & MASKED:
        body += 4  # No server should; but its length is its length.
    if body > len(data):
        return 0
    if length < 126:
        return body + length
    return body + int.from_bytes(data[at + 2 : at + (4 if length == 126 else 10)], "big")
