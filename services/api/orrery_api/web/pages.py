"""Home, start, the start's timeline. Every action is a form; the script only saves reloading."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from orrery_api.domain import Exists, NotNow
from orrery_api.http.common import (
    OPERATIONS,
    activity_of,
    server_name_in_path,
    state_of,
    user_in_path,
)
from orrery_api.http.progress import history
from orrery_api.models import iso, progress_path
from orrery_api.operations import UnknownProfile
from orrery_api.projections import ApiState, Entry
from orrery_events.catalog.server import Failed, Stopped, server_url_path
from orrery_events.names import InvalidName, check_server_name, normalise_user_name
from orrery_events.principal import Principal
from orrery_events.server_state import ENDED, STARTING, STOPPING, Phase
from orrery_runtime import scopes
from orrery_runtime.http import HttpError, principal_of, render, require_principal, set_position, url_path
from orrery_runtime.identity import User
from orrery_runtime.request import BASE_URL

USERS_SHOWN_MAX: Final = 200
REFRESH_S: Final = 2
"""How often the timeline reloads itself where there is no script."""

WORDS: Final = {
    Phase.REQUESTED: ("Waiting for a spawner", "busy"),
    Phase.CLAIMED: ("Starting", "busy"),
    Phase.READY: ("Running", "ready"),
    Phase.STOP_REQUESTED: ("Stopping", "busy"),
    Phase.STOP_CLAIMED: ("Stopping", "busy"),
    Phase.FAILED: ("Start failed", "failed"),
    Phase.CANCELLED: ("Start cancelled", "stopped"),
    Phase.EXPIRED: ("Start expired", "failed"),
    Phase.STOPPED: ("Stopped", "stopped"),
    Phase.REMOVED: ("Removed", "stopped"),
}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One server on the home page."""

    name: str
    title: str
    owner: str
    words: str
    look: str
    profile: str
    open_url: str
    pending_url: str
    start_url: str
    stop_url: str
    can_open: bool
    can_stop: bool
    can_start: bool
    starting: bool
    since: str | None
    since_words: str
    used: str | None
    used_words: str
    problem: str


async def home(request: web.Request) -> web.Response:
    principal = require_principal(request)
    state = state_of(request)
    entries = list(state.servers_of(principal.user_id))
    activity = await activity_of(request, [entry.server.server_id for entry in entries])
    cards = [_card(request, entry, activity.get(entry.server.server_id)) for entry in entries]
    if not any(card.name == "" for card in cards):
        cards.insert(0, _first_card(request, principal))
    users = _users(request, state) if principal.admin else []
    return render(
        request,
        "home.html",
        cards=cards,
        profiles=state.profiles(),
        users=users,
        users_more=max(0, len(state.identity.users) - USERS_SHOWN_MAX),
        problem=request.query.get("problem", "")[:300],
        refresh_s=REFRESH_S if any(card.look == "busy" for card in cards) else 0,
    )


async def spawn_page(request: web.Request) -> web.Response:
    """Choose a profile and start. A link may lead here, so looking at it starts nothing."""
    owner, name = _owner(request, "start:servers"), server_name_in_path(request)
    entry = state_of(request).server(owner.user_id, name)
    if entry is not None and entry.server.phase is Phase.READY:
        raise web.HTTPFound(_server_url(request, owner.name, name))
    if entry is not None and entry.server.phase in STARTING:
        raise web.HTTPFound(_hub_url(request, "spawn-pending", owner.name, name))
    return render(
        request,
        "spawn.html",
        owner=owner.name,
        name=name,
        title=name or "Your server",
        profiles=state_of(request).profiles(),
        chosen=entry.server.last.profile if entry and entry.server.last else "jupyterlab",
        action=_hub_url(request, "spawn", owner.name, name),
        problem="",
    )


async def spawn(request: web.Request) -> web.Response:
    principal = _form_principal(request)
    form = await request.post()
    try:
        if "server" not in request.match_info and isinstance(form.get("server"), str):
            name = check_server_name(str(form["server"]).strip())
        else:
            name = server_name_in_path(request)
    except InvalidName as error:
        raise _back_home(request, f"{error}.") from None
    owner = _owner(request, "start:servers")
    try:
        outcome = await request.app[OPERATIONS].start(
            owner, name, profile=str(form.get("profile", "")), display_name="", options={}, actor=principal.user_id
        )
    except (NotNow, UnknownProfile) as error:
        raise _back_home(request, f"{error}.") from None
    return _moved(_hub_url(request, "spawn-pending", owner.name, name), outcome.position)


async def stop(request: web.Request) -> web.Response:
    principal = _form_principal(request)
    owner, name = _owner(request, "delete:servers"), server_name_in_path(request)
    entry = state_of(request).server(owner.user_id, name)
    if entry is None:
        raise _back_home(request, "There is no such server.")
    form = await request.post()
    try:
        outcome = await request.app[OPERATIONS].stop(
            entry.server.server_id, remove=bool(form.get("remove")) and bool(name), actor=principal.user_id
        )
    except NotNow as error:
        raise _back_home(request, f"{error}.") from None
    return _moved(url_path(request, "/hub/home"), outcome.position)


async def pending(request: web.Request) -> web.Response:
    """The start's timeline: live with a script, reloading itself without."""
    owner, name = _owner(request, "read:servers"), server_name_in_path(request)
    entry = state_of(request).server(owner.user_id, name)
    if entry is None:
        raise web.HTTPFound(_hub_url(request, "spawn", owner.name, name))
    server, url = entry.server, _server_url(request, owner.name, name)
    if server.phase is Phase.READY:
        profile = state_of(request).profile(server.last.profile) if server.last else None
        raise web.HTTPFound(url + (profile.default_path if profile else ""))
    steps = await history(request, server)
    last = server.last
    return render(
        request,
        "pending.html",
        title=name or "Your server",
        steps=[{**step, "look": _look(step)} for step in steps],
        progress=max((step["progress"] for step in steps if not step.get("failed")), default=0),
        phase=server.phase.value,
        words=WORDS[server.phase][0],
        look=WORDS[server.phase][1],
        ended=server.phase in ENDED,
        problem=last.message if isinstance(last, Failed | Stopped) else "",
        log_tail=last.log_tail if isinstance(last, Failed | Stopped) else [],
        progress_url=progress_path(request.app[BASE_URL], owner.name, name),
        server_url=url,
        start_url=_hub_url(request, "spawn", owner.name, name),
        stop_url=_hub_url(request, "stop", owner.name, name),
        refresh_s=0 if server.phase in ENDED else REFRESH_S,
    )


async def create_user(request: web.Request) -> web.Response:
    principal = _form_principal(request)
    scopes.require(principal, "admin:users")
    form = await request.post()
    try:
        name = normalise_user_name(str(form.get("username", "")))
        position = await request.app[OPERATIONS].create_user(
            name, admin=bool(form.get("admin")), actor=principal.user_id
        )
    except (InvalidName, Exists) as error:
        raise _back_home(request, f"{error}.") from None
    # Without a password they could not sign in; auth has the page for that.
    return _moved(url_path(request, f"/hub/password/{quote(name)}"), position)


async def user_redirect(request: web.Request) -> web.Response:
    """`/hub/user-redirect/lab/tree/x` leads everybody to their own server."""
    principal = require_principal(request)
    rest = request.match_info["rest"].lstrip("/")
    query = f"?{request.query_string}" if request.query_string else ""
    raise web.HTTPFound(_server_url(request, principal.name, "") + quote(rest) + query)


async def to_home(request: web.Request) -> web.Response:
    raise web.HTTPFound(url_path(request, "/hub/home"))


async def nothing_here(request: web.Request) -> web.Response:
    raise HttpError(404, f"{request.path[:200]} is not a page of this platform.")


def _form_principal(request: web.Request) -> Principal:
    principal = require_principal(request)
    if principal_of(request) is None:
        raise HttpError(403, "Sign in first.")
    return principal


def _owner(request: web.Request, scope: str) -> User:
    """The person in the path, or whoever asks when the path names nobody."""
    if "user" in request.match_info:
        return user_in_path(request, scope)
    principal = require_principal(request)
    scopes.require(principal, scope, user_name=principal.name)
    user = state_of(request).identity.users.get(principal.user_id)
    if user is None:
        raise HttpError(403, "This account does not exist any more.")
    return user


def _moved(url: str, position: int) -> web.Response:
    """303: a reload does not repeat the form."""
    response = web.Response(status=303, headers={"Location": url})
    if position:
        set_position(response, position)
    return response


def _back_home(request: web.Request, problem: str) -> web.HTTPException:
    return web.HTTPSeeOther(url_path(request, "/hub/home") + "?problem=" + quote(problem))


def _hub_url(request: web.Request, page: str, owner: str, name: str) -> str:
    tail = f"{quote(owner)}/{name}" if name else quote(owner)
    return url_path(request, f"/hub/{page}/{tail}")


def _server_url(request: web.Request, owner: str, name: str) -> str:
    return url_path(request, quote(server_url_path(owner, name)))


def _first_card(request: web.Request, principal: Principal) -> Card:
    return Card(
        name="", title="Your server", owner=principal.name, words="Not started yet", look="stopped",
        profile="JupyterLab", open_url="", pending_url="", stop_url="",
        start_url=_hub_url(request, "spawn", principal.name, ""),
        can_open=False, can_stop=False, can_start=True, starting=False,
        since=None, since_words="", used=None, used_words="", problem="",
    )  # fmt: skip


def _card(request: web.Request, entry: Entry, used_at: float | None) -> Card:
    server, last = entry.server, entry.server.last
    if last is None:
        raise ValueError("a server in the projection has a history")
    profile = state_of(request).profile(last.profile)
    words, look = WORDS[server.phase]
    started = last.started_at if server.phase is Phase.READY else None
    problem = last.message if isinstance(last, Failed) or (isinstance(last, Stopped) and last.message) else ""
    return Card(
        name=last.name,
        title=last.display_name or last.name or "Your server",
        owner=last.user_name,
        words=words,
        look=look,
        profile=(profile.display_name or profile.name) if profile else last.profile,
        open_url=_server_url(request, last.user_name, last.name) + (profile.default_path if profile else ""),
        pending_url=_hub_url(request, "spawn-pending", last.user_name, last.name),
        start_url=_hub_url(request, "spawn", last.user_name, last.name),
        stop_url=_hub_url(request, "stop", last.user_name, last.name),
        can_open=server.phase is Phase.READY,
        can_stop=server.phase is Phase.READY or server.phase in STARTING,
        can_start=server.phase in ENDED,
        starting=server.phase in STARTING or server.phase in STOPPING or server.phase is Phase.FAILED,
        since=iso(started),
        since_words=ago(started),
        used=iso(used_at),
        used_words=ago(used_at),
        problem=problem,
    )


def _users(request: web.Request, state: ApiState) -> list[dict[str, Any]]:
    """For admins: who there is and how their servers are."""
    people = sorted(state.identity.users.values(), key=lambda user: user.name)[:USERS_SHOWN_MAX]
    return [
        {
            "name": user.name,
            "admin": user.admin,
            "created": iso(user.created_at),
            "servers": [
                {
                    "title": entry.server.last.name or "default",
                    "words": WORDS[entry.server.phase][0],
                    "look": WORDS[entry.server.phase][1],
                    "running": entry.server.phase not in ENDED,
                    "stop_url": _hub_url(request, "stop", user.name, entry.server.last.name),
                }
                for entry in state.servers_of(user.user_id)
                if entry.server.last
            ],
        }
        for user in people
    ]


def _look(step: dict[str, Any]) -> str:
    """The style of one line of the timeline."""
    if step.get("failed"):
        return "failed"
    return "ready" if step.get("ready") else ""


def ago(at: float | None) -> str:
    """`3 minutes ago`, for people; empty for None."""
    if not at:
        return ""
    seconds = max(0.0, time.time() - at)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


ROUTES: Final = [
    web.get("/", to_home),
    web.get("/hub", to_home),
    web.get("/hub/", to_home),
    web.get("/hub/home", home),
    web.get("/hub/spawn", spawn_page),
    web.get("/hub/spawn/{user}", spawn_page),
    web.get("/hub/spawn/{user}/{server}", spawn_page),
    web.post("/hub/spawn", spawn),
    web.post("/hub/spawn/{user}", spawn),
    web.post("/hub/spawn/{user}/{server}", spawn),
    web.get("/hub/spawn-pending/{user}", pending),
    web.get("/hub/spawn-pending/{user}/{server}", pending),
    web.post("/hub/stop/{user}", stop),
    web.post("/hub/stop/{user}/{server}", stop),
    web.post("/hub/admin/users", create_user),
    web.get("/hub/user-redirect/{rest:.*}", user_redirect),
]
LAST: Final = [web.route("*", "/hub/{rest:.*}", nothing_here)]
