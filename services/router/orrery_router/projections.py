"""What a router knows from the log: routes, identities, instances of auth and api, who has which servers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
import structlog

from orrery_events.catalog.instance import InstanceDraining, InstanceLost, InstanceStarted, InstanceStopped
from orrery_events.catalog.route import PROXY, RouteRemoved, RouteSet
from orrery_events.catalog.server import Removed, ServerEvent
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_runtime.identity import CATEGORIES as IDENTITY_CATEGORIES
from orrery_runtime.identity import IdentityState

from . import target as targets
from .domain import Route, route_of, slim
from .table import Table
from .target import Target

CATEGORIES = (*IDENTITY_CATEGORIES, "route", "instance", "server")

NAMES_IN_A_TUPLE: Final = 8

_log = structlog.get_logger("orrery.router")


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of auth or api that browsers' requests can be sent to."""

    slot: str
    instance_id: str
    service: str
    target: Target
    draining: bool = False


class RouterState:
    """The fold. It holds no secret: a server's own is derived where it is needed."""

    SECTIONS: ClassVar[Mapping[str, Any]] = {
        **IdentityState.SECTIONS,
        "routes": Route,
        "backends": Backend,
        "server_names": tuple[str, tuple[str, ...]],
    }

    def __init__(self, *, keeps_traces: bool = False) -> None:
        """`keeps_traces`: routes remember the trace of the append that set them, which only a router needs that sends
        traces itself."""
        self.identity = IdentityState()
        self.table = Table()
        self.backends: dict[str, Backend] = {}
        """By slot."""
        self.server_names: dict[str, tuple[str, ...] | set[str]] = {}
        """User id → names of the named servers they have, running or not."""
        self._keeps_traces = keeps_traces

    def apply(self, recorded: Recorded, event: Event) -> None:
        match event:
            case RouteSet(policy=policy) | RouteRemoved(policy=policy) if policy == PROXY:
                return  # `orrery proxy` shares the log, and neither sees the other's routes.
            case RouteSet():
                self._set_route(recorded, event)
            case RouteRemoved():
                self.table.remove(event.host, event.prefix)
            case InstanceStarted() | InstanceDraining():
                self._put_backend(event)
            case InstanceStopped() | InstanceLost():
                known = self.backends.get(event.slot)
                if known is not None and known.instance_id == event.instance_id:
                    del self.backends[event.slot]
            case ServerEvent():
                if event.name:
                    self._note_server(event.user_id, event.name, has=not isinstance(event, Removed))
            case _:
                self.identity.apply(recorded, event)

    def backends_of(self, service: str) -> list[Backend]:
        """Live ones first, draining ones last, in a fixed order."""
        found = [b for b in self.backends.values() if b.service == service]
        return sorted(found, key=lambda b: (b.draining, b.slot))

    def _set_route(self, recorded: Recorded, event: RouteSet) -> None:
        try:
            route = route_of(event, traceparent=recorded.meta.traceparent if self._keeps_traces else "")
        except ValueError as error:
            _log.warning("route_refused", route_id=event.route_id, reason=str(error))
        else:
            self._put_route(route)

    def _put_route(self, route: Route) -> None:
        owner = self.identity.users.get(route.owner_id)
        self.table.set(slim(route, owner.user_id, owner.name) if owner else slim(route))

    def _note_server(self, user_id: str, name: str, *, has: bool) -> None:
        known = self.server_names.get(user_id, ())
        if (name in known) == has:
            return
        if isinstance(known, set):
            (known.add if has else known.discard)(name)
        else:
            known = (*known, name) if has else tuple(n for n in known if n != name)
            # A set is quicker from some size on, and several times as large below.
            self.server_names[user_id] = set(known) if len(known) > NAMES_IN_A_TUPLE else known
        if not known:
            del self.server_names[user_id]

    def _put_backend(self, event: InstanceStarted | InstanceDraining) -> None:
        if event.service not in ("auth", "api") or not event.url:
            return
        try:
            target, _ = targets.parse(event.url)
        except ValueError as error:
            _log.warning("instance_refused", slot=event.slot, reason=str(error))
            return
        self.backends[event.slot] = Backend(
            slot=event.slot,
            instance_id=event.instance_id,
            service=event.service,
            target=target,
            draining=isinstance(event, InstanceDraining),
        )

    def sections(self) -> dict[str, list[Any]]:
        """The state in immutable pieces; see `orrery_events.tail.snapshot`."""
        return {
            **self.identity.sections(),
            "routes": list(self.table.routes()),
            "backends": list(self.backends.values()),
            "server_names": [(user_id, tuple(names)) for user_id, names in self.server_names.items()],
        }

    def restore(self, section: str, items: Sequence[Any]) -> None:
        """The inverse, section by section."""
        match section:
            case "routes":
                for route in items:
                    self._put_route(route)
            case "backends":
                self.backends.update((backend.slot, backend) for backend in items)
            case "server_names":
                for user_id, names in items:
                    self.server_names[user_id] = names if len(names) <= NAMES_IN_A_TUPLE else set(names)
            case _:
                self.identity.restore(section, items)

    def digest(self) -> str:
        """Equal on all routers at the same position."""
        routes = sorted((r.host, r.prefix, r.target, r.generation, r.policy, r.options) for r in self.table.routes())
        backends = sorted((b.slot, b.instance_id, b.draining) for b in self.backends.values())
        servers = sorted((user_id, sorted(names)) for user_id, names in self.server_names.items())
        parts = [self.identity.digest(), routes, backends, servers]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
