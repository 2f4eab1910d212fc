"""Which service answers what, and the short list of what needs no session."""

from __future__ import annotations

import pytest

from orrery_runtime.paths import below_base, is_control, is_public, service_for

PUBLIC = {
    ("GET", "/hub/login"),
    ("POST", "/hub/login"),
    ("GET", "/hub/logout"),
    ("GET", "/hub/setup/abc"),
    ("POST", "/hub/setup/abc"),
    ("GET", "/setup/abc"),
    ("GET", "/hub/api"),
    ("GET", "/hub/api/"),
    ("GET", "/hub/health"),
    ("GET", "/hub/api/health"),
    ("GET", "/hub/static/css/a.css"),
    ("GET", "/hub/logo"),
    ("GET", "/favicon.ico"),
    ("POST", "/hub/api/users/ada/tokens"),
}
PATHS = {
    *(path for _, path in PUBLIC),
    *("/", "/hub", "/hub/", "/hub/home", "/hub/admin", "/hub/token", "/hub/spawn", "/hub/static", "/hub/static/"),
    *("/hub/api/user", "/hub/api/users", "/hub/api/users/ada", "/hub/api/users/ada/tokens/x", "/hub/api/info"),
    *("/hub/api/users/ada/server", "/hub/api/users/a/b/tokens", "/hub/api/shutdown", "/hub/loginx", "/hub/login/"),
    *("/hub/setup", "/hub/setup/", "/hub/setup/a/b", "/hub/api/oauth2/authorize", "/user/ada/", "/hub/apiary"),
}


@pytest.mark.invariant(9)
def test_exactly_the_listed_requests_are_public() -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "TRACE")
    found = {(method, path) for path in PATHS for method in methods if is_public(path, method)}
    assert found == PUBLIC | {("HEAD", path) for method, path in PUBLIC if method == "GET"}


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "path",
    [
        "/hub/static/../home",
        "/hub/static//../api/users",
        "/hub/static/..",
        "/hub/static/./x",
        "/hub/static/a\\..\\b",
        "/hub/static/a\x00",
        "//hub/login",
        "/hub//login",
        "/hub/login\n",
        "/hub/api/users/../tokens",
    ],
)
def test_a_path_spelled_strangely_is_public_nowhere(path: str) -> None:
    assert not is_public(path, "GET")
    assert not is_public(path, "POST")


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/hub/login", "auth"),
        ("/hub/logout", "auth"),
        ("/hub/setup/x", "auth"),
        ("/setup/x", "auth"),
        ("/hub/api/users/ada/tokens", "auth"),
        ("/hub/api/users/ada/tokens/1", "auth"),
        ("/hub/api/oauth2/token", "auth"),
        ("/hub/api/authorizations/token/x", "auth"),
        ("/hub/api/users/ada", "api"),
        ("/hub/api/users/tokens", "api"),
        ("/hub/home", "api"),
        ("/hub/token", "api"),
        ("/hub/static/login", "api"),
        ("/", "api"),
    ],
)
def test_the_service_of_a_path(path: str, service: str) -> None:
    assert service_for(path, "GET") == service
    assert is_control(path)


def test_user_servers_are_not_control_plane() -> None:
    assert not is_control("/user/ada/")
    assert not is_control("/hubby/")
    assert not is_control("/setups/")


def test_paths_below_the_base_url() -> None:
    assert below_base("/", "/") == "/"
    assert below_base("/hub/home", "/") == "/hub/home"
    assert below_base("/a/hub/home", "/a/") == "/hub/home"
    assert below_base("/a", "/a/") == "/"
    assert below_base("/ab/hub", "/a/") is None
