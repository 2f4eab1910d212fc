"""The corpus: requests that two parsers might read differently, and what must become of each.

`{here}` is ada's path with a canary in it, `{there}` that of somebody else's server behind the same upstream, `{cookie}`
ada's session. What is not said to be passed on reaches no upstream.
"""

from __future__ import annotations

from typing import Final

import msgspec

Passed = tuple[str, str, str]
"""Method, target, body; `{here}` in the target."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    statuses: tuple[tuple[int, ...], ...] = ((400,),)
    """Of each answer, in order: one of these."""
    methods: tuple[str, ...] = ("POST",)
    """Of the requests that are answered: what HEAD answers has no body."""
    passed: tuple[Passed, ...] = ()
    """Exactly what upstreams see, in order."""
    begun: bool = False
    """Its beginning may be passed on before the mistake comes; it never becomes whole."""
    ends: bool = False
    """The client says no more (sends a FIN)."""
    host: str = "x"


GET: Final = "GET {here} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n"
POST: Final = "POST {here} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n"
CHUNKED: Final = POST + "Transfer-Encoding: chunked\r\n"
LAST: Final = "Connection: close\r\n"
SMUGGLED: Final = "GET {there} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n"
ZERO: Final = "0\r\n\r\n"
BODY: Final = ZERO + SMUGGLED
"""Nothing to who believes in chunks, and then another request; all of it body to who believes in a length."""


def refused(text: str, *statuses: int, begun: bool = False) -> Probe:
    return Probe(text=text, statuses=(statuses or (400,),), begun=begun)


def answered(text: str, method: str, body: str = "", target: str = "{here}") -> Probe:
    """Passed on, once, and nothing else is."""
    return Probe(text=text, statuses=((200,),), methods=(method,), passed=((method, target, body),))


def _lengths() -> dict[str, Probe]:
    values = (
        "1, 1", "5,5", "+5", "-5", "0x5", "5 5", "5_0", "5.0", "5e0", "", " ", "\u00b2", "5\x0b", "\x0c5", '"5"', "5;", "NaN",
        "18446744073709551616", "18446744073709551621", "4294967296 ", "9" * 40, "-0", "5\x00", "5\r",
    )  # fmt: skip
    probes = {f"length {v!r:.30}": refused(POST + f"Content-Length: {v}\r\n\r\n" + BODY, 400, 413) for v in values}
    for first, second in (("5", "5"), ("0", "5"), ("5", "0"), ("5", "+5"), ("", "5"), ("5", "")):
        text = f"{POST}Content-Length: {first}\r\nX: y\r\nContent-Length: {second}\r\n\r\n"
        probes[f"lengths {first!r} and {second!r}"] = refused(text + BODY)
    for name in (
        "Content-Length ", "Content-Length\t", "Content-Length\x0b", "\x00Content-Length", "Content-Length\x00",
        "\x0bContent-Length", "Content Length", "Content-Length\r", "Content\u00adLength",
    ):  # fmt: skip
        probes[f"length named {name!r}"] = refused(POST + f"{name}: 5\r\n\r\n" + BODY)
    probes["folded length"] = refused(POST + "Content-Length:\r\n 5\r\n\r\n" + BODY)
    probes["length folded into another"] = refused(POST + "X: y\r\n Content-Length: 5\r\n\r\n" + BODY)
    probes["length as first line, folded"] = refused(
        "POST {here} HTTP/1.1\r\n Content-Length: 5\r\nHost: x\r\nCookie: {cookie}\r\n\r\n" + BODY
    )
    probes["length and chunks"] = refused(CHUNKED + "Content-Length: 5\r\n\r\n" + BODY)
    probes["chunks and length"] = refused(POST + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY)
    probes["no length and chunks"] = refused(CHUNKED + "Content-Length: 0\r\n\r\n" + BODY)
    probes["chunks and empty length"] = refused(CHUNKED + "Content-Length:\r\n\r\n" + BODY)
    probes["GET with both"] = refused(GET + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY)
    probes["length with white space"] = answered(POST + LAST + "Content-Length: \t 5 \t \r\n\r\nabcde", "POST", "abcde")
    probes["length with zeros"] = answered(POST + LAST + "Content-Length: 0005\r\n\r\nabcde", "POST", "abcde")
    probes["a length that CGI programs would read"] = answered(
        POST + LAST + "Content_Length: 1\r\nContent-Length: 5\r\n\r\nabcde", "POST", "abcde"
    )
    return probes


def _codings() -> dict[str, Probe]:
    values = (
        "chunked, identity", "identity, chunked", "identity", "xchunked", "chunkedx", "chunked,", ",chunked", "\x0bchunked",
        "chunked\x0b", "\x0cchunked", '"chunked"', "'chunked'", "chunked;q=1", "chunked; x", "gzip, chunked", "gzip", "", "\x00chunked",
        "chunked\x00", "chunked\r", "chunked chunked", "chunked, chunked", "chunk", "\u00a0chunked", "chunked\u0085", "ch\u00fcnked", "cow",
    )  # fmt: skip
    probes = {f"coding {v!r}": refused(POST + f"Transfer-Encoding: {v}\r\n\r\n" + BODY, 400, 501) for v in values}
    for value in values[:6]:
        text = f"{POST}Content-Length: 5\r\nTransfer-Encoding: {value}\r\n\r\n"
        probes[f"length and coding {value!r}"] = refused(text + BODY, 400, 501)
    for first, second in (
        ("chunked", "chunked"), ("chunked", "identity"), ("identity", "chunked"), ("", "chunked"), ("chunked", ""),
        ("chunked", "cow"), ("gzip", "chunked"),
    ):  # fmt: skip
        text = f"{POST}Transfer-Encoding: {first}\r\nTransfer-encoding: {second}\r\n\r\n"
        probes[f"codings {first!r} and {second!r}"] = refused(text + BODY, 400, 501)
    for name in (
        "Transfer-Encoding ", "Transfer-Encoding\t", "Transfer-Encoding\x0b", "\x00Transfer-Encoding", "\x0bTransfer-Encoding",
        "Transfer Encoding", "Transfer-Encoding\r", "[Transfer-Encoding", "Transfer-Encoding\x00", "(Transfer-Encoding)",
    ):  # fmt: skip
        text = f"{POST}{name}: chunked\r\nContent-Length: 5\r\n\r\n"
        probes[f"coding named {name!r}"] = refused(text + BODY)
    probes["folded coding"] = refused(POST + "Transfer-Encoding:\r\n chunked\r\n\r\n" + BODY)
    probes["coding folded by a tab"] = refused(POST + "Transfer-Encoding:\r\n\tchunked\r\n\r\n" + BODY)
    probes["coding folded into another"] = refused(POST + "X: y\r\n Transfer-Encoding: chunked\r\n\r\n" + BODY)
    probes["coding after a bare LF"] = refused(POST + "X: y\nTransfer-Encoding: chunked\r\n\r\n" + BODY)
    probes["coding after a bare CR"] = refused(POST + "X: y\rTransfer-Encoding: chunked\r\n\r\n" + BODY)
    probes["coding for HTTP/1.0"] = refused(CHUNKED.replace("HTTP/1.1", "HTTP/1.0") + "\r\n" + BODY)
    probes["coding in any case"] = answered(POST + LAST + "tRANSFER-eNCODING: cHUNKED \r\n\r\n5\r\nabcde\r\n0\r\n\r\n", "POST", "abcde")  # fmt: skip
    probes["a coding that CGI programs would read"] = answered(
        POST + LAST + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "POST", "0\r\n\r\n"
    )
    probes["a listed coding"] = answered(
        POST + "Connection: close, Transfer-Encoding, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        "POST", "abcde",
    )  # fmt: skip
    probes["a listed length"] = answered(
        POST + "Connection: close, Content-Length, Host, Cookie, X-Forwarded-For\r\nContent-Length: 5\r\n\r\nabcde",
        "POST", "abcde",
    )  # fmt: skip
    return probes


def _chunks() -> dict[str, Probe]:
    sizes = (
        "", "-5", "+5", "0x5", " 5", "5 ", "5\t", "5\x0b", "5g", "g", "5_0", "5\x00", "5 5", "5, 5", "10000000000000000",
        "10000000000000005", "80000000000000000005", "5\r", "5;\r", "5;a\nb", "5;a\rb", "5;a=\x00", '5;a="\n"', '5;a="\r\n', "\xb2", "5\n5", "5;\n",
    )  # fmt: skip
    probes = {
        f"chunk size {size!r}": refused(f"{CHUNKED}\r\n{size}\r\nabcde\r\n" + BODY, 400, 413, begun=True)
        for size in sizes
    }
    for what, chunks in {
        "chunk size ends with LF": "5\nabcde\r\n",
        "chunk ends with LF": "5\r\nabcde\n",
        "chunk ends with CR": "5\r\nabcde\r",
        "chunk ends with nothing": "5\r\nabcde",
        "chunk ends with two more": "5\r\nabcdeXY\r\n",
        "chunk longer than it says": "5\r\nabcdefgh\r\n",
        "chunk ends with LF CR": "5\r\nabcde\n\r",
        "chunk size behind an empty line": "\r\n5\r\nabcde\r\n",
    }.items():
        probes[what] = refused(f"{CHUNKED}\r\n{chunks}" + BODY, begun=True)
    for what, end in {
        "last chunk ends with LF": "0\n\r\n", "last chunk ends with LFs": "0\n\n", "last line is LF": "0\r\n\n",
        "last line is CR": "0\r\n\rX", "folded trailer": "0\r\nX: y\r\n z\r\n\r\n", "bare LF in a trailer": "0\r\nX: y\nZ: a\r\n\r\n",
        "trailer without a name": "0\r\n: y\r\n\r\n", "trailer without a colon": "0\r\nnonsense\r\n\r\n", "NUL in a trailer": "0\r\nX: \x00\r\n\r\n",
        "space before a trailer's colon": "0\r\nX : y\r\n\r\n",
    }.items():  # fmt: skip
        probes[what] = refused(f"{CHUNKED}\r\n5\r\nabcde\r\n{end}" + SMUGGLED, begun=True)
    for name in ("Content-Length: 99", "Transfer-Encoding: chunked", "Host: y"):
        text = f"{CHUNKED}{LAST}\r\n5\r\nabcde\r\n0\r\n{name}\r\n\r\n"
        probes[f"trailer {name!r}"] = msgspec.structs.replace(
            answered(text, "POST", "abcde"), statuses=((200, 400),), begun=True
        )
    for what, chunks in {
        "chunk extension": "5;a=b\r\nabcde\r\n0;c\r\n\r\n", "chunk extension, quoted": '5;a="b;c"\r\nabcde\r\n0\r\n\r\n',
        "chunk sizes with zeros": "0000005\r\nabcde\r\n000\r\n\r\n", "chunks of one": "1\r\na\r\n1\r\nb\r\n3\r\ncde\r\n0\r\n\r\n",
    }.items():  # fmt: skip
        probes[what] = answered(f"{CHUNKED}{LAST}\r\n{chunks}", "POST", "abcde")
    for what, text in {
        "no last line": "5\r\nabcde\r\n0\r\n", "no last chunk": "5\r\nabcde\r\n", "half a chunk": "5\r\nab", "no end of the size": "5",
    }.items():  # fmt: skip
        probes[what] = Probe(text=f"{CHUNKED}\r\n{text}", statuses=((),), begun=True, ends=True)
    probes["the largest chunk"] = Probe(
        text=f"{CHUNKED}\r\nFFFFFFFFFFFFFFFF\r\nabcde\r\n{BODY}", statuses=((),), begun=True, ends=True
    )
    probes["half a body"] = Probe(text=POST + "Content-Length: 50\r\n\r\nabcde", statuses=((),), begun=True, ends=True)
    probes["half a head"] = Probe(text=POST, statuses=((),), ends=True)
    probes["no end of the head"] = Probe(text=GET[:-2], statuses=((),), ends=True)
    return probes


def _lines() -> dict[str, Probe]:
    probes: dict[str, Probe] = {}
    for code in (*range(32), 127):
        if chr(code) not in "\t\r\n":
            probes[f"{code:#04x} in a value"] = refused(f"{GET}X: a{chr(code)}b\r\n\r\n")
            probes[f"{code:#04x} in a target"] = refused(GET.replace("{here}", "{here}" + chr(code)) + "\r\n")
            probes[f"{code:#04x} in a name"] = refused(f"{GET}X{chr(code)}: a\r\n\r\n")
    for char in ' \t"(),/;<=>?@[\\]{}\x80\xff':
        probes[f"{char!r} in a name"] = refused(f"{GET}X{char}Y: a\r\n\r\n")
    for what, text in {
        "bare LFs": GET.replace("\r\n", "\n") + "\n",
        "bare LF after the request line": GET.replace("\r\n", "\n", 1) + "\r\n",
        "bare LF after a header": GET + "X: y\nY: z\r\n\r\n",
        "bare LF at the end": GET + "X: y\r\n\n" + SMUGGLED,
        "two bare LFs": GET + "X: y\n\n" + SMUGGLED,
        "bare CR after the request line": GET.replace("\r\n", "\r", 1) + "\r\n",
        "bare CR in a value": GET + "X: y\rY: z\r\n\r\n",
        "bare CR at the end": GET + "X: y\r\r\n" + SMUGGLED,
        "bare CRs at the end": GET + "X: y\r\r" + SMUGGLED,
        "LF CR": GET + "X: y\n\rY: z\r\n\r\n",
        "folded by a space": GET + "X: y\r\n z\r\n\r\n",
        "folded by a tab": GET + "X: y\r\n\tz\r\n\r\n",
        "folded Host": "GET {here} HTTP/1.1\r\nHost:\r\n x\r\nCookie: {cookie}\r\n\r\n",
        "a fold that is empty": GET + "X: y\r\n \r\n" + SMUGGLED,
        "a fold at the beginning": "GET {here} HTTP/1.1\r\n X: y\r\nHost: x\r\nCookie: {cookie}\r\n\r\n",
        "no name": GET + ": y\r\n\r\n",
        "no colon": GET + "nonsense\r\n\r\n",
        "a space in the target": GET.replace("{here}", "{here} x") + "\r\n",
        "a tab in the target": GET.replace("{here}", "{here}\tx") + "\r\n",
        "a tab before the target": GET.replace("GET ", "GET\t") + "\r\n",
        "a tab before the version": GET.replace(" HTTP", "\tHTTP") + "\r\n",
        "space behind the version": GET.replace("HTTP/1.1", "HTTP/1.1 ", 1) + "\r\n",
        "two versions": GET.replace("HTTP/1.1", "HTTP/1.1 HTTP/1.0", 1) + "\r\n",
        "space before the method": " " + GET + "\r\n",
        "method in small letters": GET.replace("GET", "get", 1) + "\r\n",
        "version in small letters": GET.replace("HTTP", "http", 1) + "\r\n",
        "HTTP/0.9": "GET {here}\r\n\r\n",
        "HTTP/0.9 by name": GET.replace("1.1", "0.9", 1) + "\r\n",
        "HTTP/1.2": GET.replace("1.1", "1.2", 1) + "\r\n",
        "HTTP/1.10": GET.replace("1.1", "1.10", 1) + "\r\n",
        "HTTP/01.1": GET.replace("1.1", "01.1", 1) + "\r\n",
        "HTTP/2.0": GET.replace("1.1", "2.0", 1) + "\r\n",
        "HTTP/11": GET.replace("1.1", "11", 1) + "\r\n",
        "ICE/1.0": GET.replace("HTTP/1.1", "ICE/1.0", 1) + "\r\n",
        "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "x" * 64,
        "a byte order mark": "\xef\xbb\xbf" + GET + "\r\n",
        "two Hosts": GET + "Host: y\r\n\r\n",
        "two equal Hosts": GET + "Host: x\r\n\r\n",
        "no Host": GET.replace("Host: x\r\n", "") + "\r\n",
        "a Host with a path": GET.replace("Host: x", "Host: x/y") + "\r\n",
        "a Host with a user": GET.replace("Host: x", "Host: y@x") + "\r\n",
        "a Host with a comma": GET.replace("Host: x", "Host: x, y") + "\r\n",
        "a Host with a space": GET.replace("Host: x", "Host: x y") + "\r\n",
        "a Host that is folded": GET.replace("Host: x", "Host: x\r\n y") + "\r\n",
        "a Host with markup": GET.replace("Host: x", "Host: <b>x") + "\r\n",
        "a Host with a quote": GET.replace("Host: x", 'Host: x"y') + "\r\n",
    }.items():
        probes[what] = refused(text)
    return probes


def _bounds() -> dict[str, Probe]:
    """What is too much, what is not spoken here, and what only looks odd."""
    probes: dict[str, Probe] = {}
    probes["an unknown method"] = refused(GET.replace("GET", "GETS", 1) + "\r\n", 400, 405, 501)
    probes["a tunnel"] = refused("CONNECT x:80 HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n", 405)
    probes["a tunnel to a path"] = refused(GET.replace("GET", "CONNECT", 1) + "\r\n", 400, 405)
    probes["a long value"] = refused(f"{GET}X: {'x' * 9000}\r\n\r\n", 431)
    probes["a long target"] = refused(GET.replace("{here}", "{here}" + "x" * 9000) + "\r\n", 431, 414)
    probes["many headers"] = refused(GET + "X: y\r\n" * 200 + "\r\n", 431)
    probes["a long name"] = refused(f"{GET}X{'x' * 9000}: y\r\n\r\n", 431)
    probes["long trailers"] = refused(
        f"{CHUNKED}\r\n5\r\nabcde\r\n0\r\nX: {'x' * 100_000}\r\n\r\n", 400, 431, begun=True
    )
    probes["many trailers"] = refused(CHUNKED + "\r\n0\r\n" + "X: y\r\n" * 5000 + "\r\n", 400, 431, begun=True)
    probes["a long chunk extension"] = refused(f"{CHUNKED}\r\n5;{'x' * 2_000_000}\r\nabcde\r\n0\r\n\r\n", 400, 413, 431, begun=True)  # fmt: skip
    probes["a body that is too large"] = refused(POST + "Content-Length: 200000\r\n\r\n" + SMUGGLED, 413)
    probes["RTSP/1.0"] = Probe(
        text=GET.replace("HTTP/1.1", "RTSP/1.0", 1) + LAST + "\r\n", statuses=((200, 400),), methods=("GET",),
        passed=(("GET", "{here}", ""),),
    )  # fmt: skip
    probes["spaces before the target"] = Probe(
        text=GET.replace("GET ", "GET   ", 1) + LAST + "\r\n", statuses=((200, 400),), methods=("GET",),
        passed=(("GET", "{here}", ""),),
    )  # fmt: skip
    probes["empty lines before it"] = answered("\r\n\r\n" + GET + LAST + "\r\n", "GET")
    probes["a value above ASCII"] = answered(GET + LAST + "X: \xe4\xff\r\n\r\n", "GET")
    probes["an empty value"] = answered(GET + LAST + "X:\r\n\r\n", "GET")
    return probes


FAMILIES: Final[dict[str, dict[str, Probe]]] = {
    "lengths": _lengths(),
    "codings": _codings(),
    "chunks": _chunks(),
    "lines": _lines(),
    "bounds": _bounds(),
}
