"""Profiles: named, admin-defined ways to run a server. Environment values are not here (they may be secrets)."""

from __future__ import annotations

import msgspec

from ..ids import derived_id
from ..registry import Event, event


def profile_stream(name: str) -> str:
    return f"profile-{derived_id('profile', name)}"


class Profile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to run a server."""

    name: str
    display_name: str = ""
    description: str = ""
    driver: str = "process"
    command: list[str] = msgspec.field(default_factory=list)
    """Argument list; `{port}`, `{base_url}`, `{home}`, `{user}` and `{python}` are replaced. Never a secret in here."""
    secret_env: str = "ORRERY_SERVER_SECRET"
    """Environment variable by which the server's own secret reaches it."""
    secret_header: str = "X-Orrery-Server-Secret"
    """Request header in which routers present the secret to the server; empty sends none."""
    secret_prefix: str = ""
    """Text before the secret in that header, e.g. `token `."""
    probe_path: str = ""
    """Path below the base URL that answers below 500 once the server is ready; empty probes the base URL itself."""
    start_timeout_s: float = 60.0
    strip_prefix: bool = False
    """True hands the server `/` instead of `/user/<name>/<server>/` (for programs that know no base URL)."""
    identity_headers: bool = False
    """True tells the server who its visitor is: `X-Orrery-User`, `X-Orrery-User-Id`, `X-Orrery-Admin`."""
    rewrite_location: bool = False
    """True puts redirects right that the server makes to its own address or without the stripped path."""
    response_timeout_s: float = 0.0
    """How long a router waits for the first byte of an answer; 0: as its settings say."""
    default_path: str = ""
    """Where Open leads, below the base URL, e.g. `lab`."""


JUPYTERLAB = Profile(
    name="jupyterlab",
    display_name="JupyterLab",
    description="Notebooks, terminals and a file browser in your home folder.",
    command=[
        "{python}", "-P", "-m", "orrery_spawner.jupyterlab", "--no-browser",
        "--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}", "--ServerApp.port_retries=0",
        "--ServerApp.base_url={base_url}", "--ServerApp.root_dir={home}",
        "--ServerApp.allow_remote_access=True", "--ServerApp.quit_button=False",
        "--ServerApp.allow_root=True",
    ],
    secret_env="JUPYTER_TOKEN",
    secret_header="Authorization",
    secret_prefix="token ",
    probe_path="api/status",
    default_path="lab",
)  # fmt: skip
"""The profile that is there before an admin defines any."""


@event("profile.defined")
class ProfileDefined(Event, frozen=True, kw_only=True):
    """An admin defined a profile or changed it."""

    profile: Profile

    def aggregate_id(self) -> str:
        return profile_stream(self.profile.name).removeprefix("profile-")

    def compaction_key(self) -> str | None:
        return self.profile.name


@event("profile.removed", tombstone=True)
class ProfileRemoved(Event, frozen=True, kw_only=True):
    """The profile may not be used for new starts."""

    name: str

    def aggregate_id(self) -> str:
        return profile_stream(self.name).removeprefix("profile-")

    def compaction_key(self) -> str | None:
        return self.name
