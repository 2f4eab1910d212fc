"""User and server names."""

from __future__ import annotations

import pytest

from orrery_events.names import InvalidName, check_server_name, is_server_name, is_user_name, normalise_user_name


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("Ada", "ada"), (" ada ", "ada"), ("a.b+c@d-e_f", "a.b+c@d-e_f"), ("0x", "0x"), ("a" * 63,) * 2],
)
def test_a_user_name_has_one_spelling(given: str, wanted: str) -> None:
    assert normalise_user_name(given) == wanted
    assert is_user_name(wanted)


@pytest.mark.parametrize(
    "given", ["", "  ", ".ada", "-ada", "..", "a/b", "a b", "a\n", "a\x00", "ädä", "\N{KELVIN SIGN}im", "a" * 64, "a:b"]
)
def test_a_bad_user_name_is_refused_with_the_rule(given: str) -> None:
    if given == "a\n":  # surrounding white space is trimmed before the rule is applied
        assert normalise_user_name(given) == "a"
        return
    with pytest.raises(InvalidName, match="user name"):
        normalise_user_name(given)
    assert not is_user_name(given)


def test_a_trailing_newline_is_not_a_normalised_name() -> None:
    assert not is_user_name("ada\n")


@pytest.mark.parametrize("name", ["", "lab", "a", "a1", "my-lab", "a" * 30])
def test_a_server_name_by_jupyterhub_6s_rule(name: str) -> None:
    assert check_server_name(name) == name
    assert is_server_name(name)


@pytest.mark.parametrize(
    "name", ["Lab", "1lab", "-lab", "lab-", "my--lab", "a.b", "a_b", "a b", "a/b", "lab\n", "a" * 31]
)
def test_a_bad_server_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="server name"):
        check_server_name(name)
    assert not is_server_name(name)
