"""Targets and authorities against tables: each has one normal form, or is refused."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest

from protocol import http1
from protocol.http1 import Authority, ProtocolError

AUTHORITIES: List[Tuple[bytes, Optional[int], Optional[Tuple[str, int]]]] = [
    (b"a.example", 80, ("a.example", 80)),
    (b"a.example:8080", 80, ("a.example", 8080)),
    (b"A.Example:1", None, ("a.example", 1)),
    (b"a.example:65535", None, ("a.example", 65535)),
    (b"a.example:00080", None, ("a.example", 80)),
    (b"a.example.", 80, ("a.example", 80)),
    (b"a.example.:81", 80, ("a.example", 81)),
    (b"localhost", 80, ("localhost", 80)),
    (b"a", 80, ("a", 80)),
    (b"_dmarc.a_b.example", 80, ("_dmarc.a_b.example", 80)),
    (b"xn--bcher-kva.example", 80, ("xn--bcher-kva.example", 80)),
    (b"3com.example", 80, ("3com.example", 80)),
    (b"192.0.2.1:81", 80, ("192.0.2.1", 81)),
    (b"[::1]", 80, ("::1", 80)),
    (b"[::1]:81", 80, ("::1", 81)),
    (b"[2001:DB8:0:0:0:0:0:1]:443", None, ("2001:db8::1", 443)),
    (b"[0:0:0:0:0:0:0:0]", 80, ("::", 80)),
    (b"a" * 254, 80, ("a" * 254, 80)),
    # no port where one is needed, and impossible ones
    (b"a.example", None, None),
    (b"[::1]", None, None),
    (b"a.example:", None, None),
    (b"a.example:0", 80, None),
    (b"a.example:65536", 80, None),
    (b"a.example:99999", 80, None),
    (b"a.example:100000", 80, None),
    (b"a.example:+80", 80, None),
    (b"a.example:-80", 80, None),
    (b"a.example: 80", 80, None),
    (b"a.example:80 ", 80, None),
    (b"a.example:8_0", 80, None),
    (b"a.example:0x50", 80, None),
    (b"a.example:80:80", 80, None),
    (b"a.example:\xb2", 80, None),
    (b"[::1]81", 80, None),
    (b"[::1]:", None, None),
    # hosts that are none
    (b"", 80, None),
    (b":80", 80, None),
    (b".", 80, None),
    (b"..", 80, None),
    (b".a.example", 80, None),
    (b"a..example", 80, None),
    (b"a.example..", 80, None),
    (b"-a.example", 80, None),
    (b"a.example-", 80, None),
    (b"me@a.example", 80, None),
    (b"me:secret@a.example:80", 80, None),
    (b"@a.example", 80, None),
    (b"a.example@", 80, None),
    (b"a example", 80, None),
    (b"a.example/", 80, None),
    (b"a.example\\", 80, None),
    (b"a.example#", 80, None),
    (b"a.example?", 80, None),
    (b"a%2eexample", 80, None),
    (b"a,b", 80, None),
    (b"a;b", 80, None),
    (b"a'b", 80, None),
    (b"a*b", 80, None),
    (b"*.example", 80, None),
    (b"\xc3\xbc.example", 80, None),
    (b"a\x00b", 80, None),
    (b"a\n", 80, None),
    (b"a.example\r\n", 80, None),
    (b"a" * 256, 80, None),
    (b"::1", 80, None),
    (b"2001:db8::1", 80, None),
    (b"[", 80, None),
    (b"[]", 80, None),
    (b"[::1", 80, None),
    (b"::1]", 80, None),
    (b"[[::1]]", 80, None),
    (b"[a.example]", 80, None),
    (b"[192.0.2.1]", 80, None),
    (b"[::1%eth0]", 80, None),
    (b"[fe80::1%25eth0]", 80, None),
    (b"[::1::1]", 80, None),
    (b"[::12345]", 80, None),
    (b"[1:2:3:4:5:6:7:8:9]", 80, None),
    (b"[::1 ]", 80, None),
    (b"[v1.a]", 80, None),
]


@pytest.mark.parametrize("text, default, expected", AUTHORITIES)
def test_an_authority_is_one_host_and_one_port(
    text: bytes, default: Optional[int], expected: Optional[Tuple[str, int]]
) -> None:
    if expected is not None:
        assert http1.parse_authority(text, default) == Authority(*expected)
        return
    with pytest.raises(ProtocolError) as caught:
        http1.parse_authority(text, default)
    assert caught.value.status == 400


@pytest.mark.parametrize("text", [b"a.example:", b"[::1]:"])
def test_an_empty_port_is_the_default_one(text: bytes) -> None:
    """RFC 3986 §3.2.3: `port = *DIGIT`; `http://a.example:/` is a valid URL, and the same as without the colon."""
    assert http1.parse_authority(text, 80).port == 80


@pytest.mark.parametrize(
    "authority, text", [(Authority("a.example", 80), "a.example:80"), (Authority("::1", 443), "[::1]:443")]
)
def test_an_authority_is_written_in_parsable_form(authority: Authority, text: str) -> None:
    assert str(authority) == text
    assert http1.parse_authority(text.encode(), None) == authority


URLS = [
    (b"http://a.example", "http://a.example/", "a.example", "/"),
    (b"http://a.example/", "http://a.example/", "a.example", "/"),
    (b"HTTPS://A.Example:443/X", "https://a.example/X", "a.example", "/X"),
    (b"http://a.example:443/", "http://a.example:443/", "a.example:443", "/"),
    (b"https://a.example:80/", "https://a.example:80/", "a.example:80", "/"),
    (b"http://a.example?b", "http://a.example/?b", "a.example", "/?b"),
    (b"http://a.example/?", "http://a.example/?", "a.example", "/?"),
    (b"http://a.example/a?b=c?d/e", "http://a.example/a?b=c?d/e", "a.example", "/a?b=c?d/e"),
    (b"http://a.example//b", "http://a.example//b", "a.example", "//b"),
    (b"http://a.example/../b/./c", "http://a.example/../b/./c", "a.example", "/../b/./c"),
    (b"http://a.example/%2e%2E/%2f", "http://a.example/%2e%2E/%2f", "a.example", "/%2e%2E/%2f"),
    (b"http://a.example/\xc3\xbc?\xff", "http://a.example/%C3%BC?%FF", "a.example", "/%C3%BC?%FF"),
    (b"http://a.example/a:b@c", "http://a.example/a:b@c", "a.example", "/a:b@c"),
    (b"http://[::1]/", "http://[::1]/", "[::1]", "/"),
    (b"https://[2001:DB8::0]:8443/a", "https://[2001:db8::]:8443/a", "[2001:db8::]:8443", "/a"),
    (b"http://a.example./", "http://a.example/", "a.example", "/"),
]


@pytest.mark.parametrize("url, text, host_field, path_query", URLS)
def test_an_absolute_target_has_one_normal_form(url: bytes, text: str, host_field: str, path_query: str) -> None:
    target = http1.parse_absolute(url)
    assert (str(target), target.host_field, target.path_query) == (text, host_field, path_query)
    assert http1.parse_absolute(text.encode()) == target


@pytest.mark.parametrize(
    "url, status",
    [
        (b"", 400),
        (b"/", 400),
        (b"*", 400),
        (b"a.example", 400),
        (b"//a.example/", 400),
        (b"http:", 400),
        (b"http:/", 400),
        (b"http://", 400),
        (b"http:///", 400),
        (b"http://?", 400),
        (b"http://a.example/#", 400),
        (b"http://a.example#b", 400),
        (b"http://me@a.example/", 400),
        (b"http://me:secret@a.example/", 400),
        (b"http://a.example\\/", 400),
        (b"http://a.example:0/", 400),
        (b"http://a.example:65536/", 400),
        (b"http://[fe80::1%25eth0]/", 400),
        (b"1http://a.example/", 400),
        (b" http://a.example/", 400),
        (b"ftp://a.example/", 501),
        (b"file:///etc/passwd", 501),
        (b"gopher://a.example/", 501),
    ],
)
def test_a_url_that_is_not_http_is_refused(url: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        http1.parse_absolute(url)
    assert caught.value.status == status


@pytest.mark.parametrize("byte", [b" ", b"\t", b"\r\n", b"\x00", b"\x7f"])
@pytest.mark.parametrize("where", [b"http://a.example/a%sb", b"http://a.example/?a%sb"])
def test_a_url_with_a_blank_or_control_character_is_refused(where: bytes, byte: bytes) -> None:
    """A Location is parsed by this too, and was never checked as a request line."""
    with pytest.raises(ProtocolError):
        http1.parse_absolute(where % byte)


def test_an_origin_form_target_gets_the_known_authority() -> None:
    target = http1.parse_origin_form(b"/a\xff?b", "https", Authority("::1", 8443))
    assert str(target) == "https://[::1]:8443/a%FF?b"
    assert http1.parse_origin_form(b"//b.example/x", "https", Authority("a.example", 443)).authority.host == "a.example"


@pytest.mark.parametrize("target", [b"", b"a", b"*", b"?", b"#", b"/#", b"http://a.example/", b"\\", b" /"])
def test_an_invalid_path_is_refused(target: bytes) -> None:
    with pytest.raises(ProtocolError):
        http1.parse_origin_form(target, "http", Authority("a.example", 80))
