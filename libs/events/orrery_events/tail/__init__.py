"""Follows the log: rebuild from Postgres, then JetStream, then Postgres again when JetStream is not there."""

from .machine import Mode, TailMachine
from .tail import Tail

__all__ = ["Mode", "Tail", "TailMachine"]
