"""What sessions and tokens of plain users and admins may do."""

from __future__ import annotations

import pytest

from orrery_events.principal import Kind, Principal
from orrery_runtime.errors import HttpError
from orrery_runtime.scopes import (
    ADMIN_SCOPES,
    CONTAINS,
    SELF_SCOPES,
    allows,
    exceeding,
    expand,
    holds_somewhere,
    require,
    unknown,
)


def principal(*scopes: str, admin: bool = False, kind: Kind = "token", name: str = "ada") -> Principal:
    return Principal(
        user_id="u", name=name, admin=admin, kind=kind, id="i", scopes=frozenset(scopes), expires_at=None, issued_at=0
    )


def test_a_session_holds_self_whatever_it_says() -> None:
    ada = principal("admin:users", kind="session")
    assert expand(ada) == {
        f"{scope}!user=ada"
        for scope in (
            "read:users", "read:users:name", "read:users:groups", "read:users:activity", "users:activity",
            "servers", "read:servers", "start:servers", "delete:servers", "tokens", "read:tokens", "access:servers",
            "users:shares", "read:users:shares", "read:shares",
        )
    }  # fmt: skip
    assert allows(ada, "start:servers", user_name="ada")
    assert not allows(ada, "start:servers", user_name="bob")
    assert not allows(ada, "start:servers")
    assert not allows(ada, "admin:users")


def test_an_admin_holds_the_admin_roles_scopes_over_everybody() -> None:
    root = principal(admin=True, kind="session", name="root")
    assert set(ADMIN_SCOPES) <= expand(root)
    assert allows(root, "delete:servers", user_name="bob")
    assert allows(root, "list:users")
    assert allows(root, "shutdown")


@pytest.mark.parametrize("admin", [True, False])
def test_inherit_is_all_that_the_owner_holds(admin: bool) -> None:
    assert expand(principal("inherit", admin=admin)) == expand(principal(kind="session", admin=admin))


def test_a_token_cannot_do_more_than_its_owner() -> None:
    greedy = principal("admin:users", "servers", "shutdown", "read:users!user=bob", "servers!server=bob/lab")
    assert not allows(greedy, "admin:users")
    assert not allows(greedy, "shutdown")
    assert not allows(greedy, "servers")
    assert not allows(greedy, "read:users", user_name="bob")
    assert not allows(greedy, "servers", user_name="bob", server_name="lab")
    assert allows(greedy, "servers", user_name="ada"), "of an unfiltered scope the owner's own part remains"
    assert allows(greedy, "users:activity", user_name="ada"), "… of every scope that it contains"


def test_a_token_that_was_an_admins_shrinks_with_its_owner() -> None:
    token = ("admin:users", "list:users")
    assert allows(principal(*token, admin=True), "list:users")
    assert not allows(principal(*token, admin=False), "list:users")


def test_a_narrow_token_stays_narrow_for_an_admin() -> None:
    token = principal("read:users!user", "access:servers!server=bob/lab", admin=True, name="root")
    assert allows(token, "read:users", user_name="root")
    assert not allows(token, "read:users", user_name="bob")
    assert allows(token, "access:servers", user_name="bob", server_name="lab")
    assert not allows(token, "access:servers", user_name="bob", server_name="")
    assert not allows(token, "access:servers", user_name="bob")
    assert not allows(token, "shutdown")


def test_a_token_without_scopes_may_only_say_whose_it_is() -> None:
    bare = principal()
    assert expand(bare) == {"read:users:name!user=ada", "read:users:groups!user=ada"}
    assert not allows(bare, "servers", user_name="ada")


def test_a_server_filter_needs_its_server() -> None:
    token = principal("servers!server=ada/lab")
    assert allows(token, "start:servers", user_name="ada", server_name="lab")
    assert not allows(token, "start:servers", user_name="ada", server_name="other")
    assert not allows(token, "start:servers", user_name="ada", server_name="")


def test_names_that_look_like_one_another_are_not() -> None:
    token = principal("servers", name="ada")
    for other in ("adam", "ad", "ada/lab", "Ada", "", "*"):
        assert not allows(token, "servers", user_name=other)


def test_refusals_as_jupyterhub_gives_them() -> None:
    ada = principal("servers")
    require(ada, "servers", user_name="ada")
    with pytest.raises(HttpError) as other:
        require(ada, "servers", user_name="bob")
    assert other.value.status == 404
    with pytest.raises(HttpError) as missing:
        require(ada, "tokens", user_name="ada")
    assert missing.value.status == 403
    assert holds_somewhere(ada, "servers")
    assert not holds_somewhere(ada, "server")


def test_what_may_be_granted() -> None:
    ada, root = principal(kind="session"), principal(kind="session", admin=True, name="root")

    def beyond(who: Principal, *scopes: str) -> list[str]:
        return exceeding(who, scopes, owner_name="ada", owner_admin=False)

    assert unknown(["servers", "inherit", "self", "read:users!user", "server", "x!user=a"]) == ["server", "x!user=a"]
    assert beyond(ada, "inherit", "self", "servers!user=ada", "access:servers!server=ada/lab") == []
    assert beyond(ada, "servers", "admin:users", "servers!user=bob") == ["servers", "admin:users", "servers!user=bob"]
    assert beyond(root, "inherit") == []
    assert exceeding(ada, ["inherit"], owner_name="root", owner_admin=True) == ["inherit"]
    assert beyond(principal("servers"), "inherit", "tokens!user") == ["inherit", "tokens!user"]


def test_every_scope_that_is_named_is_defined() -> None:
    for scope in (*SELF_SCOPES, *ADMIN_SCOPES, *(s for contained in CONTAINS.values() for s in contained)):
        assert scope in CONTAINS
