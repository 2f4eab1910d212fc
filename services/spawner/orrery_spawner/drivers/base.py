"""What the spawner needs of anything that can run a server.

Every call is idempotent and named by server id and generation, so that a step may be done twice, by two spawners,
before and after a crash. A driver does nothing destructive on its own account: `stop`, `remove` and `purge` are called
after the matching event was appended. A driver that cannot answer raises DriverUnavailable: unknown never means dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from orrery_events.errors import OrreryError

State = Literal["absent", "starting", "running", "exited"]
"""`absent`: nothing was started; `starting`: being started right now, perhaps by another spawner."""


class ServerKey(NamedTuple):
    """One start of one server: the name of everything that a driver makes."""

    server_id: str
    generation: int

    def __str__(self) -> str:
        return f"{self.server_id}-g{self.generation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """All that a driver needs to know to start a server."""

    key: ServerKey
    user_name: str
    command: tuple[str, ...]
    """May hold `{port}`, `{base_url}`, `{home}`, `{user}` and `{python}`."""
    public_path: str
    """Where people reach it, e.g. `/user/ada/lab/`, the platform's base path included."""
    base_url: str
    """Path under which requests arrive at the server: `public_path`, or `/` when the router strips it."""
    secret_env: str
    """Name of the environment variable that carries the secret; empty: it gets none."""
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a driver sees of one start of one server."""

    key: ServerKey
    state: State
    target: str = ""
    """`http://host:port` that was reserved for it."""
    exit_code: int | None = None
    """Negative: the signal that ended it. None: still running, or ended while nobody could see how."""
    vanished: bool = False
    """Ended together with its machine, or nothing is known of its end."""
    launch_error: str = ""
    """Why the command could not be executed at all, as a sentence."""
    created_at: float = 0.0
    """Unix seconds at which the driver first made something for it."""


class DriverUnavailable(OrreryError):
    """The driver cannot tell or do it now. Nothing is known of the server; try again."""


ABANDONED = "this spawner is stopping: the next one goes on"


class LaunchRefused(OrreryError):
    """This server can never be started as asked. The message says what to change."""


class Driver(Protocol):
    """A way to run servers. All methods may raise DriverUnavailable."""

    name: str

    async def survey(self, server_id: str = "") -> list[Observed]:
        """Everything that the driver has made and not yet removed, of one server or of all."""

    async def inspect(self, key: ServerKey) -> Observed:
        """The same for one."""

    async def prepare(self, spec: LaunchSpec) -> None:
        """Makes what outlives a start: the home folder, volumes. Raises LaunchRefused."""

    async def reserve(self, spec: LaunchSpec, *, attempt: int = 1) -> str:
        """Chooses where the server will listen and returns that target; a higher `attempt` chooses anew."""

    async def start(self, spec: LaunchSpec) -> Observed:
        """Starts the reserved server, or adopts what was started before. Raises LaunchRefused."""

    async def owns_target(self, key: ServerKey) -> bool | None:
        """Does this server itself listen where it was told to? None: cannot be told."""

    async def target_taken(self, key: ServerKey) -> bool:
        """Does something else listen there?"""

    async def logs(self, key: ServerKey, lines: int) -> list[str]:
        """The last lines that the server printed, as they are."""

    async def stop(self, key: ServerKey, grace_s: float) -> Observed:
        """Ends it and everything it started: asked kindly, killed after `grace_s`."""

    async def remove(self, key: ServerKey) -> None:
        """Forgets a start that has ended. What the person owns stays."""

    async def purge(self, server_id: str) -> None:
        """Forgets the server altogether, once its record is gone. What the person owns stays."""

    async def housekeep(self) -> None:
        """Keeps logs within their bounds. Called every few seconds."""

    def on_exit(self, callback: Callable[[ServerKey], None]) -> None:
        """Calls back soon after a server that `start` or `survey` has seen ended, where the system can tell."""

    async def close(self) -> None:
        """Lets go of the servers, which go on running."""
