"""The generated reference pages are what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orrery_runtime.docs", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_committed_pages_are_up_to_date() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_or_missing_page_is_named(tmp_path: Path) -> None:
    assert generate("--write", "--directory", str(tmp_path)).returncode == 0
    assert generate("--check", "--directory", str(tmp_path)).returncode == 0
    (tmp_path / "events.md").write_text("old")
    (tmp_path / "config.md").unlink()
    done = generate("--check", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert "events.md is stale" in done.stderr
    assert "config.md is stale" in done.stderr
    assert "metrics.md" not in done.stderr


def test_the_pages_say_what_one_looks_for(tmp_path: Path) -> None:
    generate("--write", "--directory", str(tmp_path))
    config, metrics, events = ((tmp_path / f"{n}.md").read_text() for n in ("config", "metrics", "events"))
    assert "| `drain_timeout_s` | `ORRERY_DRAIN_TIMEOUT_S` | `10.0` |" in config
    assert "| `orrery_http_request_duration_seconds` | histogram | `method`, `route`, `code` |" in metrics
    assert "python_gc" not in metrics
    assert "### `server.ready` v1" in events
    assert "| `deadline` | float | `0.0` | Unix seconds by which this generation must be ready" in events
