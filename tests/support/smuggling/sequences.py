"""The corpus, second part: targets, what follows a request on its connection, expectations and upgrades."""

from __future__ import annotations

from typing import Final

from .requests import CHUNKED, GET, LAST, POST, SMUGGLED, ZERO, Probe, answered, refused


def _get(target: str, more: str = LAST) -> str:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\nCookie: {{cookie}}\r\n{more}\r\n"


def _targets() -> dict[str, Probe]:
    """`{away}` leads from ada's path to somebody else's in any spelling: `{here}/{away}`."""
    dots = (
        "..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..%00", "%2e%2e%00", "..%c0%af", "%c0%ae%c0%ae", "..%5c", "..\\", "%5c..", "\\..",
        "..%2f", "%2f..", "x%2f..%2f..", "x\\..\\..", "%2e", ".", "%2e%2e%2f%2e%2e", "..%252f", "%255c..", "..%255c..",
    )  # fmt: skip
    probes = {f"dots {d!r}": refused(_get(f"{{here}}/{d}/{d}/{d}/bob/")) for d in dots}
    for what, target in {
        "no slash": "user/ada/", "a star": "*", "nothing": "", "a question": "?x", "an authority": "x:80", "two slashes": "//x{here}",
        "three slashes": "///user/ada/", "a backslash": "\\user\\ada\\", "slash and backslash": "/\\x{here}", "a fragment": "{here}#x",
        "another scheme": "ftp://x{here}", "a file": "file://{here}", "no authority": "http://{here}", "one slash": "http:/x{here}",
        "no slashes": "http:x{here}", "a user": "http://y@x{here}", "a password": "http://y:z@x{here}", "an empty authority": "http:///x{here}",
        "a space in the authority": "http://x y{here}", "a backslash in the authority": "http://x\\y{here}",
        "an authority with markup": "http://<b>{here}", "an authority with a comma": "http://x,y{here}", "a script": "javascript:x",
        "a doubled prefix": "//user//ada//x", "an encoded prefix": "/%75ser%2fada/x", "an encoded backslash": "/user%5cada/x",
        "NUL": "{here}%00", "no UTF-8": "{here}%ff", "DEL": "{here}\x7f", "an IPv6 zone": "http://[::1%25x]{here}",
    }.items():  # fmt: skip
        probes[f"target: {what}"] = refused(_get(target), 400, 403, 404)
    for what, target, seen in (
        ("absolute", "http://x{here}", "{here}"),
        ("absolute and capital", "HTTP://X{here}", "{here}"),
        ("absolute with a query", "http://x{here}?a=http://y/", "{here}?a=http://y/"),
        ("an encoded line end", "{here}%0d%0aX:%20y", "{here}%0d%0aX:%20y"),
        ("slashes inside", "{here}//x///y", "{here}//x///y"),
        ("an encoded slash inside", "{here}/x%2fy", "{here}/x%2fy"),
        ("dots in the query", "{here}?../../bob", "{here}?../../bob"),
        ("dots in a name", "{here}/..x/...", "{here}/..x/..."),
        ("parameters", "{here};a=b/..;c", "{here};a=b/..;c"),
        ("a question in the query", "{here}?a?b??", "{here}?a?b??"),
        ("quotes", "{here}?a=%22'", "{here}?a=%22'"),
    ):
        probes[f"target: {what}"] = answered(_get(target), "GET", target=seen)
    probes["an authority other than Host"] = Probe(
        text=_get("http://other{here}"), statuses=((200, 400),), methods=("GET",), passed=(("GET", "{here}", ""),),
        host="other",
    )  # fmt: skip
    for what, target in {
        "no slash at the end": "{prefix}?a=%0d%0aSet-Cookie:%20x=y", "nothing but the host": "http://x",
        "a root": "/?%0aX:%20y",
    }.items():  # fmt: skip
        probes[f"redirect: {what}"] = Probe(text=_get(target), statuses=((302, 403),), methods=("GET",))
    probes["redirect: a sign-in with a line end"] = Probe(
        text="GET /hub/home?%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", statuses=((302,),),
        methods=("GET",),
    )  # fmt: skip
    return probes


def _with_length(text: str, body: str) -> str:
    # Canaries make the body longer than its template; both sides are filled in the same way.
    return text.replace("{n}", "{length:" + body + "}") + body


OK: Final[tuple[int, ...]] = (200,)
NO: Final[tuple[int, ...]] = (302, 403)
SEEN: Final = ("GET", "{here}", "")


def _pipelines() -> dict[str, Probe]:
    get, post = GET + "\r\n", POST + "Content-Length: {n}\r\n\r\n"
    smuggled = SMUGGLED.replace("{cookie}", "{cookie}; x=y")
    return {
        "two": Probe(text=get + GET + LAST + "\r\n", statuses=(OK, OK), methods=("GET", "GET"), passed=(SEEN, SEEN)),
        "a good one and somebody else's": Probe(
            text=get + smuggled + GET + LAST + "\r\n", statuses=(OK, NO, OK), methods=("GET",) * 3, passed=(SEEN, SEEN)
        ),
        "a bad one and a good one": refused(GET + "X : y\r\n\r\n" + GET + "\r\n"),
        "a good one and a bad one": Probe(
            text=get + GET + "X : y\r\n\r\n" + get, statuses=(OK, (400,)), methods=("GET", "GET"), passed=(SEEN,)
        ),
        "a good one and garbage": Probe(text=get + "GARBAGE", statuses=(OK, (400,)), methods=("GET", "GET"), passed=(SEEN,)),
        "a request as a body": Probe(
            text=_with_length(POST + LAST + "Content-Length: {n}\r\n\r\n", SMUGGLED), statuses=(OK,),
            passed=(("POST", "{here}", SMUGGLED),),
        ),
        "a request as a chunk": Probe(
            text=CHUNKED + LAST + "\r\n{hex:" + SMUGGLED + "}\r\n" + SMUGGLED + "\r\n" + ZERO, statuses=(OK,),
            passed=(("POST", "{here}", SMUGGLED),),
        ),
        "a request as a trailer": Probe(
            text=f"{CHUNKED}{LAST}\r\n0\r\nX: GET {{there}} HTTP/1.1\r\n\r\n", statuses=(OK,),
            passed=(("POST", "{here}", ""),),
        ),
        "a body and a request": Probe(
            text=_with_length(post, "abcde") + GET + LAST + "\r\n", statuses=(OK, OK), methods=("POST", "GET"),
            passed=(("POST", "{here}", "abcde"), SEEN),
        ),
        "chunks and a request": Probe(
            text=f"{CHUNKED}\r\n5\r\nabcde\r\n{ZERO}{GET}{LAST}\r\n", statuses=(OK, OK), methods=("POST", "GET"),
            passed=(("POST", "{here}", "abcde"), SEEN),
        ),
        "a body longer than its length": Probe(
            text=_with_length(post, "abc") + "de" + get, statuses=(OK, (400,)), methods=("POST", "GET"),
            passed=(("POST", "{here}", "abc"),),
        ),
        "GET with a body": answered(GET + LAST + "Content-Length: 5\r\n\r\nabcde", "GET", "abcde"),
        "GET with chunks": answered(f"{GET}{LAST}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n{ZERO}", "GET", "abcde"),
        "GET with a body and a request": Probe(
            text=GET + _with_length("Content-Length: {n}\r\n\r\n", SMUGGLED) + GET + LAST + "\r\n", statuses=(OK, OK),
            methods=("GET", "GET"), passed=(("GET", "{here}", SMUGGLED), SEEN),
        ),
        "HEAD with a body and a request": Probe(
            text=GET.replace("GET", "HEAD", 1) + _with_length("Content-Length: {n}\r\n\r\n", SMUGGLED) + GET + LAST + "\r\n",
            statuses=(OK, OK), methods=("HEAD", "GET"), passed=(("HEAD", "{here}", SMUGGLED), SEEN),
        ),
        "a redirect with a body": Probe(
            text=GET.replace("{here}", "{prefix}") + _with_length("Content-Length: {n}\r\n\r\n", SMUGGLED) + GET + LAST + "\r\n",
            statuses=((302,), OK), methods=("GET", "GET"), passed=(SEEN,),
        ),
        "somebody else's with a body": Probe(
            text="POST {there} HTTP/1.1\r\nHost: x\r\n" + _with_length("Content-Length: {n}\r\n\r\n", get) + GET + LAST + "\r\n",
            statuses=(NO, OK), methods=("POST", "GET"), passed=(SEEN,),
        ),
        "HTTP/1.0 and another": Probe(
            text=get.replace("HTTP/1.1", "HTTP/1.0") + SMUGGLED, statuses=(OK,), methods=("GET",), passed=(SEEN,)
        ),
        "close and another": Probe(
            text=GET + LAST + "\r\n" + get, statuses=(OK,), methods=("GET",), passed=(SEEN,)
        ),
        "a list of connection options": Probe(
            text=GET + "Connection: keep-alive, close\r\n\r\n" + get, statuses=(OK,), methods=("GET",), passed=(SEEN,)
        ),
    }  # fmt: skip


def _changes() -> dict[str, Probe]:
    """Expectations and upgrades."""
    ws = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    expected = POST + LAST + "Expect: {}\r\nContent-Length: 5\r\n\r\nabcde"
    return {
        "expect, told at once": answered(expected.replace("{}", "100-continue"), "POST", "abcde"),
        "expect in any case": answered(expected.replace("{}", "100-CONTINUE"), "POST", "abcde"),
        "expect without a body": answered(GET + LAST + "Expect: 100-continue\r\n\r\n", "GET"),
        "expect, folded": refused(expected.replace("{}", "\r\n 100-continue")),
        "expect, and both lengths": refused(
            f"{CHUNKED}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n{ZERO}{SMUGGLED}"
        ),
        "a websocket with a body": refused(GET + ws + "Content-Length: 5\r\n\r\nabcde"),
        "a websocket with chunks": refused(f"{GET}{ws}Transfer-Encoding: chunked\r\n\r\n{ZERO}"),
        "a websocket by POST": refused(POST + ws + "Content-Length: 0\r\n\r\n"),
        "a websocket by HTTP/1.0": refused((GET + ws).replace("HTTP/1.1", "HTTP/1.0") + "\r\n"),
        "h2c": refused(GET + h2c + "\r\n" + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "h2c with a body": refused(POST + h2c + "Content-Length: 5\r\n\r\nabcde"),
        "websocket or h2c": refused(GET + ws.replace("websocket", "websocket, h2c") + "\r\n"),
        "h2c or websocket": refused(GET + "Upgrade: h2c\r\n" + ws + "\r\n"),
        "TLS by upgrade": refused(GET + "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n"),
        "an upgrade that is not asked for": answered(GET + LAST + "Upgrade: websocket\r\n\r\n", "GET"),
        "an upgrade without a protocol": Probe(
            text=GET + "Connection: close, Upgrade\r\n\r\n", statuses=((200, 400),), methods=("GET",), passed=(SEEN,)
        ),
        "a websocket that the server does not want, and a request": Probe(
            text=GET + ws + "\r\n" + SMUGGLED + GET + "\r\n", statuses=((200, 400, 502),), methods=("GET",), passed=(SEEN,)
        ),
        "options": Probe(
            text=GET.replace("GET", "OPTIONS", 1) + LAST + "\r\n", statuses=(OK,), methods=("OPTIONS",),
            passed=(("OPTIONS", "{here}", ""),),
        ),
    }  # fmt: skip


FAMILIES: Final[dict[str, dict[str, Probe]]] = {
    "targets": _targets(),
    "pipelines": _pipelines(),
    "changes": _changes(),
}
