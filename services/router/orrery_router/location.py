"""Redirects of a server that does not know where it is seen from, put right. Pure: bytes in and out."""

from __future__ import annotations

from .target import Target


class Location:
    """One route's view of its server's addresses: what the server calls `/x` and where the browser finds it."""

    __slots__ = ("_authority", "_prefix", "_prepend")

    def __init__(self, target: Target, *, prepend: str, prefix: bytes) -> None:
        """`prefix`: what was stripped, as the browser spells it, base URL included; empty if nothing was."""
        scheme, _, authority = target.url.encode().partition(b"//")
        self._authority = b"" if target.socket_path else _without_usual_port(scheme, authority)
        self._prepend, self._prefix = prepend.encode(), prefix.rstrip(b"/")

    def seen(self, value: bytes, host: bytes) -> bytes:
        """What a `Location` says to the browser. `host`: the `Host` that the server was asked by; it and the target's
        own address are its own, everything else is somebody else's and stays as it is."""
        path = self._own_path(value, host)
        if path is None:
            return value
        if self._prepend:
            if not _is_below(path, self._prepend):
                return path
            path = path[len(self._prepend) :]
            if not path.startswith(b"/"):
                path = b"/" + path
        if self._prefix and not _is_below(path, self._prefix):
            path = self._prefix + path
        return path

    def rewritten(self, lines: bytes, host: bytes) -> bytes:
        """A response's head with its `Location` put right."""
        kept = lines.split(b"\r\n")
        for number, line in enumerate(kept):
            if line[:9].lower() == b"location:":
                kept[number] = line[:9] + b" " + self.seen(line[9:].strip(b" \t"), host)
        return b"\r\n".join(kept)

    def _own_path(self, value: bytes, host: bytes) -> bytes | None:
        """None: not of this server, or relative to what was asked for, which needs nothing."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return value
        scheme, mark, rest = value.partition(b"//")
        if not mark or scheme.lower() not in (b"http:", b"https:", b""):
            return None
        end = min((i for i in (rest.find(b"/"), rest.find(b"?"), rest.find(b"#")) if i >= 0), default=len(rest))
        authority = _without_usual_port(scheme, rest[:end])
        if not authority or authority not in (self._authority, host.lower()):
            return None
        return b"/" + rest[end:].lstrip(b"/")  # Two slashes would begin another authority.


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?", b"#")


def _without_usual_port(scheme: bytes, authority: bytes) -> bytes:
    """`scheme`: `http:`, `https:` or nothing."""
    usual = {b"http:": b":80", b"https:": b":443"}.get(scheme.lower(), b"")
    return authority.lower().removesuffix(usual)
