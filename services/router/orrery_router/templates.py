"""Error pages of an admin's own, in place of the built-in ones.

`<status>.html`, else `error.html`, in the folder that `templates_dir` names; jinja2, sandboxed and escaped, read again
when a file changes. A template that fails costs nobody an answer: the built-in page comes, and the log says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
from jinja2 import FileSystemLoader, StrictUndefined, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orrery_runtime.errors import ConfigError
from orrery_runtime.pages import CSS_SOURCE, SECURITY_HEADERS, title_of

PAGE_BYTES_MAX: Final = 1 << 20
CSP: Final = "Content-Security-Policy"
HEADERS: Final = {**SECURITY_HEADERS, CSP: SECURITY_HEADERS[CSP].replace(CSS_SOURCE, "'unsafe-inline'")}
"""As for the built-in pages, but styles inside the page may be the admin's own; scripts come from this host's files."""

_log = structlog.get_logger("orrery.router")


class Templates:
    """The templates of one folder."""

    headers = HEADERS

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError when there is no such folder."""
        if not directory.is_dir():
            raise ConfigError(f"templates_dir names {directory}, which is no folder: make it, or leave the setting out")
        self._environment = ImmutableSandboxedEnvironment(
            autoescape=True, loader=FileSystemLoader(directory), undefined=StrictUndefined
        )
        self._broken: dict[str, str] = {}
        """Name → why it failed last, so that it is said once."""

    def page(
        self, status: int, message: str, *, title: str = "", action_text: str = "", action_url: str = "",
        request_id: str = "", base_url: str = "/",
    ) -> str | None:  # fmt: skip
        """The page, or None when the built-in one is to come. Every argument is text, not HTML, and a template knows
        each by its name; `action_*`: the one next step, empty if there is none."""
        values = {
            "status": status, "message": message, "title": title or title_of(status), "action_text": action_text,
            "action_url": action_url, "request_id": request_id, "base_url": base_url,
        }  # fmt: skip
        for name in (f"{status}.html", "error.html"):
            try:
                html = self._render(name, values)
            except Exception as error:  # noqa: BLE001 (whatever a template may do, the answer is written)
                self._failed(name, f"{type(error).__name__}: {error}")
                return None
            if html is not None:
                self._broken.pop(name, None)
                return html
        return None

    def _render(self, name: str, values: dict[str, object]) -> str | None:
        """None: there is no such template. Raises what the template does."""
        try:
            template = self._environment.get_template(name)
        except TemplateNotFound:
            return None
        html = template.render(values)
        if len(html) > PAGE_BYTES_MAX:
            raise ValueError(f"its page is longer than {PAGE_BYTES_MAX} characters")
        return html

    def _failed(self, name: str, reason: str) -> None:
        if self._broken.get(name) != reason:
            self._broken[name] = reason
            _log.error(
                "template_failed",
                template=name,
                reason=reason,
                consequence="the built-in page is shown: correct the template, which is then read again",
            )
