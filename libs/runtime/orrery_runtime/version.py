"""Our version, and the version of JupyterHub's API that we speak."""

from __future__ import annotations

from functools import cache

JUPYTERHUB_API_VERSION = "6.1.1"
"""Sent as `X-JupyterHub-Version` and in `GET /hub/api`; single-user servers compare it with their own."""


@cache
def version() -> str:
    """The installed version of the distribution."""
    import importlib.metadata  # noqa: PLC0415  (slow to import and needed once)

    try:
        return importlib.metadata.version("orrery")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"
