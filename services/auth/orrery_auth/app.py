"""Auth's composition root: `orrery serve auth`."""

from __future__ import annotations

from orrery_events.tail import Tail
from orrery_runtime.errors import StartupError
from orrery_runtime.http import make_app, make_templates
from orrery_runtime.identity import Verifier
from orrery_runtime.process import Process, run

from .handlers import AccountCleaner
from .http import routes
from .http.common import IDENTITIES
from .identities import Identities
from .passwords import Hasher
from .projections import CATEGORIES, AuthState
from .store import Store

AUTH_KEY_LENGTH_MIN = 32


async def body(process: Process) -> None:
    auth_key = process.settings.auth_key.get_secret_value()
    if len(auth_key) < AUTH_KEY_LENGTH_MIN:
        raise StartupError(
            f"auth_key is {'missing' if not auth_key else 'too short'}: set ORRERY_AUTH_KEY_FILE to a file that "
            f"holds at least {AUTH_KEY_LENGTH_MIN} characters (`openssl rand -hex 32`), the same for every auth process"
        )
    hasher = Hasher()
    tail = Tail(process.events, process.bus, AuthState, categories=CATEGORIES, name="auth")
    await tail.start()
    process.track(tail)
    store = Store(process.pool, auth_key)
    identities = Identities(process.events, tail, store, hasher, session_max_age_s=process.settings.session_max_age_s)
    await identities.load_key()
    process.task("accounts", AccountCleaner(tail, store).run)
    app = make_app(
        process,
        routes=routes(),
        verifier=Verifier(lambda: tail.state.identity),
        tail=tail,
        templates=make_templates("orrery_auth"),
    )
    app[IDENTITIES] = identities
    await process.register(await process.serve_http(app), lease_loss="renew")
    await process.run_until_stopped()
    hasher.close()


def main() -> int:
    return run("auth", body)
