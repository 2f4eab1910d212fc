"""Where a process keeps its projection on disk: `<data_dir>/snapshots/<service>/<slot>.snapshot`."""

from __future__ import annotations

from orrery_events.tail import Place
from orrery_events.tail.snapshot import SUFFIX, candidates

from .config import Settings
from .secrets import Secrets

FOLDER = "snapshots"


def place_of(service: str, settings: Settings) -> Place | None:
    """None where it keeps none: `snapshots` is off, or there is no slot, and therefore no name that is the same after a
    restart. Raises ConfigError without a secret key."""
    if not settings.snapshots or not settings.slot:
        return None
    path = settings.data_dir / FOLDER / service / f"{settings.slot}{SUFFIX}"
    return Place(path=path, key=Secrets(settings.secret_key).derive("snapshot"))


def may_start_alone(service: str, settings: Settings) -> bool:
    """True if there is something to begin with while Postgres is away."""
    place = place_of(service, settings)
    return place is not None and bool(candidates(place.path))
