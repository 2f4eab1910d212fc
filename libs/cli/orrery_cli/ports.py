"""Is the public port free, and if not, who has it.

Routers share the port with SO_REUSEPORT, and so might a stranger: the check is therefore made with a socket that does
not share. Afterwards a bound socket that never listens keeps the port ours while routers come and go.
"""

from __future__ import annotations

import errno
import socket

import psutil

from .errors import CliError


def reserve(host: str, port: int) -> socket.socket:
    """Returns a socket bound to the port (0: a free one), which others of ours may share; close it to let go.

    Raises CliError naming who is in the way.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        raise CliError(_sentence(host, port, error)) from None
    return reserved


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use by {holder(port)}: stop it, or choose another with --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for the administrator: choose one above 1023 with --port, e.g. --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: correct --host"
    return f"{host}:{port} cannot be used ({error.strerror}): choose another with --host and --port"


def holders(port: int) -> list[int]:
    """Pids of those who listen on a TCP port, as far as we may see."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return []
    return [c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid]


def holder(port: int) -> str:
    """Who listens on a TCP port, as far as we may see: `python3 (pid 4711: python3 -m http.server 8000)`."""
    for pid in holders(port):
        try:
            process = psutil.Process(pid)
            return f"{process.name()} (pid {pid}: {' '.join(process.cmdline())[:200]})"
        except psutil.Error:
            return f"the process with pid {pid}"
    return f"another user's program (`sudo ss -ltnp 'sport = :{port}'` names it)"
