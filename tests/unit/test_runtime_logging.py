"""Log lines: their form, and that no secret gets into them."""

from __future__ import annotations

import io
import json
import logging as stdlib
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from orrery_runtime import logging, redaction, telemetry
from orrery_runtime.identity import Claims, sign
from orrery_runtime.jws import SigningKey

PASSWORD = "correct-horse-battery"
OWN_SECRET = "a-very-own-secret-of-this-process"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(redaction, "_own", set())
    root = stdlib.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logging.configure("router", "i-1", level="debug", fmt="json", stream=stream)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    read.raw = stream.getvalue  # type: ignore[attr-defined]
    yield read
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_says_who_when_and_what(lines: Any) -> None:
    structlog.get_logger("x").info("server_ready", server_id="s1", duration_s=1.5)
    (line,) = lines()
    assert line["service"] == "router"
    assert line["instance"] == "i-1"
    assert line["level"] == "info"
    assert line["event"] == "server_ready"
    assert line["logger"] == "x"
    assert line["server_id"] == "s1"
    assert line["duration_s"] == 1.5
    assert line["timestamp"].endswith("+00:00")
    assert "trace_id" not in line


def test_inside_a_trace_its_ids_are_on_the_line(lines: Any) -> None:
    context = telemetry.context_of("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01")
    with trace.use_span(trace.get_current_span(context)):
        structlog.get_logger("x").info("inside")
    assert lines()[0]["trace_id"] == "ab" * 16
    assert lines()[0]["span_id"] == "cd" * 8


def test_the_standard_librarys_logging_takes_the_same_way(lines: Any) -> None:
    stdlib.getLogger("asyncpg.pool").warning("lost %s", "postgresql://orrery:hunter22@db/x")
    stdlib.getLogger("aiohttp.access").error("not wanted")
    (line,) = lines()
    assert line["event"] == "library_log"
    assert line["logger"] == "asyncpg.pool"
    assert line["message"] == "lost postgresql://orrery:[redacted]@db/x"


def test_an_exception_has_its_whole_chain_of_causes(lines: Any) -> None:
    def refuse() -> None:
        raise OSError("connection refused")

    def fail() -> None:
        try:
            refuse()
        except OSError as error:
            raise RuntimeError("cannot append") from error

    try:
        fail()
    except RuntimeError:
        structlog.get_logger("x").exception("append_failed")
        stdlib.getLogger("alembic").exception("again")
    for line in lines():
        assert line["causes"] == ["RuntimeError: cannot append", "OSError: connection refused"]
        assert "in fail" in line["exception"]
        assert "direct cause" in line["exception"]


def test_values_that_json_does_not_know_are_shown_as_text(lines: Any) -> None:
    structlog.get_logger("x").info("odd", what=object, path=stdlib, raw=b"\xff", many={1, 2}, nan=float("nan"))
    assert len(lines()) == 1


def test_a_reader_that_went_away_does_not_end_the_process() -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    logging._Sink(Broken()).msg("x")
    closed = io.StringIO()
    closed.close()
    logging._Sink(closed).msg("x")


def test_the_console_form_is_one_readable_line() -> None:
    event = {"timestamp": "2026-01-02T03:04:05.678+00:00", "level": "info", "service": "api", "event": "e", "n": 1}
    text = logging._render_console(None, "info", event)
    assert "03:04:05.678" in text
    assert text.endswith("e  n=1")


KEY = SigningKey.generate("k1")
TOKEN = sign(Claims(sub="u", jti="j", iat=1.0), KEY, kind="token")
SESSION = sign(Claims(sub="u", jti="j", iat=1.0, exp=2.0), KEY, kind="session")
PEM_BODY = "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF"
PEM = f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}\n-----END PRIVATE KEY-----"
HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b5dWRWJTmaaKObG"

SECRETS = {
    "token": TOKEN,
    "session": SESSION,
    "pem": PEM_BODY,
    "hash": "RdescudvJCsgt3ub+b5dWRWJTmaaKObG",
    "password": PASSWORD,
    "own": OWN_SECRET,
}


@pytest.mark.invariant(8)
@pytest.mark.parametrize(
    "fields",
    [
        {"password": PASSWORD},
        {"new_password": PASSWORD, "Password2": PASSWORD},
        {"form": {"username": "ada", "password": PASSWORD}},
        {"headers": {"Authorization": f"token {TOKEN}", "Cookie": f"orrery-session={SESSION}"}},
        {"headers": {"Set-Cookie": SESSION, "X-XSRFToken": PASSWORD, "X-Orrery-Edge": PASSWORD}},
        {"body": [{"auth": {"username": "ada", "password": PASSWORD}}]},
        {"reason": f"bad credential {TOKEN}, really"},
        {"reason": f"cookie was {SESSION}"},
        {"reason": f"half a one: {SESSION[:60]}", "session": SESSION},
        {"text": f"key is {PEM}"},
        {"text": PEM.split("-----END", maxsplit=1)[0]},
        {"stored": HASH},
        {"row": f"<Record name='ada' hash='{HASH}'>"},
        {"url": f"postgresql://orrery:{PASSWORD}@db:5432/orrery?sslmode=require"},
        {"url": f"nats://a:{PASSWORD}@one:4222,nats://b:{PASSWORD}@two:4222"},
        {"url": f"https://hub/x?token={TOKEN}&y=1"},
        {"path": f"/user/ada/?token={PASSWORD}"},
        {"header": f"Authorization: Bearer {PASSWORD}"},
        {"dsn": f"host=db user=orrery password={PASSWORD} dbname=x"},
        {"repr": f"{{'password': '{PASSWORD}'}}"},
        {"link": f"http://127.0.0.1:8000/setup/{PASSWORD}"},
        {"anything": f"prefix{OWN_SECRET}suffix"},
        {"raw": TOKEN.encode()},
        {"deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"password": PASSWORD}}}}}}}}},
        {TOKEN: 1},
    ],
)
def test_no_secret_gets_into_a_line(lines: Any, fields: dict[str, Any]) -> None:
    redaction.add_own_secrets(OWN_SECRET)
    structlog.get_logger("x").info("something_happened", **fields)
    stdlib.getLogger("nats").error("something happened: %s", fields)
    assert len(lines()) == 2
    for name, secret in SECRETS.items():
        assert secret not in lines.raw(), name


@pytest.mark.invariant(8)
def test_no_secret_gets_into_a_line_by_an_exception(lines: Any) -> None:
    redaction.add_own_secrets(OWN_SECRET)

    def connect(url: str) -> None:
        raise ConnectionError(f"cannot reach {url} with {TOKEN} and {OWN_SECRET}")

    try:
        connect(f"postgresql://orrery:{PASSWORD}@db/x")
    except ConnectionError:
        structlog.get_logger("x").exception("failed")
        stdlib.getLogger("asyncio").exception("failed")
    assert len(lines()) == 2
    for name, secret in SECRETS.items():
        assert secret not in lines.raw(), name


@pytest.mark.parametrize(
    "text",
    [
        "server_ready",
        "the token of ada was revoked",
        "basic settings are fine",
        "http://127.0.0.1:8000/user/ada/lab?reset",
        "01jd8xk2m3n4p5q6r7s8t9v0w1",
        "nats://127.0.0.1:4222",
    ],
)
def test_ordinary_text_stays_readable(text: str) -> None:
    assert redaction.redact(text) == text


def test_a_very_long_text_is_shortened_before_it_is_searched() -> None:
    text = "a." * 500_000 + PASSWORD + "://" * 1000
    assert len(redaction.redact_text(text)) < redaction.TEXT_LENGTH_MAX + 10


@pytest.mark.parametrize("name", ["token_id", "tokens_count", "secret_header", "event_type", "keys", "cookie_count"])
def test_innocent_fields_stay_readable(name: str) -> None:
    assert not redaction.is_secret_field(name)
