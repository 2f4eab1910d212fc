"""What `orrery up` prints when everything is there."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from orrery_cli.console import paint


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the banner tells."""

    version: str
    seconds: float
    url: str
    setup_token: str = ""
    bootstrap_admin: str = ""
    data_dir: Path
    option: str
    """` --data-dir …` when it must be typed to find this platform."""
    database: str
    """`PostgreSQL 18.4, embedded` and where it is."""
    database_place: str
    events: str
    events_place: str
    services: list[str]
    """Slots."""
    stop_servers: bool = False


def text(facts: Facts) -> str:
    lines = ["", _spread(f"  {paint(f'Orrery {facts.version}', 'bold')}", f"ready in {facts.seconds:.1f} s"), ""]
    lines.append(_row("Web", paint(facts.url, "bold")))
    lines.append(_row("Sign in", *_sign_in(facts)))
    lines.append(_row("Data", shown(facts.data_dir)))
    lines.append(_row("Database", facts.database, facts.database_place))
    lines.append(_row("Events", facts.events, facts.events_place))
    lines.append(_row("Services", _services(facts.services)))
    lines.append("")
    user = "root" if os.geteuid() == 0 else "your own user"
    lines.append(f"  Notebooks run as {user}, without a wall between them: for people who trust one another.")
    lines.append("  This is a single-machine setup: no high availability.")
    option = facts.option
    lines.append(f"  Processes: orrery status{option}     Health: orrery doctor{option}")
    lines.append(f"  Events: orrery events tail --follow{option}")
    lines.append(
        "  Ctrl-C stops everything, notebooks too."
        if facts.stop_servers
        else "  Ctrl-C stops everything; running notebooks keep running (--stop-servers stops them, too)."
    )
    return "\n".join(lines) + "\n"


def shown(path: Path) -> str:
    """With `~` for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)


def _sign_in(facts: Facts) -> tuple[str, ...]:
    if facts.setup_token:
        return paint(f"{facts.url}/hub/setup/{facts.setup_token}", "bold"), "one use, expires in 15 minutes"
    if facts.bootstrap_admin:
        return f"{facts.url}/hub/login", f"as {facts.bootstrap_admin}, with the password you gave"
    return (f"{facts.url}/hub/login",)


def _services(slots: list[str]) -> str:
    routers = sum(slot.startswith("router") for slot in slots)
    names = [slot for slot in slots if not slot.startswith("router")]
    told = [f"{name} {paint('ok', 'green')}" for name in names]
    return "   ".join([*told, f"router {paint('ok', 'green')} x{routers}"])


def _row(name: str, *cells: str) -> str:
    return f"  {paint(name.ljust(9), 'dim')}  " + "     ".join(cell for cell in cells if cell)


def _spread(left: str, right: str, width: int = 72) -> str:
    return left + " " * max(2, width - len(left) - len(right)) + right
