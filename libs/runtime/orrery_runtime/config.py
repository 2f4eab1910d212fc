"""Settings of a process: defaults < TOML file (`ORRERY_CONFIG`) < environment `ORRERY_…` < explicit overrides.

Every setting is flat, has its unit last in its name, and is described below; `docs/reference/config.md` is generated
from here. What admins change at run time (users, profiles) is events, not settings.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from .errors import ConfigError
from .stopping import DRAIN_NOTICE_S, DRAIN_TIMEOUT_S, WEBSOCKET_DRAIN_S

ENV_PREFIX = "ORRERY_"
CONFIG_ENV = "ORRERY_CONFIG"
"""Environment variable with the path of the TOML file."""
SECRET_FILE_BYTES_MAX = 65_536

Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]

FILE_BACKED = ("database_url", "nats_url", "secret_key", "auth_key")
"""Settings that may instead be named by a file: `<name>_file`."""


class Settings(BaseModel):
    """All settings. `load()` is the way to get one; it turns every mistake into one clear sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    database_url: str = Field(
        "",
        repr=False,
        description="Postgres, `postgresql://user:password@host/name`; "
        "a unix socket as `postgresql://user:password@/name?host=/dir`.",
    )
    database_url_file: Path | None = Field(None, description="File that holds `database_url`.")
    nats_url: str = Field(
        "nats://127.0.0.1:4222",
        repr=False,
        description="NATS servers, separated by commas; credentials as `nats://user:password@host:port`.",
    )
    nats_url_file: Path | None = Field(None, description="File that holds `nats_url`.")
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="The platform's one secret, at least 32 characters, the same for every process.",
    )
    secret_key_file: Path | None = Field(None, description="File that holds `secret_key`.")
    auth_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts auth's private signing keys in its tables, at least 32 characters; only auth needs it.",
    )
    auth_key_file: Path | None = Field(None, description="File that holds `auth_key`.")

    data_dir: Path = Field(
        default_factory=lambda: user_data_path("orrery"),
        description="Where servers' home folders, logs and state lie.",
    )
    run_dir: Path | None = Field(
        None, description="Where each process writes `<slot>.json` with its pid and URLs; nowhere when not set."
    )
    snapshots: bool = Field(
        True,
        description="Keep what is known in `<data_dir>/snapshots`, so that a router can start while Postgres and NATS "
        "are both away; only a process with a `slot` does.",
    )
    slot: str = Field(
        "",
        max_length=120,
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="Stable name of the place this process runs in, e.g. `api-1` or the pod's name; "
        "made of service, host and pid when empty.",
    )

    host: str = Field("127.0.0.1", description="Address that the service's own HTTP listens on.")
    port: Port = Field(0, description="Port that the service's own HTTP listens on; 0 lets the system choose.")
    ops_host: str = Field("127.0.0.1", description="Address of `/livez`, `/readyz`, `/metrics` and `/status`.")
    ops_port: Port = Field(0, description="Port of the same; 0 lets the system choose.")
    advertise_url: str = Field(
        "",
        description="URL under which routers reach this process when it is not the address it listens on.",
    )
    public_url: str = Field(
        "", description="URL under which people reach the platform, e.g. `https://hub.example.org`."
    )
    base_url: str = Field("/", description="Path below which everything is served; begins and ends with `/`.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector for traces, e.g. `http://127.0.0.1:4318`; no traces are sent when empty."
    )

    startup_timeout_s: PositiveSeconds = Field(
        15.0, description="Longest wait for Postgres at start before the process gives up."
    )
    drain_notice_s: Seconds = Field(
        DRAIN_NOTICE_S, description="Time between saying that this process takes nothing new and closing its listener."
    )
    drain_timeout_s: Seconds = Field(
        DRAIN_TIMEOUT_S, description="Longest wait at stop for requests that are under way."
    )
    websocket_drain_s: Seconds = Field(
        WEBSOCKET_DRAIN_S,
        description="Time over which a router that stops spreads the ends of its WebSockets, when there are many.",
    )

    session_max_age_s: PositiveSeconds = Field(
        14 * 86_400.0, description="Life of a browser session; it ends earlier when it is revoked."
    )
    activity_interval_s: PositiveSeconds = Field(30.0, description="How often routers report which servers were used.")

    listen: str = Field(
        "",
        description="What a router listens on, URLs separated by commas: `http://[::]:8000` (IPv4, too), "
        "`https://0.0.0.0:8443`, `http+unix://%2Frun%2Forrery%2F{slot}.sock?mode=660`, each with `?proxy_protocol=on` "
        "(or `off`) if it differs from the setting; `host` and `port` (by TLS if there is a certificate) when empty.",
    )
    tls_cert_files: str = Field(
        "",
        description="PEM files, separated by commas, each with a certificate and its chain; the name that a client "
        "asks for chooses, the first is for everybody else. Read again when they change.",
    )
    tls_key_files: str = Field(
        "",
        description="PEM files with the private keys, in the same order; in the certificates' files when empty.",
    )
    tls_client_ca_file: Path | None = Field(
        None, description="CA that clients' certificates must be signed by; clients need none when not set."
    )
    tls_handshake_timeout_s: PositiveSeconds = Field(10.0, description="Longest TLS handshake with a client.")
    hsts_max_age_s: int = Field(
        0, ge=0, description="`Strict-Transport-Security` of everything that is answered by TLS; none when 0."
    )
    redirect_port: Port = Field(
        0, description="Port on `host` where a router answers HTTP by redirecting to HTTPS; none when 0."
    )
    redirect_to_port: Port = Field(
        0, description="Port that is redirected to; that of `public_url`, or else of the first HTTPS listener, when 0."
    )
    proxy_protocol: bool = Field(
        False,
        description="Every connection to a router begins with a PROXY protocol header (version 1 or 2) and comes from "
        "one of `trusted_proxies`; others are closed.",
    )
    trusted_proxies: str = Field(
        "",
        description="Networks, separated by commas, of proxies in front of the routers whose X-Forwarded-* headers are "
        "believed, e.g. `10.0.0.0/8`; `unix` is whoever may open a unix socket; nobody's when empty.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that one router consists of, sharing its port: as many as it has cores. "
        "`orrery up` has `--routers` instead.",
    )
    head_bytes_max: int = Field(
        32 * 1024, ge=1024, le=1 << 20, description="Largest head of a request that a router takes; more is a 431."
    )
    max_body_bytes: int = Field(
        0, ge=0, description="Largest body of a request to a user's server; more is a 413, 0 is without limit."
    )
    connections_max: int = Field(
        20_000, ge=1, description="Connections that one router holds at the same time; more are closed at once."
    )
    header_timeout_s: PositiveSeconds = Field(
        20.0, description="Longest time from the first byte of a request's head to its last."
    )
    idle_timeout_s: PositiveSeconds = Field(
        75.0, description="How long a router keeps a connection open between two requests."
    )
    body_timeout_s: PositiveSeconds = Field(60.0, description="Longest pause between two pieces of a request's body.")
    upstream_connect_timeout_s: PositiveSeconds = Field(
        5.0, description="How long a router waits for a server to take a connection."
    )
    upstream_response_timeout_s: PositiveSeconds = Field(
        3600.0, description="How long a router waits for the first byte of a server's answer; long polls take theirs."
    )

    templates_dir: Path | None = Field(
        None,
        description="Folder with a router's own error pages: jinja2 templates `404.html` (or another status), else "
        "`error.html`; each knows `status`, `title`, `message`, `action_text`, `action_url`, `request_id` and "
        "`base_url`. The built-in pages when not set.",
    )
    upstream_ca_file: Path | None = Field(
        None, description="CA that the certificates of `https://` targets must be signed by; the system's when not set."
    )
    upstream_cert_file: Path | None = Field(
        None, description="PEM file with the certificate that a router shows to `https://` targets; none when not set."
    )
    upstream_key_file: Path | None = Field(
        None, description="PEM file with its private key; in the certificate's file when not set."
    )
    upstream_insecure: bool = Field(
        False,
        description="Takes any certificate of an `https://` target: whoever is in between can read and change "
        "everything.",
    )

    spawn_slots: int = Field(
        8, ge=1, le=1000, description="Servers that one spawner starts at the same time; more wait their turn."
    )
    reconcile_interval_s: PositiveSeconds = Field(
        5.0, description="How often, at least, a spawner compares the servers that should run with those that do."
    )
    stop_grace_s: Seconds = Field(10.0, description="Time that a server has to end by itself before it is killed.")

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Settings from all sources; `overrides` win. Raises ConfigError with one sentence."""
        unknown = next((name for name in overrides if name not in cls.model_fields), None)
        if unknown is not None:
            raise ConfigError(f"there is no setting {unknown!r}{suggestion(unknown)}")
        try:
            given = {name: value for name, value in overrides.items() if value is not None}
            return cls(**{**read_toml(config_path()), **_environment(), **given})
        except ValidationError as error:
            raise ConfigError(_sentence(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in FILE_BACKED:
            path = values.get(f"{name}_file")
            if not path:
                continue
            if _plain(values.get(name)):
                raise ConfigError(f"{name} and {name}_file are both set: keep one of them")
            values = {**values, name: read_secret_file(f"{name}_file", Path(str(path)))}
        return values

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        path = "/" + value.strip("/") + "/" if value.strip("/") else "/"
        if "//" in path or any(c in path for c in "?#\\ %") or not path.isascii():
            raise ValueError("use a plain path such as `/` or `/hub-a/`")
        return path

    @field_validator("public_url", "advertise_url", "otlp_endpoint")
    @classmethod
    def _http_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("begin it with http:// or https://")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _postgres_url(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("begin it with postgresql://")
        return value


def config_path() -> Path | None:
    """The TOML file that ORRERY_CONFIG names, if it does."""
    path = os.environ.get(CONFIG_ENV, "")
    return Path(path) if path else None


def read_toml(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file. Raises ConfigError for a file that is missing, broken or has unknown keys."""
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}, which {CONFIG_ENV} names: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigError(f"{path}: there is no setting {name!r}{suggestion(name)}")
    return values


def _environment() -> dict[str, str]:
    """Empty variables count as not set."""
    named = {name: os.environ.get(f"{ENV_PREFIX}{name.upper()}", "") for name in Settings.model_fields}
    return {name: value for name, value in named.items() if value}


def read_secret_file(setting: str, path: Path) -> str:
    """The text of a secret's file without surrounding white space. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(SECRET_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}, which {setting} names: {error.strerror}") from None
    if len(raw) > SECRET_FILE_BYTES_MAX:
        raise ConfigError(f"{path}, which {setting} names, is larger than a secret can be: name the right file")
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}, which {setting} names, is not text: name the right file") from None
    if not text:
        raise ConfigError(f"{path}, which {setting} names, is empty: put the secret into it")
    return text


def source_of(name: str, overrides: dict[str, Any] | None = None) -> str:
    """Where a setting's value comes from: `flag`, an environment variable's name, the TOML file's path, `default`."""
    for candidate in (name, f"{name}_file") if name in FILE_BACKED else (name,):
        if (overrides or {}).get(candidate) is not None:
            return "flag"
        if os.environ.get(f"{ENV_PREFIX}{candidate.upper()}"):
            return f"{ENV_PREFIX}{candidate.upper()}"
        if candidate in read_toml(config_path()):
            return str(config_path())
    return "default"


def suggestion(name: str) -> str:
    """`: did you mean …?`, or nothing when no setting is spelled like it."""
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return f": did you mean {close[0]!r}?" if close else "; `orrery config show` lists them all"


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")


def _sentence(error: ValidationError) -> str:
    """The first mistake as one sentence: which setting, where it was set, what it must be. Never its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    verb = "" if first["msg"].startswith("Value error") else "it must be "
    origin = source_of(name) if name in Settings.model_fields else ""
    where = f" (from {origin})" if origin not in ("", "default") else ""
    return f"setting {name}{where} is not usable: {verb}{reason}"
