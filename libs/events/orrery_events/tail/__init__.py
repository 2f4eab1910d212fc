"""Follows the log: rebuild from Postgres, then JetStream, then Postgres again when JetStream is not there."""

from .keeper import Place
from .machine import Mode, TailMachine
from .tail import Tail

__all__ = ["Mode", "Place", "Tail", "TailMachine"]
