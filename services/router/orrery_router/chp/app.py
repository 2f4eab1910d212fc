"""The composition root of `orrery proxy`'s serving process."""

from __future__ import annotations

import os
import ssl
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from orrery_events.catalog.route import RouteRemoved
from orrery_events.errors import LogUnavailable
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail
from orrery_router.app import CATCH_UP_S
from orrery_router.dataplane.addresses import Address
from orrery_router.dataplane.arrival import Trust
from orrery_router.dataplane.limits import Limits
from orrery_router.dataplane.redirect import Redirector
from orrery_router.dataplane.server import DataPlane
from orrery_router.dataplane.tls import KeyPair, Reloaded, server_context, upstream_tls
from orrery_runtime import listener, redaction
from orrery_runtime.config import Settings
from orrery_runtime.errors import StartupError
from orrery_runtime.process import Process, run
from orrery_runtime.snapshots import may_start_alone, place_of

from . import metrics
from . import options as handed
from .activity import ProxyActivity
from .api import Api
from .gateway import ProxyGateway
from .options import Options, Tls
from .pages import Pages, error_client
from .projections import CATEGORIES, ProxyState
from .routes import Routes

NAME = "proxy"


async def body(process: Process) -> None:
    options = read_options()
    token = os.environ.pop(handed.TOKEN_ENV, "")
    redaction.add_own_secrets(token)
    place = place_of(NAME, process.settings)
    tail = Tail(process.events, process.bus, ProxyState, categories=CATEGORIES, name=NAME, place=place)
    await tail.start()
    process.track(tail)
    activity = ProxyActivity(process.bus, process.instance_id)
    process.task("activity", activity.run)

    def applied(_recorded: Recorded, event: Event) -> None:
        if isinstance(event, RouteRemoved):
            activity.forget(event.route_id)

    tail.subscribe(applied)
    routes = Routes(process.events, tail, activity, host_routing=options.host_routing)
    if process.started_alone:
        # What it was is known; whether it is another now is for the log to say.
        process.task("default target", partial(set_default, routes, options))
    else:
        await set_default(routes, options)
    if not token:
        process.logger.warning("api_without_token", consequence="whoever reaches the REST API may change routes")
    api = Api(routes, token)
    outgoing = client_tls(process.settings, options)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(error_client(outgoing)) if options.error_target else None
        plane, statistics = make_plane(
            process, tail, options=options, pages=Pages(options, http), activity=activity, outgoing=outgoing
        )
        url = await listen(plane, options)
        process.task("clock", plane.run)
        api_tls = server_side("--api-ssl-cert", options.api_ssl)
        context = api_tls.value if api_tls else None
        await serve(
            process, api.application(), host=options.api_ip, port=options.api_port, path=options.api_socket, tls=context
        )
        if statistics is not None:
            app = metrics.application(statistics, api)
            await serve(process, app, host=options.metrics_ip, port=options.metrics_port, path=options.metrics_socket)
        await process.register(url, lease_loss="renew")
        await process.run_until_stopped()
        await plane.drain(process.settings.drain_timeout_s, websockets_s=process.settings.websocket_drain_s)
        await activity.flush()


def make_plane(
    process: Process,
    tail: Tail[ProxyState],
    *,
    options: Options,
    pages: Pages,
    activity: ProxyActivity,
    outgoing: Reloaded[ssl.SSLContext],
) -> tuple[DataPlane, metrics.Statistics | None]:
    """The data plane, and what it counts if that is asked for."""
    settings = process.settings
    bounds = bounds_of(Limits.of(settings), options)

    async def catch_up() -> bool:
        return await tail.catch_up(CATCH_UP_S)

    def find(host: str, segments: tuple[str, ...]) -> metrics.Found:
        return tail.state.find(host, segments)

    statistics = metrics.Statistics() if options.metrics_port or options.metrics_socket else None
    gateway = ProxyGateway(statistics.finding(find) if statistics else find, options, pages, bounds)
    plane = metrics.CountingPlane(
        gateway,
        metrics.TimedActivity(activity, statistics.touched) if statistics else activity,
        catch_up,
        base_url="/",
        bounds=bounds,
        upstream_tls=outgoing,
        trust=Trust(""),
        tls=server_side("--ssl-cert", options.ssl),
        tls_handshake_timeout_s=settings.tls_handshake_timeout_s,
    )
    plane.statistics = statistics
    return plane, statistics


async def set_default(routes: Routes, options: Options) -> None:
    """Raises StartupError."""
    if not options.default_target:
        return
    try:
        await routes.set_default(options.default_target)
    except LogUnavailable as error:
        raise StartupError(f"--default-target could not be set: {error}") from None


async def listen(plane: DataPlane, options: Options) -> str:
    """The public port, and that of redirects; returns the former's URL. Raises StartupError."""
    tls = bool(options.ssl.cert)
    if options.socket:
        # As Node.js does it: whoever the umask lets.
        umask = os.umask(0o077)
        os.umask(umask)
        places = await plane.listeners.open([Address(socket_path=options.socket, mode=0o777 & ~umask)], plane.serve)
        return places[0].url
    # All interfaces: of both protocols, or of the one that this machine has.
    hosts = [options.ip] if options.ip else ["::", "0.0.0.0"]
    while True:
        try:
            await plane.listeners.open([Address(host=hosts[0], port=options.port, tls=tls)], plane.serve)
            break
        except StartupError:
            if len(hosts) == 1:
                raise
            hosts.pop(0)
    if options.redirect_port:
        redirecting = Address(host=hosts[0], port=options.redirect_port)
        https_port = options.redirect_to or options.port
        await plane.listeners.open([redirecting], lambda _arrival, _peer: Redirector(plane, https_port))
    return f"{'https' if tls else 'http'}://{url_host(options.ip)}:{options.port}"


async def serve(
    process: Process, app: web.Application, *, host: str, port: int, path: str, tls: ssl.SSLContext | None = None
) -> None:
    """Another listener, until the process ends. Raises StartupError."""
    timeout_s = process.settings.drain_timeout_s
    try:
        runner = await listener.listen(
            app, host, port, shutdown_timeout_s=timeout_s, share_port=True, socket_path=path, tls=tls
        )
    except OSError as error:
        where = path or f"port {port} on {host or 'all interfaces'}"
        raise StartupError(f"{where} cannot be used ({error.strerror}): stop what uses it or choose another") from None
    process.on_stop("listener", runner.cleanup)


def server_side(flag: str, files: Tls) -> Reloaded[ssl.SSLContext] | None:
    """What clients are answered with; None without a certificate. Raises ConfigError."""
    if not files.cert:
        return None
    pair = KeyPair(Path(files.cert), Path(files.key or files.cert))
    ca = Path(files.ca) if files.verify else None
    return Reloaded(flag, [*pair, *([ca] if ca else [])], lambda: server_context([pair], ca))


def client_tls(settings: Settings, options: Options) -> Reloaded[ssl.SSLContext]:
    """What `https://` targets are spoken to with. Raises ConfigError."""
    files = options.client_ssl
    given = {
        "upstream_ca_file": Path(files.ca) if files.ca else None,
        "upstream_cert_file": Path(files.cert) if files.cert else None,
        "upstream_key_file": Path(files.key) if files.key else None,
        "upstream_insecure": options.insecure,
    }
    return upstream_tls(settings.model_copy(update={name: value for name, value in given.items() if value}))


def bounds_of(bounds: Limits, options: Options) -> Limits:
    """The router's bounds, with what the flags say of times."""
    changed = {"keepalive_timeout_s": options.keep_alive_timeout_s}
    if options.timeout_s:
        changed |= {"body_timeout_s": options.timeout_s, "head_timeout_s": options.timeout_s}
    return msgspec.structs.replace(bounds, **changed)


def url_host(ip: str) -> str:
    """How others on this machine reach what listens there."""
    if ip in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{ip}]" if ":" in ip else ip


def read_options() -> Options:
    """Raises StartupError."""
    try:
        return handed.decode(os.environ.get(handed.ENV, "{}"))
    except msgspec.MsgspecError as error:
        raise StartupError(f"{handed.ENV} is not usable ({error}): start this by `orrery proxy`") from None


def main() -> int:
    return run(NAME, body, may_start_alone=partial(may_start_alone, NAME))
