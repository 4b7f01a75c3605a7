"""Which URLs of users are called: none that leads inside, however it is written."""

import ipaddress
import socket
from typing import Any

import pytest

from luthier.addresses import AddressRules, Target, is_public, parse_url, resolve
from luthier.errors import LuthierError

DEFAULT = AddressRules()
PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com/hook?a=%20b", Target("https", "example.com", 443)),
        ("HTTPS://EXAMPLE.com:8443", Target("https", "example.com", 8443)),
        ("http://10.0.0.1:9000/x", Target("http", "10.0.0.1", 9000)),
        ("https://[2606:2800:21f::1]/x", Target("https", "2606:2800:21f::1", 443)),
    ],
)
def test_a_url_leads_to_its_host_and_port(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com", "https://host/path"),
        ("file:///etc/passwd", "https://host/path"),
        ("gopher://example.com", "https://host/path"),
        ("//example.com/x", "https://host/path"),
        ("example.com", "https://host/path"),
        ("", "https://host/path"),
        ("https://", "neither a name nor an address"),
        ("https:///x", "neither a name nor an address"),
        ("https://user:secret@example.com", "user's name or password"),
        ("https://example.com@169.254.169.254/", "user's name or password"),
        ("https://example.com:0x50/", "host or port"),
        ("https://example.com:99999/", "host or port"),
        ("https://[::1/", "host or port"),
        ("https://[fe80::1%25eth0]/", "neither a name nor an address"),
        ("https://ex%61mple.com/", "neither a name nor an address"),
        ("https://exa mple.com/", "characters"),
        ("https://example.com\\@evil.example/", "characters"),
        ("https://example.com/#x", "characters"),
        ("https://example.com/\n", "characters"),
        ("https://ex\u00e4mple.com/", "characters"),
        ("https://\uff11\uff12\uff17.0.0.1/", "characters"),
        ("https://example.com/" + "a" * 2048, "more than 2048"),
    ],
)
def test_what_is_no_such_url_is_refused_and_not_repeated(url: str, reason: str) -> None:
    with pytest.raises(LuthierError, match=reason) as caught:
        parse_url(url)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "url")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "10.1.2.3",
        "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "192.0.0.192", "198.18.0.1",
        "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]", "[fe80::1]", "[fc00::1]", "[ff02::1]", "[2001:db8::1]", "[2001::1]", "[fec0::1]",
    ],
)  # fmt: skip
def test_no_spelling_of_an_address_inside_is_called(host: str) -> None:
    with pytest.raises(LuthierError, match="not public") as caught:
        resolve(parse_url(f"https://{host}/"), DEFAULT)
    assert host.strip("[]") not in caught.value.message


@pytest.mark.parametrize("host", [PUBLIC, "8.8.8.8", "[2606:2800:21f::1]"])
def test_public_addresses_are(host: str) -> None:
    assert resolve(parse_url(f"https://{host}/"), DEFAULT) == [host.strip("[]")]
    assert is_public(ipaddress.ip_address(host.strip("[]")))


@pytest.mark.parametrize(
    ("url", "reason"),
    [(f"http://{PUBLIC}/", "only https"), (f"https://{PUBLIC}:22/", "port 22 is not among")],
)
def test_over_the_internet_scheme_and_port_are_held_to(url: str, reason: str) -> None:
    with pytest.raises(LuthierError, match=reason):
        resolve(parse_url(url), DEFAULT)


@pytest.mark.parametrize(
    ("networks", "url", "is_allowed"),
    [
        ("10.0.0.0/8", "http://10.9.8.7:8080/", True),
        ("10.0.0.0/8, fd00::/8", "http://[fd00::1]:1234/", True),
        ("10.0.0.0/8", "https://192.168.0.1/", False),
        ("all", "http://192.168.0.1/", True),
        ("all", "http://[::1]:81/", True),
        ("all", "http://169.254.169.254/", False),
        ("169.254.169.254/32", "http://169.254.169.254/", True),
        ("127.0.0.0/8", "http://[::ffff:127.0.0.1]/", True),
        ("all", f"http://{PUBLIC}/", False),
    ],
)
def test_an_operator_allows_networks_at_any_port_and_without_tls(
    networks: str, url: str, is_allowed: bool
) -> None:
    rules = AddressRules.parse(networks, "443")
    if is_allowed:
        assert resolve(parse_url(url), rules)
    else:
        with pytest.raises(LuthierError):
            resolve(parse_url(url), rules)


def test_one_address_inside_among_others_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in (PUBLIC, "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(LuthierError, match="not public"):
        resolve(parse_url("https://two.example/"), DEFAULT)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "a" * 64 + ".example"])
def test_a_host_that_nobody_knows_is_told(host: str) -> None:
    with pytest.raises(LuthierError, match="not known to the resolver"):
        resolve(parse_url(f"https://{host}/"), DEFAULT)


@pytest.mark.parametrize(("networks", "ports"), [("10.0.0.1/8", "443"), ("everything", "443"), ("", "https")])
def test_settings_that_are_none_are_told(networks: str, ports: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        AddressRules.parse(networks, ports)
