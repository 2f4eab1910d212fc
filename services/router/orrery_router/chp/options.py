"""What the command line of `orrery proxy` said, as it is handed to the process that serves. Imports next to nothing."""

from __future__ import annotations

from typing import Final

import msgspec

ENV: Final = "ORRERY_PROXY"
"""Holds the options as JSON. No secret is among them: the API's token comes in TOKEN_ENV, as in the original."""
TOKEN_ENV: Final = "CONFIGPROXY_AUTH_TOKEN"
VERSION: Final = "5.3.0"
"""The configurable-http-proxy whose contract this is."""


class Tls(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Files of one side; all empty: plain HTTP."""

    key: str = ""
    """Empty: in the certificate's file."""
    cert: str = ""
    ca: str = ""
    verify: bool = False
    """Clients must show a certificate that `ca` signed."""


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names as in the original's flags."""

    ip: str = ""
    """Empty: all interfaces."""
    port: int = 8000
    socket: str = ""
    """Path of a unix socket in place of `ip` and `port`."""
    api_ip: str = "localhost"
    api_port: int = 8001
    api_socket: str = ""
    metrics_socket: str = ""
    ssl: Tls = Tls()
    api_ssl: Tls = Tls()
    client_ssl: Tls = Tls()
    """For `https://` targets."""
    insecure: bool = False
    """Targets' certificates are not checked."""
    redirect_port: int = 0
    """Where plain HTTP is redirected to HTTPS; 0: nowhere."""
    redirect_to: int = 0
    """The port of that HTTPS."""
    metrics_ip: str = ""
    metrics_port: int = 0
    """0: no metrics server."""
    default_target: str = ""
    error_target: str = ""
    """Ends with `/` when it is given."""
    error_path: str = ""
    include_prefix: bool = True
    prepend_path: bool = True
    x_forward: bool = True
    auto_rewrite: bool = False
    change_origin: bool = False
    protocol_rewrite: str = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """Added to every request that is passed on."""
    host_routing: bool = False
    timeout_s: float = 0.0
    """Longest silence of a client; 0: the router's own bounds."""
    proxy_timeout_s: float = 0.0
    """Longest wait for an upstream's answer; 0: the router's own bound."""
    keep_alive_timeout_s: float = 5.0


def encode(options: Options) -> str:
    return msgspec.json.encode(options).decode()


def decode(text: str) -> Options:
    """Raises msgspec.MsgspecError."""
    return msgspec.json.decode(text, type=Options)
