"""Copies the log to JetStream, in order, so that stream sequence and log position are the same number."""

from .relay import Relay
from .settle import Diverged

__all__ = ["Diverged", "Relay"]
