"""What the settings say about the router's edges: what is understood, and what is refused in one clear sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orrery_router.dataplane.addresses import Address, Place, addresses_of
from orrery_router.dataplane.arrival import Arrival, Trust
from orrery_router.dataplane.proxy_protocol import Source
from orrery_router.dataplane.redirect import https_port, with_port
from orrery_router.dataplane.tls import server_tls, upstream_tls
from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError, StartupError
from tests.support.certificates import Authority


def settings(**values: Any) -> Settings:
    return Settings.load(**values)


def test_what_is_listened_on() -> None:
    assert addresses_of(settings(), "r") == [Address(host="127.0.0.1", port=0)]
    secure = settings(host="::", port=8443, tls_cert_files="x.pem", proxy_protocol=True)
    assert addresses_of(secure, "r") == [Address(host="::", port=8443, tls=True, proxy_protocol=True)]
    several = settings(
        listen="http://[::]:80, http://name:8080?proxy_protocol=off,http+unix://%2Frun%2F{slot}.sock?mode=0666,"
        "https://127.0.0.1:0/",
        tls_cert_files="x.pem",
        proxy_protocol=True,
    )
    assert addresses_of(several, "router-1") == [
        Address(host="::", port=80, proxy_protocol=True),
        Address(host="name", port=8080),
        Address(socket_path="/run/router-1.sock", mode=0o666, proxy_protocol=True),
        Address(host="127.0.0.1", port=0, tls=True, proxy_protocol=True),
    ]


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("ftp://127.0.0.1:1", "is not http://host:port"),
        ("127.0.0.1:80", "is not http://host:port"),
        ("http://127.0.0.1", "names no port"),
        ("http://127.0.0.1:70000", "no port between"),
        ("http://::1:80", "in brackets"),
        ("http://127.0.0.1:0/path", "is not http://host:port"),
        ("http://127.0.0.1:0?mode=660", "unix sockets"),
        ("http://127.0.0.1:0?proxy_protocol=maybe", "proxy_protocol=on"),
        ("http://127.0.0.1:0?tls=on", "proxy_protocol=on"),
        ("http+unix://relative.sock", "whole path"),
        ("http+unix://%2Ftmp%2Fx.sock?mode=999", "octal"),
        ("http+unix://%2Ftmp%2Fx.sock?mode=", "octal"),
        ("http+unix://%2F" + "x" * 120, "bytes"),
        ("https://127.0.0.1:0", "tls_cert_files is not set"),
    ],
)
def test_what_cannot_be_listened_on(listen: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        addresses_of(settings(listen=listen), "r")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (Address(host="192.0.2.1", port=1), "cannot be used"),
        (Address(socket_path="/nowhere/x.sock"), "cannot make"),
    ],
)
def test_where_nobody_can_listen(address: Address, said: str) -> None:
    with pytest.raises(StartupError, match=said):
        Place(address)


def test_two_that_start_at_once_do_not_take_the_path_from_each_other(tmp_path: Path) -> None:
    """Between being bound and being listened on a socket looks like a dead one's."""
    address = Address(socket_path=str(tmp_path / "s"))
    first = Place(address)
    with pytest.raises(StartupError, match="another process listens"):
        Place(address)
    first.listen()
    first.leave()
    first.socket.close()
    second = Place(address)
    second.leave()
    second.socket.close()


@pytest.mark.parametrize(
    ("values", "make", "said"),
    [
        ({"tls_cert_files": "{root}/nowhere.pem"}, server_tls, "nowhere.pem: No such file"),
        ({"tls_cert_files": "{root}/authority.pem"}, server_tls, "tls_cert_files cannot be used"),
        ({"tls_cert_files": "{root}/one.pem", "tls_key_files": "a,b"}, server_tls, "one key for each"),
        ({"tls_cert_files": "{root}/one.pem", "tls_key_files": "{root}/two.key"}, server_tls, "is not the certificate"),
        (
            {
                "tls_cert_files": "{root}/one.pem",
                "tls_key_files": "{root}/one.key",
                "tls_client_ca_file": "{root}/one.key",
            },
            server_tls,
            "tls_cert_files",
        ),
        ({"upstream_key_file": "{root}/one.key"}, upstream_tls, "upstream_cert_file"),
        ({"upstream_ca_file": "{root}/one.key"}, upstream_tls, "upstream_ca_file"),
        ({"upstream_ca_file": "{root}/nowhere.pem"}, upstream_tls, "No such file"),
    ],
)
def test_files_that_are_no_good(
    tmp_path: Path, values: dict[str, str], make: Callable[[Settings], object], said: str
) -> None:
    authority = Authority(tmp_path)
    authority.issue("one")
    authority.issue("two")
    with pytest.raises(ConfigError, match=said):
        make(settings(**{name: value.format(root=tmp_path) for name, value in values.items()}))


def test_where_a_redirect_leads() -> None:
    assert https_port(settings(redirect_to_port=1, public_url="https://x:2"), []) == 1
    assert https_port(settings(public_url="https://hub.example.org:2/"), []) == 2
    assert https_port(settings(public_url="https://hub.example.org"), []) == 443
    with pytest.raises(ConfigError, match="nothing speaks HTTPS"):
        https_port(settings(public_url="http://hub.example.org"), [])
    spelled = {b"a": b"a", b"a:80": b"a", b"[::1]": b"[::1]", b"[::1]:80": b"[::1]"}
    assert {host: with_port(host, 443) for host in spelled} == spelled
    assert {host: with_port(host, 8443) for host in spelled} == {h: n + b":8443" for h, n in spelled.items()}


def test_whose_word_counts() -> None:
    trust = Trust("10.0.0.0/8, unix, ::1")
    arrival = Arrival(trust, secure=True, port=443)
    assert arrival.peer(("::ffff:10.1.2.3", 1, 0, 0)).address == "10.1.2.3"
    assert arrival.peer(("::ffff:10.1.2.3", 1, 0, 0)).trusted
    assert arrival.peer("").trusted
    assert not Arrival(Trust("10.0.0.0/8")).peer("").trusted
    proxy = arrival.peer(("10.1.2.3", 1))
    told = arrival.told(proxy, Source("198.51.100.7", 8443))
    assert (told.address, told.trusted, told.secure, told.port) == ("198.51.100.7", False, True, b"8443")
    assert arrival.told(proxy, Source("10.9.9.9", 1)).trusted, "a proxy behind the proxy"
    own = arrival.told(proxy, Source())
    assert (own.address, own.trusted, own.port) == ("10.1.2.3", True, b"443"), "it speaks for itself"
    assert Arrival(trust, port=80).told(proxy, Source("::ffff:198.51.100.7", 1)).address == "198.51.100.7"
    assert Arrival(trust, secure=True, hsts_max_age_s=9).answer_header == b"Strict-Transport-Security: max-age=9\r\n"
    assert not Arrival(trust, secure=False, hsts_max_age_s=9).answer_header, "which means nothing without TLS"
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        Trust("10.0.0.0/99")
