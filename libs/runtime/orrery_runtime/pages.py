"""Error pages: what happened, what to do, and the id under which it stands in the logs.

They need no template engine, no other service and no script, so that they still come when everything else is down.
Their one style sheet is inside the page and allowed in the Content-Security-Policy by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from http import HTTPStatus

CSS = (
    ":root{color-scheme:light dark}"
    "body{margin:0;min-height:100vh;display:grid;place-items:center;background:Canvas;color:CanvasText;"
    "font:1rem/1.6 system-ui,sans-serif}"
    "main{max-width:34rem;padding:2rem}"
    "h1{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}"
    "p{margin:0 0 1rem;overflow-wrap:anywhere}"
    "a.do,button{display:inline-block;padding:.6rem 1.1rem;border:2px solid LinkText;border-radius:.4rem;"
    "color:LinkText;background:none;font:inherit;text-decoration:none;cursor:pointer}"
    "a.do:focus-visible,button:focus-visible{outline:3px solid Highlight;outline-offset:2px}"
    "small{display:block;margin-top:2rem;opacity:.75}"
)
CSS_SOURCE = "'sha256-" + base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode() + "'"
"""What `style-src` must allow for these pages."""
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {CSS_SOURCE}; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_TITLES = {
    400: "That request could not be understood",
    403: "You may not see this",
    404: "There is nothing here",
    405: "That cannot be done here",
    409: "Somebody was faster",
    413: "That is too much at once",
    429: "Too many attempts",
    431: "The request's headers are too large",
    500: "Something went wrong on our side",
    502: "The server does not answer",
    503: "Not available right now",
    504: "The server takes too long to answer",
}


def title_of(status: int) -> str:
    """A person's words for a status."""
    if status in _TITLES:
        return _TITLES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def error_page(
    status: int,
    message: str,
    *,
    title: str = "",
    action_text: str = "",
    action_url: str = "",
    request_id: str = "",
) -> str:
    """A whole HTML page. Every argument is text, not HTML. `action_*`: the one next step, as a link."""
    heading = escape(title or title_of(status))
    action = f'<p><a class="do" href="{escape(action_url)}">{escape(action_text)}</a></p>' if action_text else ""
    reference = f"Reference for your administrator: <code>{escape(request_id)}</code>" if request_id else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{status} · {heading}</title><style>{CSS}</style></head>"
        f'<body><main><h1>{heading}</h1><p role="alert">{escape(message)}</p>{action}'
        f"<small>{status} {reference}</small></main></body></html>\n"
    )
