"""The event log in Postgres: append with group commit, read, leases. The only package that writes schema `es`."""

from __future__ import annotations

from .. import without_rich as without_rich  # Before anything imports structlog.
from .appender import Appended
from .event_log import EventLog
from .leases import InstanceRow, Lease, LeaseLost, expire_instances, live_instances
from .maintenance import ensure_partitions, prune_command_ids, record_dead_letter
from .pool import create_pool
from .reader import CategoryHead, Head, Snapshot

__all__ = [
    "Appended",
    "CategoryHead",
    "EventLog",
    "Head",
    "InstanceRow",
    "Lease",
    "LeaseLost",
    "Snapshot",
    "create_pool",
    "ensure_partitions",
    "expire_instances",
    "live_instances",
    "prune_command_ids",
    "record_dead_letter",
]
