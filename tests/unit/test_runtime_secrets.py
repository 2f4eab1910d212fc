"""Derived keys and XSRF tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery_runtime import xsrf
from orrery_runtime.errors import ConfigError
from orrery_runtime.secrets import Secrets

KEY = "0123456789abcdef0123456789abcdef"


def test_all_processes_derive_the_same_and_other_labels_other_keys() -> None:
    one, two, other = Secrets(KEY), Secrets(KEY), Secrets(KEY[::-1])
    assert one.derive("a") == two.derive("a")
    assert len({one.derive("a"), one.derive("b"), other.derive("a"), one.xsrf_key}) == 4
    assert one.server_secret("s", 1) == two.server_secret("s", 1)
    assert len({one.server_secret("s", 1), one.server_secret("s", 2), one.server_secret("t", 1)}) == 3
    assert len(one.server_secret("s", 1)) == 43
    assert KEY not in repr(one)


@pytest.mark.parametrize("key", ["", "short", "x" * 31])
def test_a_missing_or_short_key_says_what_to_do(key: str) -> None:
    with pytest.raises(ConfigError, match="ORRERY_SECRET_KEY_FILE"):
        Secrets(key)


def test_only_the_genuine_edge_proof_counts() -> None:
    secrets = Secrets(KEY)
    assert secrets.is_edge(secrets.edge_proof)
    for wrong in (None, "", secrets.edge_proof[:-1], secrets.edge_proof + "0", "ä"):
        assert not secrets.is_edge(wrong)


def test_an_xsrf_token_belongs_to_one_session() -> None:
    key = Secrets(KEY).xsrf_key
    token = xsrf.new_token(key, "session-1")
    assert xsrf.is_valid(key, "session-1", cookie=token, submitted=token)
    assert not xsrf.is_valid(key, "session-2", cookie=token, submitted=token)
    assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie=token, submitted=token)
    assert not xsrf.is_valid(Secrets(KEY[::-1]).xsrf_key, "session-1", cookie=token, submitted=token)


def test_cookie_and_form_must_agree() -> None:
    key = Secrets(KEY).xsrf_key
    one, two = xsrf.new_token(key), xsrf.new_token(key)
    assert one != two
    assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie=one, submitted=two)
    assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie=one, submitted="")
    assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie="", submitted="")


def test_a_planted_cookie_is_worth_nothing() -> None:
    """A sibling domain may set a cookie of its own; without the key it cannot make one that counts."""
    key = Secrets(KEY).xsrf_key
    for planted in ("x", "x.y", ".", "a.", ".b", "x" * 5000, "nonce." + "A" * 43):
        assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie=planted, submitted=planted)


@given(st.text(max_size=200))
def test_any_text_is_refused_without_an_exception(text: str) -> None:
    key = Secrets(KEY).xsrf_key
    assert not xsrf.is_genuine(key, xsrf.ANONYMOUS, text)
    assert not xsrf.is_valid(key, xsrf.ANONYMOUS, cookie=text, submitted=text)
