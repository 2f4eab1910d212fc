"""Giving up a shared port without losing a connection.

Routers share one port by SO_REUSEPORT: the kernel deals every new connection to one of their listeners when its SYN
arrives. Closing a listener resets the connections that it was dealt and has not accepted, and those whose handshake is
under way, though their clients did nothing wrong and another router would have taken them. (`net.ipv4.tcp_migrate_req`
moves them, where an admin has set it.) So a listener that is to close is first made deaf to SYNs and goes on accepting
what was dealt to it before. A client whose SYN is not heard sends it again after a second, when that listener is closed
and another one is in its place.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from typing import Final

HANDSHAKES_S: Final = 0.8
"""How long handshakes that are under way may take; less than the second after which a client sends its SYN again."""

SO_ATTACH_FILTER: Final = 26
FLAGS_AT: Final = 13
SYN, ACK = 0x02, 0x10


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


_DEAF: Final = (_Instruction * 5)(
    _Instruction(0x30, 0, 0, FLAGS_AT),  # The TCP header's flags,
    _Instruction(0x54, 0, 0, SYN | ACK),  # these two of them:
    _Instruction(0x15, 0, 1, SYN),  # if a connection is asked for,
    _Instruction(0x06, 0, 0, 0),  # drop it;
    _Instruction(0x06, 0, 0, 0xFFFFFFFF),  # everything else passes.
)


def ignore_new_connections(listener: socket.socket) -> bool:
    """Makes a TCP listener deaf to SYNs. False: the kernel cannot (it is not Linux, or a sandbox forbids it)."""
    if sys.platform != "linux" or listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    program = _Program(len(_DEAF), _DEAF)
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))
    except OSError:
        return False
    return True
