"""What a router listens on: the setting's URLs taken apart, and the sockets opened."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from orrery_router.target import Target, split_authority
from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError, StartupError

from .handover import ignore_new_connections
from .limits import BACKLOG
from .socket_path import PATH_BYTES_MAX, SLOT, SocketPath

MODE: Final = 0o600
"""Of a unix socket that is listened on, unless its URL says otherwise."""
_SWITCH: Final = {"on": True, "off": False}


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to listen on."""

    host: str = ""
    port: int = 0
    """0: the system chooses."""
    socket_path: str = ""
    """Of a unix socket; then host and port count for nothing."""
    mode: int = MODE
    tls: bool = False
    proxy_protocol: bool = False


def addresses_of(settings: Settings, slot: str) -> list[Address]:
    """What the settings ask for. `slot` takes the place of `{slot}` in a socket's path. Raises ConfigError."""
    has_certificate = bool(settings.tls_cert_files)
    urls = [part.strip() for part in settings.listen.split(",") if part.strip()]
    if not urls:
        return [
            Address(
                host=settings.host,
                port=settings.port,
                tls=has_certificate,
                proxy_protocol=settings.proxy_protocol,
            )
        ]
    try:
        found = [_parse(url.replace(SLOT, slot), proxy_protocol=settings.proxy_protocol) for url in urls]
    except ValueError as error:
        raise ConfigError(f"setting listen is not usable: {error}") from None
    if any(address.tls for address in found) and not has_certificate:
        raise ConfigError("setting listen has an https:// URL, and tls_cert_files is not set: name the certificate")
    return found


def _parse(url: str, *, proxy_protocol: bool) -> Address:
    """Raises ValueError."""
    scheme, mark, rest = url.partition("://")
    authority, _, query = rest.partition("?")
    authority = authority.removesuffix("/")
    if not mark or scheme not in ("http", "https", "http+unix") or not authority or "/" in authority:
        raise ValueError(f"{url!r} is not http://host:port, https://host:port or http+unix://<percent-quoted path>")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"proxy_protocol", "mode"}
    if unknown or options.get("proxy_protocol", "on") not in _SWITCH:
        raise ValueError(f"{url!r} says more than ?proxy_protocol=on|off and, for a unix socket, mode=660")
    expects = _SWITCH[options["proxy_protocol"]] if "proxy_protocol" in options else proxy_protocol
    if scheme == "http+unix":
        path = unquote(authority)
        if not path.startswith("/") or len(path.encode()) > PATH_BYTES_MAX or "\x00" in path:
            raise ValueError(f"{url!r} needs the whole path of a socket, %2F for /, {PATH_BYTES_MAX} bytes at most")
        return Address(socket_path=path, mode=_mode(options.get("mode", f"{MODE:o}")), proxy_protocol=expects)
    if "mode" in options:
        raise ValueError(f"{url!r} has a mode, which is for unix sockets")
    host, port = split_authority(authority, port_min=0)
    if port is None:
        raise ValueError(f"{url!r} names no port")
    return Address(host=host, port=port, tls=scheme == "https", proxy_protocol=expects)


def _mode(text: str) -> int:
    if not text or len(text) > 4 or any(c not in "01234567" for c in text) or int(text, 8) > 0o777:
        raise ValueError(f"mode {text!r} is not an octal mode such as 660")
    return int(text, 8)


class Place:
    """An address that is ours, with its socket."""

    def __init__(self, address: Address, slot: str = "") -> None:
        """`slot`: a unix socket's path is taken over from the process before in this slot. Raises StartupError."""
        self.address = address
        self._path: SocketPath | None = None
        if address.socket_path:
            self._path = SocketPath(Path(address.socket_path), address.mode, slot)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self.socket = _open_tcp(address)
        self.port: int = 0 if address.socket_path else self.socket.getsockname()[1]
        """As bound; 0 for a unix socket."""

    @property
    def url(self) -> str:
        """As an event or `/status` spells it."""
        address = self.address
        return Target(address.host, self.port, tls=address.tls, socket_path=address.socket_path).url

    def listen(self) -> None:
        """Connections are accepted from now on, though by nobody yet. Raises StartupError."""
        if self._path is not None:
            self._path.listen(self.socket)
        else:
            self.socket.listen(BACKLOG)

    def ignore_new_connections(self) -> bool:
        """What comes from now on is left to others. False: there is nobody to leave it to, or no way."""
        if self._path is None:
            return ignore_new_connections(self.socket)
        self._path.leave()
        return True

    def tick(self) -> None:
        """Once a second."""
        if self._path is not None:
            self._path.tick()

    def leave(self) -> None:
        """Takes a unix socket's path away, so that it can be another's."""
        if self._path is not None:
            self._path.leave()


def _open_tcp(address: Address) -> socket.socket:
    """Shares the port with other routers. `::` takes IPv4, too."""
    host, port = address.host, address.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = (
            "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        )
        raise StartupError(
            f"port {port} on {host} {reason}: stop the other one, or choose another by ORRERY_PORT or ORRERY_LISTEN"
        ) from None
    return listener
