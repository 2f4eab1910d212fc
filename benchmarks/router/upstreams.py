"""What the proxies forward to. Upstreams share a core with the load, so they do as little as they can."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.router.cores import running
from tests.support.platform import free_port
from tests.support.wait import accepts, eventually

BODY = "x" * 199 + "|"
MEBIBYTE = 1 << 20
SWALLOWED = b"ok"
"""The answer to an upload."""
DOWNLOAD = "/user/ada/s500/files/big.bin"
UPLOADS = "/user/ada/uploads/"
ECHO = "/user/ada/echo/"

REPLIES = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/upstream.pid;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;
  client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u;
  scgi_temp_path {root}/s;
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type text/plain; return 200 "{body}"; }}
    location = {download} {{ alias {root}/big.bin; }} }} }}
"""
"""nginx: 200 bytes to whatever is asked, and one file of a mebibyte."""


@dataclass
class Upstreams:
    """URLs."""

    replies: str
    uploads: str
    echo: str

    @property
    def special(self) -> list[tuple[str, str]]:
        """The routes that lead to something else than the short replies."""
        return [(UPLOADS, self.uploads), (ECHO, self.echo)]

    @classmethod
    @asynccontextmanager
    async def open(cls, root: Path, core: int) -> AsyncIterator[Upstreams]:
        replies, uploads, echo = free_port(), free_port(), free_port()
        (root / "big.bin").write_bytes(b"\x5a" * MEBIBYTE)
        file = root / "upstream.conf"
        file.write_text(REPLIES.format(root=root, port=replies, body=BODY, download=DOWNLOAD))
        python = [sys.executable, "-m", "benchmarks.router.sinks", str(uploads), str(echo)]
        async with AsyncExitStack() as stack:
            for name, command in {"replies": ["nginx", "-p", str(root), "-c", str(file)], "sinks": python}.items():
                await stack.enter_async_context(running(command, root / f"{name}.log", core))
            for port in (replies, uploads, echo):
                await eventually(partial(accepts, port), what=f"port {port} of an upstream")
            yield cls(*(f"http://127.0.0.1:{port}" for port in (replies, uploads, echo)))
