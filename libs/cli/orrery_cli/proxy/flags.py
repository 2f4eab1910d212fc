"""The command line of configurable-http-proxy 5.x, and a few options of our own.

Parsed with argparse rather than typer: the original's names, aliases and defaults must be met exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from orrery_cli.errors import UsageError
from orrery_router.chp.options import VERSION, Options, Tls

LOG_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
PORT_MAX: Final = 65_535
SIDES: Final = ("", "api-", "client-")
TLS_FILES: Final = ("key", "cert", "ca")
TLS_SWITCHES: Final = ("request-cert", "reject-unauthorized")
OBSOLETE: Final = ("ssl-protocol", "ssl-ciphers", "ssl-allow-rc4", "ssl-dhparam")


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """A command line, understood."""

    options: Options
    log_level: str
    pid_file: Path | None
    data_dir: Path | None
    database_url: str
    nats_url: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}: see `{self.prog} --help`")


def parse(argv: Sequence[str], *, prog: str) -> Flags:
    """Raises UsageError; ends the process after `--help` and `--version`."""
    given = vars(_parser(prog).parse_args(argv))
    _refuse(given)
    port = given["port"] or 8000
    options = Options(
        ip="" if given["ip"] == "*" else given["ip"],
        port=port,
        api_ip=given["api_ip"] if given["api_ip"] is not None else "localhost",
        api_port=given["api_port"] or port + 1,
        metrics_ip=given["metrics_ip"],
        socket=given["socket"],
        api_socket=given["api_socket"],
        metrics_socket=given["metrics_socket"],
        ssl=_tls(given, ""),
        api_ssl=_tls(given, "api_"),
        client_ssl=_tls(given, "client_"),
        insecure=given["insecure"],
        redirect_port=given["redirect_port"] or 0,
        redirect_to=given["redirect_to"] or 0,
        metrics_port=given["metrics_port"] or 0,
        default_target=given["default_target"],
        error_target=_with_slash(given["error_target"]),
        error_path=given["error_path"],
        include_prefix=not given["no_include_prefix"],
        prepend_path=not given["no_prepend_path"],
        x_forward=not given["no_x_forward"],
        auto_rewrite=given["auto_rewrite"],
        change_origin=given["change_origin"],
        protocol_rewrite=given["protocol_rewrite"],
        headers=dict(_header(text) for text in given["custom_header"]),
        host_routing=given["host_routing"],
        timeout_s=given["timeout"] / 1000,
        proxy_timeout_s=given["proxy_timeout"] / 1000,
        keep_alive_timeout_s=given["keep_alive_timeout"] / 1000,
    )
    return Flags(
        options=options,
        log_level=LOG_LEVELS[given["log_level"]],
        pid_file=Path(given["pid_file"]) if given["pid_file"] else None,
        data_dir=Path(given["data_dir"]) if given["data_dir"] else None,
        database_url=given["database_url"],
        nats_url=given["nats_url"],
    )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="A drop-in for configurable-http-proxy whose routes are shared by replicas and survive restarts.",
        epilog="The token of the REST API is taken from CONFIGPROXY_AUTH_TOKEN.",
    )
    parser.add_argument("-V", "--version", action="version", version=VERSION)
    _add_listeners(parser)
    _add_forwarding(parser)
    _add_tls(parser.add_argument_group("encryption"))
    _add_ours(parser.add_argument_group("of Orrery"))
    return parser


def _add_listeners(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ip", default="", help="Public address; all interfaces when empty.")
    add("--port", type=_port, help="Public port (default: 8000).")
    add("--socket", default="", metavar="PATH", help="Unix socket instead of the public address and port.")
    add("--api-ip", help="Address of the REST API (default: localhost).")
    add("--api-port", type=_port, help="Port of the REST API (default: the public port + 1).")
    add("--api-socket", default="", metavar="PATH", help="Unix socket instead of the REST API's address and port.")
    add("--metrics-ip", default="", help="Address of the metrics; all interfaces when empty.")
    add("--metrics-port", type=_port, help="Port of the metrics; none are served without it.")
    add("--metrics-socket", default="", metavar="PATH", help="Unix socket instead of the metrics' address and port.")
    add("--pid-file", default="", metavar="FILE", help="Where to write the pid.")
    add("--log-level", type=str.lower, choices=LOG_LEVELS, default="info", help="Least level that is logged.")


def _add_forwarding(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--default-target", default="", metavar="URL", help="Target of the route `/`.")
    add("--error-target", default="", metavar="URL", help="Answers `URL/<code>?url=…` with error pages.")
    add("--error-path", default="", metavar="DIR", help="Holds error pages: `<code>.html`, `error.html`.")
    add("--redirect-port", type=_port, help="Port whose plain HTTP requests are redirected to HTTPS.")
    add("--redirect-to", type=_port, help="Port that they are redirected to (default: the public port).")
    add("--no-x-forward", action="store_true", help="Add no X-Forwarded-* headers.")
    add("--no-prepend-path", action="store_true", help="Do not put the target's path before the request's.")
    add("--no-include-prefix", action="store_true", help="Forward paths without the route's prefix.")
    add("--auto-rewrite", action="store_true", help="Rewrite host and port of redirects that lead to the target.")
    add("--change-origin", action="store_true", help="Send the target's host in the Host header.")
    add("--protocol-rewrite", default="", metavar="PROTO", help="Protocol of redirects that lead to the target.")
    add("--custom-header", action="append", default=[], metavar="K:V", help="Header added to every request; repeat.")
    add("--host-routing", action="store_true", help="The first segment of a route is its host.")
    add("--timeout", type=_milliseconds, default=0, metavar="MS", help="Longest silence of a client.")
    add("--proxy-timeout", type=_milliseconds, default=0, metavar="MS", help="Longest wait for a target's answer.")
    add(
        "--keep-alive-timeout", type=_milliseconds, default=5000, metavar="MS",
        help="Longest pause between two requests of a connection (default: 5000).",
    )  # fmt: skip
    add("--storage-backend", metavar="CLASS", help=argparse.SUPPRESS)


def _add_tls(group: argparse._ArgumentGroup) -> None:
    whose = {"": "of the public port", "api-": "of the REST API", "client-": "towards https:// targets"}
    for side in SIDES:
        for what in TLS_FILES:
            group.add_argument(f"--{side}ssl-{what}", default="", metavar="FILE", help=f"{what}, {whose[side]} (PEM).")
        for what in TLS_SWITCHES:
            group.add_argument(f"--{side}ssl-{what}", action="store_true", help="Clients must show a certificate.")
    for name in OBSOLETE:
        group.add_argument(f"--{name}", nargs="?", const="yes", help=argparse.SUPPRESS)
    group.add_argument("--insecure", action="store_true", help="Do not check targets' certificates.")


def _add_ours(group: argparse._ArgumentGroup) -> None:
    hint = "Others can read arguments: prefer the variable."
    group.add_argument("--data-dir", default="", metavar="DIR", help="Where database and broker lie; ORRERY_DATA_DIR.")
    group.add_argument(
        "--database-url", default="", metavar="URL",
        help=f"Your own Postgres, shared by all replicas; ORRERY_DATABASE_URL. {hint}",
    )  # fmt: skip
    group.add_argument("--nats-url", default="", metavar="URL", help=f"Your own NATS; ORRERY_NATS_URL. {hint}")


def _refuse(given: dict[str, Any]) -> None:
    for name in OBSOLETE:
        if given[name.replace("-", "_")]:
            raise UsageError(
                f"--{name} is not supported: TLS 1.2 and newer is spoken, with OpenSSL's choice of ciphers"
            )
    if given["storage_backend"]:
        raise UsageError("--storage-backend is of no use here: routes are kept in Postgres. Leave it out")
    if given["error_target"] and given["error_path"]:
        raise UsageError("--error-target and --error-path exclude each other: pick one")
    if given["error_target"] and not given["error_target"].startswith(("http://", "https://")):
        raise UsageError("--error-target begins with http:// or https://")
    for side in ("", "api_", "metrics_"):
        clash = next(
            (f"{side}{what}" for what in ("ip", "port") if given[f"{side}socket"] and given[f"{side}{what}"]), ""
        )
        if clash:
            raise UsageError(f"--{side}socket and --{clash} exclude each other: pick one".replace("_", "-"))
    if given["socket"] and given["ssl_cert"]:
        raise UsageError("--socket and --ssl-cert exclude each other: a unix socket is not encrypted")
    if given["redirect_port"] and not given["ssl_cert"]:
        raise UsageError("--redirect-port needs --ssl-key and --ssl-cert: there is no HTTPS to redirect to")


def _tls(given: dict[str, Any], side: str) -> Tls:
    found = {what: given[f"{side}ssl_{what}"] for what in TLS_FILES}
    verify = given[f"{side}ssl_request_cert"] or given[f"{side}ssl_reject_unauthorized"]
    flag = f"--{side}ssl".replace("_", "-")
    if found["key"] and not found["cert"]:
        raise UsageError(f"{flag}-key needs {flag}-cert: give both")
    if verify and side != "client_" and not found["ca"]:
        raise UsageError(f"{flag}-request-cert needs {flag}-ca: whose certificates are good?")
    return Tls(**found, verify=verify)


def _with_slash(url: str) -> str:
    return url if not url or url.endswith("/") else f"{url}/"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.strip().partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name:
        raise UsageError(f"--custom-header {text!r} has no colon: write it as name:value")
    if not (name + value).isascii() or any(c < " " or c == "\x7f" for c in name + value) or " " in name:
        raise UsageError(f"--custom-header {name!r} is no header: names and values are plain ASCII on one line")
    return name, value


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _milliseconds(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of milliseconds")
    return int(text)
