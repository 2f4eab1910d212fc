"""Follows the log: rebuild from Postgres, then JetStream, then Postgres again when JetStream is not there."""

from .. import without_rich as without_rich  # Before anything imports structlog.
from .keeper import Place
from .machine import Mode, TailMachine
from .tail import Tail

__all__ = ["Mode", "Place", "Tail", "TailMachine"]
