"""wrk: as many requests as a proxy answers, on a fixed number of connections."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from pathlib import Path

from benchmarks.router.cores import Proxy
from benchmarks.router.stage import ROUTES, Stage

PATH = "/user/ada/s500/lab/tree/notebook.ipynb"
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

DIFFERING = """
local before, after, count = {before}, {after}, 0
function request()
  count = count + 1
  local route = count % {routes}
  return "GET /user/ada/s" .. route .. "/lab/tree/notebook-" .. count .. ".ipynb HTTP/1.1\\r\\n" .. before .. count ..
    after
end
"""
"""Another route, another path and another header in every request."""


def same_head(stage: Stage, *, close: bool = False) -> Path:
    """A script with which every request is the same, byte for byte."""
    headers = {**stage.headers, **({"Connection": "close"} if close else {})}
    file = stage.root / ("close.lua" if close else "same.lua")
    file.write_text("".join(f"wrk.headers[{name!r}] = {value!r}\n" for name, value in headers.items()))
    return file


def differing_head(stage: Stage, url: str) -> Path:
    """A script with which no two requests are the same."""
    lines = [f"Host: {url.removeprefix('http://')}", *(f"{name}: {value}" for name, value in stage.headers.items())]
    before = lua("\r\n".join([*lines, "X-Request-ID: "]))
    file = stage.root / "differing.lua"
    file.write_text(DIFFERING.format(before=before, after=lua("\r\n\r\n"), routes=ROUTES - 2))
    return file


def lua(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n")
    return f'"{escaped}"'


async def load(proxy: Proxy, script: Path, *, connections: int, seconds: int) -> dict[str, float]:
    """One run: rate, p99, CPU for 10,000 requests, and how busy the proxy kept its core.

    RuntimeError if anything but 2xx or 3xx came, or if connections broke.
    """
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "--latency",
        "-s",
        str(script),
        proxy.url + PATH,
    ]
    cpu_s, began = proxy.cpu_s(), time.perf_counter()
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    wall_s = time.perf_counter() - began
    cpu_s = proxy.cpu_s() - cpu_s
    return read(done.stdout, cpu_s, wall_s)


def read(said: str, cpu_s: float, wall_s: float) -> dict[str, float]:
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    found = {
        name: re.search(pattern, said)
        for name, pattern in {
            "requests": r"(\d+) requests in",
            "rate": r"Requests/sec:\s+([\d.]+)",
            "p99": r"99%\s+([\d.]+)(us|ms|s)",
        }.items()
    }
    requests, rate, p99 = found["requests"], found["rate"], found["p99"]
    if not (requests and rate and p99):
        raise RuntimeError(f"wrk said something else than it used to:\n{said}")
    return {
        "per_s": round(float(rate[1])),
        "p99_ms": round(float(p99[1]) * UNITS_MS[p99[2]], 3),
        "cpu_s_per_10000": round(cpu_s / int(requests[1]) * 10_000, 3),
        "busy": round(cpu_s / wall_s, 2),
    }
