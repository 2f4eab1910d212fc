"""Sessions and tokens: genuine ones pass, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as oracle
from joserfc.jwk import OKPKey

from orrery_events.catalog.auth import (
    KeyAnnounced,
    KeyRetired,
    SessionRevoked,
    SessionStarted,
    TokenIssued,
    TokenRevoked,
    UserEpochBumped,
)
from orrery_events.catalog.user import UserCreated, UserDeleted, UserUpdated
from orrery_events.principal import Kind, Principal
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import Event, encode
from orrery_runtime.identity import Claims, IdentityState, Verifier, sign, token_in
from orrery_runtime.jws import SigningKey, b64url

NOW = 1_800_000_000.0


class Log:
    """Feeds a state, numbering the events as the log does."""

    def __init__(self) -> None:
        self.state = IdentityState()
        self.events: list[Event] = []

    def add(self, *events: Event) -> None:
        for event in events:
            self.events.append(event)
            self.state.apply(recorded(len(self.events), event), event)

    def compacted(self) -> IdentityState:
        """The state as a restarted process folds it: last event of each key, tombstones left out."""
        last = {e.compaction_key(): i for i, e in enumerate(self.events)}
        state = IdentityState()
        for i, event in enumerate(self.events):
            if last[event.compaction_key()] == i and not event.TOMBSTONE:
                state.apply(recorded(i + 1, event), event)
        return state


def recorded(position: int, event: Event) -> Recorded:
    return Recorded(
        position=position,
        category=event.CATEGORY,
        category_seq=position,
        stream_id="s",
        stream_version=1,
        event_id=str(position),
        type=event.TYPE,
        schema_version=event.VERSION,
        data=encode(event),
        meta=Meta(),
        recorded_at=NOW,
        epoch=1,
    )


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("k1")


@pytest.fixture
def log(key: SigningKey) -> Iterator[Log]:
    log = Log()
    log.add(
        KeyAnnounced(kid="k1", public_key=key.public_key, not_before=0),
        UserCreated(user_id="u-ada", name="ada", admin=False, created_at=1),
        UserCreated(user_id="u-root", name="root", admin=True, created_at=1),
    )
    yield log
    assert log.compacted().digest() == log.state.digest(), "a restarted process must come to the same state"


@pytest.fixture
def verifier(log: Log) -> Verifier:
    return Verifier(lambda: log.state)


def claims(**changes: Any) -> Claims:
    return msgspec.structs.replace(Claims(sub="u-ada", jti="j1", iat=NOW - 5, exp=NOW + 100), **changes)


def forge(header: dict[str, Any], payload: dict[str, Any], signature: bytes) -> str:
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(b64url(part) for part in parts)


PAYLOAD = {"sub": "u-ada", "jti": "j1", "iat": NOW - 5, "exp": NOW + 100}


def test_a_session_names_its_user(verifier: Verifier, key: SigningKey) -> None:
    principal = verifier.verify(sign(claims(), key, kind="session"), NOW)
    assert principal == Principal(
        user_id="u-ada", name="ada", admin=False, kind="session", id="j1", scopes=frozenset(), expires_at=NOW + 100,
        issued_at=NOW - 5,
    )  # fmt: skip


def test_a_token_carries_its_scopes_and_may_never_expire(verifier: Verifier, key: SigningKey) -> None:
    token = sign(claims(exp=None, scp=("read:users",)), key, kind="token")
    assert token.startswith("orr_")
    principal = verifier.verify(token, NOW + 1e9)
    assert principal is not None
    assert principal.kind == "token"
    assert principal.scopes == {"read:users"}
    assert principal.expires_at is None


def test_a_session_must_expire(verifier: Verifier, key: SigningKey) -> None:
    assert verifier.check(sign(claims(exp=None), key, kind="session"), NOW) == "malformed"


def test_admin_comes_from_the_log_and_not_from_the_token(log: Log, verifier: Verifier, key: SigningKey) -> None:
    token = sign(claims(sub="u-root"), key, kind="session")
    principal = verifier.verify(token, NOW)
    assert principal is not None
    assert principal.admin
    log.add(UserUpdated(user_id="u-root", name="root", admin=False, created_at=1))
    principal = verifier.verify(token, NOW)
    assert principal is not None
    assert not principal.admin
    # A claim that says so changes nothing, even when it is signed.
    text = key.sign("orrery-session", json.dumps({**PAYLOAD, "admin": True, "name": "root"}).encode())
    principal = verifier.verify(text, NOW)
    assert principal is not None
    assert (principal.name, principal.admin) == ("ada", False)


def test_it_expires(verifier: Verifier, key: SigningKey) -> None:
    token = sign(claims(), key, kind="session")
    assert verifier.verify(token, NOW + 99.9)
    assert verifier.check(token, NOW + 100) == "expired"


@pytest.mark.parametrize("kind", ["session", "token"])
def test_a_session_is_no_token_and_a_token_no_session(verifier: Verifier, key: SigningKey, kind: Kind) -> None:
    good = sign(claims(), key, kind=kind)
    other: Kind = "token" if kind == "session" else "session"
    assert verifier.verify(good, NOW, kind=kind)
    assert verifier.verify(good, NOW, kind=other) is None
    swapped = good.removeprefix("orr_") if kind == "token" else f"orr_{good}"
    assert verifier.verify(swapped, NOW) is None, "the type inside the signature decides, not the prefix"
    assert verifier.verify(swapped, NOW, kind=other) is None
    assert verifier.authenticate(
        f"token {good}" if kind == "session" else "", good if kind == "token" else "", NOW
    ) in (
        None,
        "malformed",
    )


def test_revocation_is_effective_at_once(log: Log, verifier: Verifier, key: SigningKey) -> None:
    session, token = sign(claims(jti="s"), key, kind="session"), sign(claims(jti="t"), key, kind="token")
    assert verifier.verify(session, NOW)
    assert verifier.verify(token, NOW)
    log.add(
        SessionStarted(session_id="s", user_id="u-ada", issued_at=NOW, expires_at=NOW + 100),
        TokenIssued(token_id="t", user_id="u-ada", issued_at=NOW),
        SessionRevoked(session_id="s", user_id="u-ada", issued_at=NOW, expires_at=NOW + 100),
    )
    assert verifier.check(session, NOW) == "revoked"
    assert verifier.verify(token, NOW)
    log.add(TokenRevoked(token_id="t", user_id="u-ada", issued_at=NOW))
    assert verifier.check(token, NOW) == "revoked"


def test_a_bumped_epoch_ends_all_older_ones(log: Log, verifier: Verifier, key: SigningKey) -> None:
    old, new = sign(claims(jti="a"), key, kind="session"), sign(claims(jti="b", ep=1), key, kind="token")
    assert verifier.verify(old, NOW)
    log.add(UserEpochBumped(user_id="u-ada", epoch=1))
    assert verifier.check(old, NOW) == "revoked"
    assert verifier.verify(new, NOW)


def test_a_deleted_user_is_nobody_even_when_the_name_is_taken_again(
    log: Log, verifier: Verifier, key: SigningKey
) -> None:
    token = sign(claims(), key, kind="token")
    assert verifier.verify(token, NOW)
    log.add(UserDeleted(user_id="u-ada", name="ada"))
    assert verifier.check(token, NOW) == "unknown_user"
    assert log.state.user_by_name("ada") is None
    log.add(UserCreated(user_id="u-ada2", name="ada", admin=True))
    assert verifier.check(token, NOW) == "unknown_user"
    found = log.state.user_by_name("ada")
    assert found is not None
    assert found.user_id == "u-ada2"


def test_renaming_moves_the_name_and_frees_the_old_one(log: Log, verifier: Verifier, key: SigningKey) -> None:
    token = sign(claims(), key, kind="token")
    log.add(UserUpdated(user_id="u-ada", name="lovelace", created_at=1))
    log.add(UserCreated(user_id="u-new", name="ada"))
    log.add(UserUpdated(user_id="u-ada", name="countess", created_at=1))
    assert {n: u for n, u in log.state.user_ids.items() if n != "root"} == {"ada": "u-new", "countess": "u-ada"}
    principal = verifier.verify(token, NOW)
    assert principal is not None
    assert principal.name == "countess"


def test_a_retired_key_and_a_replaced_key_sign_nothing(log: Log, verifier: Verifier, key: SigningKey) -> None:
    token = sign(claims(), key, kind="session")
    assert verifier.verify(token, NOW)
    log.add(KeyAnnounced(kid="k1", public_key=SigningKey.generate("k1").public_key, not_before=0))
    assert verifier.check(token, NOW) == "forged", "a remembered signature is bound to the key that verified it"
    log.add(KeyAnnounced(kid="k1", public_key=key.public_key, not_before=0))
    assert verifier.verify(token, NOW)
    log.add(KeyRetired(kid="k1"))
    assert verifier.check(token, NOW) == "unknown_key"


def test_an_announced_key_that_is_none_is_left_out(log: Log) -> None:
    for text in ("", "!", "AAAA", "A" * 43 + "="):
        log.add(KeyAnnounced(kid="bad", public_key=text, not_before=0))
    assert list(log.state.keys) == ["k1"]


def test_an_unknown_key_is_refused(verifier: Verifier) -> None:
    assert verifier.check(sign(claims(), SigningKey.generate("k9"), kind="session"), NOW) == "unknown_key"
    assert verifier.check(sign(claims(), SigningKey.generate("k1"), kind="session"), NOW) == "forged"


@pytest.mark.parametrize("alg", ["none", "None", "", "HS256", "HS512", "ES256", "RS256", "eddsa", "Ed448"])
def test_no_other_algorithm_is_taken(verifier: Verifier, key: SigningKey, alg: str) -> None:
    header = {"alg": alg, "kid": "k1", "typ": "orrery-session"}
    signed = ".".join(b64url(json.dumps(part).encode()) for part in (header, PAYLOAD))
    raw_public = base64.urlsafe_b64decode(key.public_key + "=")
    signatures = [
        b"",
        hmac.new(raw_public, signed.encode(), hashlib.sha256).digest(),  # HS256 keyed with the public key
        hmac.new(key.public_key.encode(), signed.encode(), hashlib.sha512).digest(),
        Ed25519PrivateKey.from_private_bytes(key.private_bytes()).sign(signed.encode()),  # even a true one
    ]
    for signature in signatures:
        assert verifier.verify(forge(header, PAYLOAD, signature), NOW) is None


@pytest.mark.parametrize("extra", [{"crit": ["exp"]}, {"jwk": {}}, {"b64": False}, {"jku": "http://evil"}])
def test_no_header_that_could_change_the_rules_is_taken(
    verifier: Verifier, key: SigningKey, extra: dict[str, Any]
) -> None:
    header = {"alg": "EdDSA", "kid": "k1", "typ": "orrery-session", **extra}
    signed = ".".join(b64url(json.dumps(part).encode()) for part in (header, PAYLOAD))
    signature = Ed25519PrivateKey.from_private_bytes(key.private_bytes()).sign(signed.encode())
    assert verifier.verify(forge(header, PAYLOAD, signature), NOW) is None


def test_every_altered_character_is_noticed(verifier: Verifier, key: SigningKey) -> None:
    good = sign(claims(), key, kind="session")
    assert verifier.verify(good, NOW)
    alphabet = "ABab01-_.="
    for place, letter in enumerate(good):
        for other in alphabet:
            if other != letter:
                assert verifier.verify(good[:place] + other + good[place + 1 :], NOW) is None, (place, other)
    for altered in (good + "=", good + "A", good[:-1], " " + good, good + ".", good.swapcase(), f"{good}.{good}"):
        assert verifier.verify(altered, NOW) is None


def test_signatures_of_another_payload_do_not_fit(verifier: Verifier, key: SigningKey) -> None:
    mine = sign(claims(), key, kind="session").split(".")
    theirs = sign(claims(sub="u-root"), key, kind="session").split(".")
    assert verifier.verify(".".join((mine[0], theirs[1], mine[2])), NOW) is None


@given(st.one_of(st.text(max_size=300), st.from_regex(r"(orr_)?[A-Za-z0-9_-]{0,60}(\.[A-Za-z0-9_-]{0,60}){0,4}")))
def test_any_text_is_refused_without_an_exception(text: str) -> None:
    state = IdentityState()
    state.keys["k1"] = Ed25519PrivateKey.generate().public_key()
    assert Verifier(lambda: state).verify(text, NOW) is None


@given(st.binary(max_size=200))
def test_signed_nonsense_is_refused_without_an_exception(payload: bytes) -> None:
    key = SigningKey.generate("k1")
    state = IdentityState()
    state.apply(recorded(1, e := KeyAnnounced(kid="k1", public_key=key.public_key, not_before=0)), e)
    assert Verifier(lambda: state).verify(key.sign("orrery-session", payload), NOW) is None


def test_too_long_a_credential_is_not_even_read(verifier: Verifier, key: SigningKey) -> None:
    long = sign(claims(scp=tuple(f"scope{i}" for i in range(1000))), key, kind="token")
    assert verifier.check(long, NOW) == "malformed"


def test_the_cache_is_bounded_and_remembers_signatures_only(log: Log, key: SigningKey) -> None:
    verifier = Verifier(lambda: log.state, cache_size=3)
    tokens = [sign(claims(jti=str(i)), key, kind="token") for i in range(10)]
    for token in tokens * 2:
        assert verifier.verify(token, NOW)
    assert len(verifier._cache) == 3


def test_forgeries_do_not_fill_the_cache(verifier: Verifier, key: SigningKey) -> None:
    for i in range(50):
        verifier.check(f"{sign(claims(jti=str(i)), key, kind='session')[:-4]}AAAA", NOW)
    assert not verifier._cache


def test_pruning_changes_no_verdict_and_no_digest(log: Log, verifier: Verifier, key: SigningKey) -> None:
    short, long = (
        sign(claims(jti="short"), key, kind="session"),
        sign(claims(jti="long", exp=NOW + 9e5), key, kind="session"),
    )
    for jti, expires_at in (("short", NOW + 100), ("long", NOW + 9e5)):
        log.add(SessionRevoked(session_id=jti, user_id="u-ada", issued_at=NOW, expires_at=expires_at))
    before = log.state.digest()
    assert (verifier.check(short, NOW), verifier.check(long, NOW)) == ("revoked", "revoked")
    later = NOW + 1000
    assert (verifier.check(short, later), verifier.check(long, later)) == ("expired", "revoked")
    assert list(log.state.revoked_sessions) == ["long"]
    assert log.state.digest() == before


def test_what_a_request_presents(verifier: Verifier, key: SigningKey) -> None:
    session, token = sign(claims(jti="s"), key, kind="session"), sign(claims(jti="t"), key, kind="token")

    def who(authorization: str, cookie: str) -> str | None:
        verdict = verifier.authenticate(authorization, cookie, NOW)
        return verdict.id if isinstance(verdict, Principal) else verdict

    assert who("", "") is None
    assert who("", session) == "s"
    assert who(f"token {token}", "") == "t"
    assert who(f"Bearer {token}", session) == "t", "a token decides before the cookie"
    assert who(f"bearer  {token} ", "") == "t"
    assert who(f"token {token}x", session) == "forged", "a wrong token is not made good by a cookie"
    assert who("token some-jupyter-token", session) == "s", "the upstream application's own header is not ours"
    assert who("Basic dTpw", session) == "s"
    assert who(f"Basic {token}", "") is None
    assert token_in(f"token{token}") == ""


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_joserfc_agrees(key: SigningKey) -> None:
    """Our JWS is everybody's JWS: an independent library verifies ours, and we verify its."""
    private = OKPKey.import_key(
        {"kty": "OKP", "crv": "Ed25519", "x": key.public_key, "d": b64url(key.private_bytes()), "kid": "k1"}
    )
    ours = oracle.deserialize_compact(sign(claims(), key, kind="session"), private, algorithms=["EdDSA"])
    assert json.loads(ours.payload or b"")["sub"] == "u-ada"
    assert ours.headers() == {"alg": "EdDSA", "kid": "k1", "typ": "orrery-session"}
    header = {"alg": "EdDSA", "kid": "k1", "typ": "orrery-session"}
    theirs = oracle.serialize_compact(header, json.dumps(PAYLOAD).encode(), private, algorithms=["EdDSA"])
    state = IdentityState()
    for event in (
        KeyAnnounced(kid="k1", public_key=key.public_key, not_before=0),
        UserCreated(user_id="u-ada", name="ada"),
    ):
        state.apply(recorded(1, event), event)
    assert Verifier(lambda: state).verify(theirs, NOW)


IDS = st.sampled_from(["a", "b", "c"])
KEYS = [SigningKey.generate(kid) for kid in ("a", "b", "c")]
EVENTS = st.one_of(
    st.builds(UserCreated, user_id=IDS, name=IDS, admin=st.booleans()),
    st.builds(UserUpdated, user_id=IDS, name=IDS, admin=st.booleans()),
    st.builds(UserDeleted, user_id=IDS, name=IDS),
    st.builds(KeyAnnounced, kid=IDS, public_key=st.sampled_from([k.public_key for k in KEYS]), not_before=st.just(0.0)),
    st.builds(KeyRetired, kid=IDS),
    st.builds(SessionRevoked, session_id=IDS, user_id=IDS, issued_at=st.just(0.0), expires_at=st.just(NOW)),
    st.builds(TokenRevoked, token_id=IDS, user_id=IDS, issued_at=st.just(0.0)),
)


@pytest.mark.invariant(3)
@given(st.lists(EVENTS, max_size=30))
def test_a_restart_from_the_compacted_log_comes_to_the_same_state(events: list[Event]) -> None:
    """Names are unique among living users in the log (one stream per name), which is all that is assumed here."""
    log = Log()
    for event in events:
        if isinstance(event, UserCreated | UserUpdated):
            holder = log.state.user_by_name(event.name)
            if holder is not None and holder.user_id != event.user_id:
                continue
        log.add(event)
    again = log.compacted()
    assert again.digest() == log.state.digest()
    assert again.user_ids == log.state.user_ids


def test_a_signing_key_does_not_print_itself(key: SigningKey) -> None:
    assert b64url(key.private_bytes()) not in repr(key)
    assert SigningKey("k1", key.private_bytes()).public_key == key.public_key
