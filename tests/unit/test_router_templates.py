"""An admin's own error pages: what they may say, and that none of them costs anybody an answer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from orrery_router.dataplane.head import Head, fields_of
from orrery_router.replies import Replies
from orrery_router.templates import Templates
from orrery_runtime.errors import ConfigError
from orrery_runtime.pages import CSS_SOURCE, SECURITY_HEADERS

ANYBODY = Head(b"GET", b"/x", fields_of([(b"Host", b"x"), (b"Accept", b"text/html")]))
PROGRAM = Head(b"GET", b"/x", fields_of([(b"Host", b"x"), (b"Accept", b"application/json")]))


def said(replies: Replies, status: int = 404, message: str = "Nothing.", head: Head = ANYBODY) -> tuple[str, str]:
    """Head and body of the answer."""
    content = replies.page(head, status, message, "r-1", action=("Home", "/hub/home")).content.decode()
    lines, _, body = content.partition("\r\n\r\n")
    assert f"Content-Length: {len(body.encode())}\r\n" in lines
    return lines, body


def test_the_status_own_template_comes_first(tmp_path: Path) -> None:
    replies = Replies("/base/", Templates(tmp_path))
    assert "<!doctype html>" in said(replies)[1], "there is none yet"
    (tmp_path / "error.html").write_text("{{ status }} {{ title }} {{ action_text }} {{ action_url }} {{ request_id }}")
    assert said(replies)[1] == "404 There is nothing here Home /hub/home r-1"
    (tmp_path / "404.html").write_text("lost below {{ base_url }}")
    assert said(replies)[1] == "lost below /base/", "without a restart"
    assert said(replies, 503)[1].startswith("503 Not available right now")
    assert msgspec.json.decode(said(replies, head=PROGRAM)[1])["message"] == "Nothing.", "programs get what they had"


def test_what_is_said_is_text(tmp_path: Path) -> None:
    (tmp_path / "error.html").write_text("<p>{{ message }}</p>")
    lines, body = said(Replies("/", Templates(tmp_path)), message="<script>alert(1)</script>")
    assert body == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"
    policy = next(line for line in lines.split("\r\n") if line.startswith("Content-Security-Policy: "))
    assert "style-src 'self' 'unsafe-inline';" in policy
    assert "script-src 'self';" in policy
    assert CSS_SOURCE not in policy, "with it browsers would not heed the other"
    assert all(name in lines for name in SECURITY_HEADERS)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}", "{{ nobody }}", "{{ 1 / 0 }}", "{% extends 'nowhere.html' %}", "{% include 'nowhere.html' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ message.__init__.__globals__ }}",
        "{% include '../outside.html' %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(1000000) %}x{% endfor %}", "{{ 'x' * 2000000 }}",
    ],
)  # fmt: skip
def test_a_template_that_fails_is_said_once_and_nobody_notices(tmp_path: Path, template: str) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (tmp_path / "outside.html").write_text("secret")
    replies = Replies("/", Templates(folder))
    (folder / "404.html").write_text(template)
    with capture_logs() as logs:
        bodies = {said(replies)[1] for _ in range(3)}
    assert len(bodies) == 1
    assert bodies.pop().startswith("<!doctype html>")
    assert [(line["event"], line["template"]) for line in logs] == [("template_failed", "404.html")]
    assert "correct the template" in logs[0]["consequence"]
    (folder / "404.html").write_text("better")
    assert said(replies)[1] == "better"


def test_not_utf8_is_a_failure_like_others(tmp_path: Path) -> None:
    (tmp_path / "404.html").write_bytes(b"\xff\xfe")
    with capture_logs() as logs:
        assert said(Replies("/", Templates(tmp_path)))[1].startswith("<!doctype html>")
    assert len(logs) == 1


def test_a_folder_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Templates(tmp_path / "nowhere")
