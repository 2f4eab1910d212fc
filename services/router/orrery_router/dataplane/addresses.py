"""What a router listens on: the setting's URLs taken apart, and the sockets opened."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from orrery_router.target import SOCKET_PATH_BYTES_MAX, Target, split_authority
from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError, StartupError

MODE: Final = 0o600
"""Of a unix socket that is listened on, unless its URL says otherwise."""
SLOT: Final = "{slot}"
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
        if not path.startswith("/") or len(path.encode()) > SOCKET_PATH_BYTES_MAX or "\x00" in path:
            raise ValueError(
                f"{url!r} needs the whole path of a socket, %2F for /, {SOCKET_PATH_BYTES_MAX} bytes at most"
            )
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
    """A bound socket that does not listen yet. A unix socket's path comes with a lock beside it, which tells a socket
    that somebody serves from one that a dead process left."""

    def __init__(self, address: Address) -> None:
        """Raises StartupError."""
        self.address = address
        self._lock_fd = -1
        if address.socket_path:
            self._path = Path(address.socket_path)
            self._lock_fd = _lock(self._path)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                _bind_unix(self.socket, self._path, address.mode)
            except StartupError:
                self.socket.close()
                os.close(self._lock_fd)
                raise
        else:
            self.socket = _open_tcp(address)
        self.port: int = 0 if address.socket_path else self.socket.getsockname()[1]
        """As bound; 0 for a unix socket."""

    @property
    def url(self) -> str:
        """As an event or `/status` spells it."""
        address = self.address
        return Target(address.host, self.port, tls=address.tls, socket_path=address.socket_path).url

    def leave(self) -> None:
        """Takes the path away, so that it can be another's. The lock's file stays: else two could hold a lock of it."""
        if self._lock_fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = -1


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


def _bind_unix(listener: socket.socket, path: Path, mode: int) -> None:
    try:
        _remove_stale(path)
        mask = os.umask(0o177)  # From its first moment on the socket is nobody else's.
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        path.chmod(mode)
        listener.setblocking(False)
    except OSError as error:
        raise StartupError(f"cannot listen on {path} ({error.strerror}): correct ORRERY_LISTEN") from None


def _lock(path: Path) -> int:
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartupError(
            f"cannot make {lock} ({error.strerror}): correct ORRERY_LISTEN or the folder's mode"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise _taken(path) from None
    return fd


def _remove_stale(path: Path) -> None:
    """With the lock held: what is there is a dead router's, or no router's at all. Raises StartupError and OSError."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise StartupError(f"{path} is there and is no socket: name another path in ORRERY_LISTEN or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise _taken(path)


def _taken(path: Path) -> StartupError:
    return StartupError(
        f"another process listens on {path}: stop it, or give each router a path of its own by {SLOT} in ORRERY_LISTEN"
    )
