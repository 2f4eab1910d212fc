"""What hostile servers answer, and what their visitors may get of it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Outcome = Literal["refused", "cut", "answered"]
"""502; the connection ends in the middle; passed on."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    raw: bytes
    outcomes: tuple[Outcome, ...] = ("refused",)
    status: int = 200
    body: bytes = b"abcde"
    method: str = "GET"
    closes: bool = False
    """The server ends its connection after it."""
    later: bytes = b""
    """Said when its answer is over and nobody asked."""


OK: Final = b"HTTP/1.1 200 OK\r\n"
FIVE: Final = OK + b"Content-Length: 5\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n"
HINTS: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
SMUGGLED: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nSet-Cookie: smuggled=1\r\n\r\nsmuggled"


def _heads() -> dict[str, Reply]:
    lengths = (b"5, 5", b"+5", b"-5", b"0x5", b"5 5", b"5\x0b", b"", b"5.0", b"18446744073709551621", b"5,6", b'"5"')
    codings = (
        b"xchunked", b"chunked, identity", b"identity", b"identity, chunked", b"gzip, chunked", b"chunked, chunked", b"\x0bchunked",
        b'"chunked"', b"", b"chunked;q=1", b"gzip",
    )  # fmt: skip
    heads = {f"length {v!r}": OK + b"Content-Length: " + v + b"\r\n\r\nabcde" for v in lengths}
    heads |= {f"coding {v!r}": OK + b"Transfer-Encoding: " + v + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n" for v in codings}
    heads |= {
        "two lengths": FIVE + b"Content-Length: 6\r\n\r\nabcdef",
        "length and chunks": FIVE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "chunks and length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "codings": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        "space before the colon": FIVE + b"Transfer-Encoding : chunked\r\n\r\nabcde",
        "tab before the colon": FIVE + b"X\t: y\r\n\r\nabcde",
        "no name": FIVE + b": y\r\n\r\nabcde",
        "no colon": FIVE + b"smuggled\r\n\r\nabcde",
        "NUL": FIVE + b"X: a\x00b\r\n\r\nabcde",
        "control character": FIVE + b"X: a\x01b\r\n\r\nabcde",
        "bare LFs": FIVE.replace(b"\r\n", b"\n") + b"\nabcde",
        "bare LF": FIVE + b"X: y\nSet-Cookie: smuggled=1\r\n\r\nabcde",
        "bare CR": FIVE + b"X: y\rSet-Cookie: smuggled=1\r\n\r\nabcde",
        "bare CR in the reason": b"HTTP/1.1 200 O\rK: smuggled\r\nContent-Length: 5\r\n\r\nabcde",
        "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 5\r\n\r\nabcde",
        "no HTTP": b"smuggled",
        "HTTP/2": b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "ICY": b"ICY 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "letters as a status": b"HTTP/1.1 2OO OK\r\nContent-Length: 5\r\n\r\nabcde",
        "a short status": b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "a long status": b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "no status": b"HTTP/1.1 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "a status of 000": b"HTTP/1.1 000 OK\r\nContent-Length: 5\r\n\r\nabcde",
        "many headers": FIVE + b"X: y\r\n" * 50_000 + b"\r\nabcde",
        "a long header": FIVE + b"X: " + b"y" * 300_000 + b"\r\n\r\nabcde",
        "a header without an end": OK + b"X: " + b"y" * 3_000_000,
        "a first header without an end": b"HTTP/1.1 200 OK\r\nX" + b"y" * 3_000_000,
        "a reason without an end": b"HTTP/1.1 200 " + b"y" * 3_000_000,
        "nothing asked for a switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nsmuggled",
        "a switch and an answer": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + SMUGGLED,
        "a bare switch": b"HTTP/1.1 101 Switching Protocols\r\n\r\nsmuggled",
        "early hints with a length": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 8\r\n\r\nsmuggled" + FIVE + b"\r\nabcde",
        "a flood of early hints": b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 20_000 + FIVE + b"\r\nabcde",
        "a flood of continues": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000 + FIVE + b"\r\nabcde",
    }  # fmt: skip
    # A head that comes after an interim one is looked at no less.
    heads |= {f"early hints, then {name}": HINTS + raw for name, raw in heads.items() if not raw.startswith(HINTS)}
    return {name: Reply(raw=raw) for name, raw in heads.items()}


def _bodies() -> dict[str, Reply]:
    sizes = (
        b"", b"g", b"-5", b"+5", b"0x5", b"5 5", b" 5", b"5\x00", b"10000000000000005", b"5\r", b"5\nX", b"5;a\nb", b"5;\nX", b"5, 5",
    )  # fmt: skip
    cut: tuple[Outcome, ...] = ("cut", "refused")
    bodies = {
        f"chunk size {v!r}": Reply(raw=CHUNKED + b"\r\n" + v + b"\r\nabcde\r\n0\r\n\r\n" + SMUGGLED, outcomes=cut)
        for v in sizes
    }
    for what, chunks in {
        "chunk longer than it says": b"5\r\nabcdefgh\r\n0\r\n\r\n",
        "chunk ends with LF": b"5\r\nabcde\n0\r\n\r\n",
        "chunk ends with nothing": b"5\r\nabcde0\r\n\r\n",
        "size ends with LF": b"5\nabcde\r\n0\r\n\r\n",
        "last line is LF": b"5\r\nabcde\r\n0\r\n\n",
        "LF in a trailer": b"5\r\nabcde\r\n0\r\nX: y\nZ: a\r\n\r\n",
        "NUL in a trailer": b"5\r\nabcde\r\n0\r\nX: \x00\r\n\r\n",
        "trailers without an end": b"5\r\nabcde\r\n0\r\n" + b"X: y\r\n" * 100_000,
        "a trailer without an end": b"5\r\nabcde\r\n0\r\nX: " + b"y" * 3_000_000,
    }.items():
        bodies[what] = Reply(raw=CHUNKED + b"\r\n" + chunks, outcomes=cut)
    bodies["no last chunk"] = Reply(raw=CHUNKED + b"\r\n5\r\nabcde\r\n", outcomes=cut, closes=True)
    bodies["half a chunk"] = Reply(raw=CHUNKED + b"\r\n5\r\nab", outcomes=cut, closes=True)
    bodies["half a body"] = Reply(raw=FIVE + b"\r\nab", outcomes=cut, closes=True)
    return bodies


def _rests() -> dict[str, Reply]:
    """Answers that are passed on, with something behind them that is not."""
    answered: tuple[Outcome, ...] = ("answered",)
    either: tuple[Outcome, ...] = ("answered", "refused")

    def fine(raw: bytes, body: bytes = b"abcde", status: int = 200, **more: object) -> Reply:
        return Reply(raw=raw, outcomes=answered, body=body, status=status, **more)  # type: ignore[arg-type]

    return {
        "an answer behind it": fine(FIVE + b"\r\nabcde" + SMUGGLED),
        "half an answer behind it": fine(FIVE + b"\r\nabcde" + SMUGGLED[:-3]),
        "the beginning of one behind it": fine(FIVE + b"\r\nabcdeHTTP/1.1 200 OK\r\nX-Smuggled: "),
        "bytes behind it": fine(FIVE + b"\r\nabcdesmuggled"),
        "an answer behind chunks": fine(CHUNKED + b"\r\n5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
        "an answer that nobody asked for": fine(FIVE + b"\r\nabcde", later=SMUGGLED),
        "half an answer that nobody asked for": fine(FIVE + b"\r\nabcde", later=SMUGGLED[:-3]),
        "204 with a body": fine(b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nsmuggled", b"", 204),
        "204 with chunks": fine(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nsmuggled\r\n0\r\n\r\n", b"", 204),
        "204 with an answer": fine(b"HTTP/1.1 204 No Content\r\n\r\n" + SMUGGLED, b"", 204),
        "304 with a body": fine(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\nsmuggled", b"", 304),
        "304 with an answer": fine(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n" + SMUGGLED, b"", 304),
        "HEAD with a body": fine(OK + b"Content-Length: 8\r\n\r\nsmuggled", b"", method="HEAD"),
        "HEAD with chunks": fine(CHUNKED + b"\r\n8\r\nsmuggled\r\n0\r\n\r\n", b"", method="HEAD"),
        "HEAD with an answer": fine(OK + b"Content-Length: 5\r\n\r\n" + SMUGGLED, b"", method="HEAD"),
        "the same length twice": Reply(raw=FIVE + b"Content-Length: 5\r\n\r\nabcde", outcomes=either),
        "a folded header": Reply(raw=FIVE + b"X: y\r\n Set-Cookie: z\r\n\r\nabcde", outcomes=either),
        "a header folded by a tab": Reply(raw=FIVE + b"X: y\r\n\tz\r\n\r\nabcde", outcomes=either),
        "two spaces before the status": Reply(raw=FIVE.replace(b" 200", b"  200") + b"\r\nabcde", outcomes=either),
        "HTTP/2.0": Reply(raw=b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde", outcomes=either),
        "HTTP/1.2": Reply(raw=b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nabcde", outcomes=either),
        "a status of 999": Reply(raw=FIVE.replace(b"200", b"999") + b"\r\nabcde", outcomes=either, status=999),
        "a reason above ASCII": fine(FIVE.replace(b"OK", b"\xc3\xb6k") + b"\r\nabcde"),
        "no reason": fine(FIVE.replace(b" OK", b" ") + b"\r\nabcde"),
        "not even a space for one": Reply(raw=FIVE.replace(b" OK", b"") + b"\r\nabcde", outcomes=either),
        "HTTP/1.0": fine(b"HTTP/1.0 200 OK\r\n\r\nabcde", closes=True),
        "HTTP/1.0 with a length": fine(FIVE.replace(b"1.1", b"1.0") + b"\r\nabcde" + SMUGGLED),
        "HTTP/1.0 with chunks": Reply(
            raw=CHUNKED.replace(b"1.1", b"1.0") + b"\r\n5\r\nabcde\r\n0\r\n\r\n", outcomes=either, closes=True
        ),
        "HTTP/1.0 kept alive": fine(FIVE.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\nabcde"),
        "until it closes": fine(OK + b"\r\nabcde", closes=True),
        "early hints": fine(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3 + FIVE + b"\r\nabcde"),
        "close": fine(FIVE + b"Connection: close\r\n\r\nabcde" + SMUGGLED),
        "keep-alive for long": fine(FIVE + b"Connection: keep-alive\r\nKeep-Alive: timeout=99999\r\n\r\nabcde"),
        "listed headers": fine(FIVE + b"Connection: Content-Length, X-Smuggled\r\nX-Smuggled: smuggled\r\n\r\nabcde"),
        "chunk extensions": fine(CHUNKED + b'\r\n5;a="smuggled"\r\nabcde\r\n0;smuggled\r\n\r\n'),
    }  # fmt: skip


REPLIES: Final[dict[str, Reply]] = {**_heads(), **_bodies(), **_rests()}
