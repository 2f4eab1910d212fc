"""Settings: where they come from, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orrery_runtime.config import Settings, source_of
from orrery_runtime.errors import ConfigError

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, "config"):
        monkeypatch.delenv(f"ORRERY_{name.upper()}", raising=False)


def test_defaults_need_nothing() -> None:
    settings = Settings.load()
    assert settings.host == "127.0.0.1"
    assert settings.base_url == "/"
    assert settings.drain_timeout_s == 10
    assert source_of("host") == "default"


def test_file_then_environment_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "orrery.toml"
    file.write_text('host = "10.0.0.1"\nport = 1\nlog_level = "debug"\n')
    monkeypatch.setenv("ORRERY_CONFIG", str(file))
    monkeypatch.setenv("ORRERY_PORT", "2")
    monkeypatch.setenv("ORRERY_LOG_LEVEL", "error")
    settings = Settings.load(log_level="warning", slot=None)
    assert (settings.host, settings.port, settings.log_level) == ("10.0.0.1", 2, "warning")
    assert source_of("host") == str(file)
    assert source_of("port") == "ORRERY_PORT"
    assert source_of("log_level", {"log_level": "warning"}) == "flag"


def test_an_unknown_key_in_the_file_is_an_error_with_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "orrery.toml"
    file.write_text('databse_url = "postgresql://"\n')
    monkeypatch.setenv("ORRERY_CONFIG", str(file))
    with pytest.raises(ConfigError, match=r"no setting 'databse_url': did you mean 'database_url'\?"):
        Settings.load()


def test_an_unknown_override_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'port'"):
        Settings.load(prot=1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "abc", "setting port (from ORRERY_PORT) is not usable: it must be a valid integer"),
        ("PORT", "70000", "setting port (from ORRERY_PORT) is not usable: it must be less than or equal to 65535"),
        ("LOG_LEVEL", "loud", "it must be 'debug', 'info', 'warning' or 'error'"),
        ("BASE_URL", "/a b/", "use a plain path"),
        ("DATABASE_URL", "mysql://u:hunter22@h/d", "begin it with postgresql://"),
        ("OTLP_ENDPOINT", "collector:4318", "begin it with http://"),
        ("SLOT", "../x", "setting slot"),
        ("STARTUP_TIMEOUT_S", "0", "setting startup_timeout_s"),
    ],
)
def test_a_wrong_value_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(f"ORRERY_{name}", value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    sentence = str(caught.value)
    assert said in sentence
    assert "\n" not in sentence
    assert "hunter22" not in sentence


@pytest.mark.parametrize("text", ["", "hub", "/hub", "hub/", "/hub/"])
def test_base_url_is_brought_into_one_form(text: str) -> None:
    assert Settings.load(base_url=text).base_url == ("/hub/" if text else "/")


def test_a_secret_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("ORRERY_SECRET_KEY_FILE", str(file))
    settings = Settings.load()
    assert settings.secret_key.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


def test_a_database_password_is_not_in_the_repr() -> None:
    settings = Settings.load(database_url="postgresql://orrery:hunter22@db/orrery", nats_url="nats://a:hunter33@n")
    assert "hunter" not in repr(settings)


def test_a_secret_and_its_file_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep one of them"):
        Settings.load(secret_key=SECRET, secret_key_file=tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xfe\x00", b"x" * 70_000])
def test_an_unusable_secret_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(file)):
        Settings.load(secret_key_file=file)


def test_a_missing_secret_file_and_a_missing_config_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Settings.load(auth_key_file=tmp_path / "absent")
    monkeypatch.setenv("ORRERY_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="ORRERY_CONFIG"):
        Settings.load()


def test_broken_toml_is_said_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "orrery.toml"
    file.write_text("port = \n")
    monkeypatch.setenv("ORRERY_CONFIG", str(file))
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        Settings.load()


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} needs a description"
        assert field.description.endswith("."), name
