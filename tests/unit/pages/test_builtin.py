"""The pages that dduct answers by itself: a request in, a page out."""

from __future__ import annotations

from typing import Tuple

import pytest

from monitoring.metrics import Counter, Counters
from net.addresses import Reach
from net.arrival import Arrival
from pages import builtin
from pages.builtin import OWN_PATHS, Page
from pages.setup import About
from protocol import http1
from protocol.http1 import Authority, RequestHead

ABOUT = About(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ("*.docker.io",), (r"\.deb$",), False)
ARRIVAL = Arrival(Authority("192.0.2.9", 8000), Reach.NOTHING)


def request(method: str, target: str, *fields: str) -> RequestHead:
    return http1.parse_request(
        "\r\n".join([f"{method} {target} HTTP/1.1", "Host: proxy.lab:8000", *fields, "", ""]).encode()
    )


def page(path: str, method: str = "GET", counters: Tuple[Counter, ...] = ()) -> Page:
    counted = Counters()
    for counter in counters:
        counted.add(counter)
    return builtin.page(request(method, path), path, ARRIVAL, ABOUT, counted)


def test_the_authority_is_given_as_a_file_that_is_asked_for_again() -> None:
    found = page("/ca.crt")
    fields = dict(found.fields)
    assert (found.status, found.body) == (200, ABOUT.ca_pem)
    assert fields[b"Content-Type"] == b"application/x-x509-ca-cert"
    assert fields[b"Cache-Control"] == b"no-cache" and b"dduct.crt" in fields[b"Content-Disposition"]


def test_the_metrics_are_those_of_the_counters() -> None:
    found = page("/metrics", counters=(Counter.HITS, Counter.HITS))
    assert found.status == 200 and found.body.decode() == _rendered(Counter.HITS, 2)
    assert dict(found.fields)[b"Content-Type"].startswith(b"text/plain; version=0.0.4")


def _rendered(counter: Counter, count: int) -> str:
    counters = Counters()
    counters.add(counter, count)
    return counters.render()


def test_a_page_of_health_is_short_and_kept_by_nobody() -> None:
    found = page("/healthz")
    assert (found.status, found.body) == (200, b"ok\n") and (b"Cache-Control", b"no-store") in found.fields


@pytest.mark.parametrize(("path", "kind"), [("/setup", b"text/html"), ("/setup/sh", b"text/plain")])
def test_setup_names_the_proxy_that_the_client_has_used(path: str, kind: bytes) -> None:
    found = page(path)
    assert found.status == 200 and b"http://proxy.lab:8000" in found.body
    assert dict(found.fields)[b"Content-Type"].startswith(kind)
    assert (b"Cache-Control", b"no-store") in found.fields


@pytest.mark.parametrize("path", sorted(OWN_PATHS))
def test_a_page_is_only_read(path: str) -> None:
    assert page(path, "HEAD") == page(path)  # `Reply` leaves the body out
    for method in ("POST", "DELETE", "OPTIONS"):
        found = page(path, method)
        assert found.status == 405 and (b"Allow", b"GET, HEAD") in found.fields


@pytest.mark.parametrize("path", ["/", "/setup/", "/ca.crt/x", "/metrics2"])
def test_another_path_is_answered_with_those_that_exist(path: str) -> None:
    found = page(path, "POST")
    assert found.status == 404 and all(own in found.body.decode() for own in OWN_PATHS)


def test_a_client_of_the_mirror_is_told_where_tokens_are() -> None:
    found = page("/v2/")
    challenge = b'Bearer realm="http://proxy.lab:8000/v2/token",service="dduct"'
    assert found.status == 401 and (b"WWW-Authenticate", challenge) in found.fields
    asked = builtin.page(request("GET", "/v2/", "Authorization: Bearer x"), "/v2/", ARRIVAL, ABOUT, Counters())
    assert (asked.status, asked.body) == (200, b"{}") and b"WWW-Authenticate" not in dict(asked.fields)
    for one in (found, asked):
        assert (b"Docker-Distribution-API-Version", b"registry/2.0") in one.fields
        assert (b"Cache-Control", b"no-store") in one.fields


def test_a_trace_that_ends_here_is_echoed_without_credentials() -> None:
    secrets = ("Authorization: a", "cookie: b", "PROXY-Authorization: c")
    found = builtin.max_forwards_reached(request("TRACE", "http://a.example/x", "Max-Forwards: 0", *secrets, "X: y"))
    assert (found.status, found.fields) == (200, ((b"Content-Type", b"message/http"),))
    assert found.body == (
        b"TRACE http://a.example/x HTTP/1.1\r\nHost: proxy.lab:8000\r\nMax-Forwards: 0\r\nX: y\r\n\r\n"
    )


def test_options_that_end_here_name_the_methods() -> None:
    found = builtin.max_forwards_reached(request("OPTIONS", "http://a.example/", "Max-Forwards: 0"))
    assert (found.status, found.body) == (200, b"") and b"CONNECT" in dict(found.fields)[b"Allow"]
