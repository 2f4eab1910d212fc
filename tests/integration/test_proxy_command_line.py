"""The command line of `orrery proxy`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--no-such-flag"], 2, "unrecognized arguments: --no-such-flag"),
        (["--port", "http"], 2, "'http' is no port"),
        (["--custom-header", "nothing"], 2, "has no colon"),
        (["--custom-header", "a: b\r\nEvil: 1"], 2, "is no header"),
        (["--error-target", "http://h", "--error-path", "/p"], 2, "exclude each other"),
        (["--storage-backend", "redis"], 2, "--storage-backend is of no use here"),
        (["--database-url", "postgresql://u@127.0.0.1:1/x"], 2, "--nats-url (ORRERY_NATS_URL) is missing"),
        (["--ssl-key", "k"], 2, "--ssl-key needs --ssl-cert"),
        (["--api-ssl-cert", "c", "--api-ssl-request-cert"], 2, "--api-ssl-request-cert needs --api-ssl-ca"),
        (["--redirect-port", "80"], 2, "--redirect-port needs --ssl-key and --ssl-cert"),
        (["--socket", "s", "--port", "1"], 2, "--socket and --port exclude each other"),
        (["--ssl-ciphers", "ALL"], 2, "--ssl-ciphers is not supported"),
        (["--ssl-allow-rc4"], 2, "--ssl-allow-rc4 is not supported"),
        (["--version"], 0, "5.3.0"),
        (["--help"], 0, "--no-include-prefix"),
    ],
)
def test_the_command_line(tmp_path: Path, flags: list[str], code: int, sentence: str) -> None:
    command = [sys.executable, "-m", "orrery_cli.main", "proxy", "--data-dir", str(tmp_path / "data"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert sentence in done.stdout + done.stderr


def test_the_program_that_jupyterhub_looks_for_is_installed() -> None:
    program = Path(sys.executable).with_name("configurable-http-proxy")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "5.3.0\n"
