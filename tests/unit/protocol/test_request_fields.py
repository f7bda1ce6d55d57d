"""Which fields of a request are harmless, which may be credentials, and which never go along on behalf of all."""

from __future__ import annotations

from typing import List

import pytest

from protocol.headers import Headers
from protocol.request_fields import DEFAULT, FieldKind, RequestFields, covers_credentials

HARMLESS, OPENING, DROPPED = FieldKind.HARMLESS, FieldKind.OPENING, FieldKind.DROPPED

# What real clients send with a GET, as their sources and captures of their requests show it.
CLIENTS = {
    "apt": "User-Agent Cache-Control Range If-Range If-Modified-Since Accept Connection",
    "dnf, microdnf (librepo)": "User-Agent Accept Cache-Control Pragma Range",
    "zypper (libzypp)": "User-Agent X-ZYpp-AnonymousId X-ZYpp-DistributionFlavor Accept",
    "apk": "User-Agent Accept Connection If-Modified-Since",
    "pacman, curl": "User-Agent Accept Range Proxy-Connection",
    "wget": "User-Agent Accept Accept-Encoding Connection Proxy-Connection Referer",
    "pip": "User-Agent Accept Accept-Encoding Connection Cache-Control If-None-Match If-Modified-Since",
    "uv": "user-agent accept accept-encoding cache-control range",
    "npm 6": "npm-in-ci npm-scope npm-session referer pacote-req-type pacote-pkg-id pacote-pkg-manifest version",
    "npm 10": "npm-auth-type npm-command npm-session pacote-version pacote-req-type pacote-pkg-id pacote-integrity",
    "yarn, pnpm": "user-agent accept accept-encoding accept-language connection",
    "cargo": "User-Agent Accept cargo-protocol Accept-Encoding",
    "go": "User-Agent Accept-Encoding",
    "gem, bundler": "Accept User-Agent X-Gemfile-Source Connection Keep-Alive Range If-None-Match",
    "maven": "Cache-control Cache-store Pragma Expires User-Agent Accept-Encoding Connection",
    "gradle": "User-Agent Accept-Encoding Connection X-Gradle-Version",
    "NuGet": "X-NuGet-Session-Id X-NuGet-Client-Version X-NuGet-Protocol-Version User-Agent Accept-Language",
    "docker, containerd, podman, skopeo": "Accept User-Agent Range Docker-Distribution-Api-Version Accept-Encoding",
    "buildkit": "Accept User-Agent traceparent tracestate baggage",
    "git-lfs, git": "Accept User-Agent Content-Type Git-Protocol Range",
    "huggingface_hub": "user-agent accept accept-encoding X-Amzn-Trace-Id x-request-id Range",
    "terraform": "User-Agent X-Terraform-Version Accept",
    "browsers": "User-Agent Accept Accept-Language Accept-Encoding DNT Upgrade-Insecure-Requests Sec-Fetch-Dest"
    " Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-GPC Referer Origin"
    " Priority Purpose Save-Data If-None-Match Cache-Control Pragma TE Service-Worker",
    "tracing": "traceparent tracestate x-request-id X-B3-TraceId x-b3-spanid b3 uber-trace-id X-Amzn-Trace-Id"
    " x-datadog-trace-id x-datadog-parent-id x-datadog-sampling-priority sentry-trace elastic-apm-traceparent"
    " X-Cloud-Trace-Context X-Correlation-ID Request-Id",
}


@pytest.mark.parametrize("client", list(CLIENTS))
def test_fields_of_real_clients_restrict_nothing(client: str) -> None:
    names = CLIENTS[client].split()
    assert [name for name in names if DEFAULT.kind(name.encode()) is not HARMLESS] == []


OPENS = [
    "Authorization",
    "Cookie",
    "Cookie2",
    "Token",
    "PRIVATE-TOKEN",
    "JOB-TOKEN",
    "X-JFrog-Art-Api",
    "X-Api-Key",
    "api_key",
    "apikey",
    "access_token",
    "x_api_key",
    "X-Session-Id",
    "private_token",
    "X-Auth-User-Pass",
    "X-Access",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Credentials",
    "Authentication",
    "X-License",
    "DPoP",
    "npm-otp",
    "npm-session-token",
    "X-NuGet-ApiKey",
    "Sec-Token-Binding",
    "X-Goog-Iam-Authority-Selector",
    "X-RHUI-ID",
    "X-RHUI-SIGNATURE",
    "X-Vault-Token",
    "X-CSRF-Token",
    "Proxy_Authorization",
    "Ocp-Apim-Subscription-Key",
    "X-Registry-Auth",
    "X-Snap-Device-Authorization",
    "X-User",
    "X-Remote-User",
    "pacote-auth",
    "X-Datadog-Api-Key",
    "Sec-Fetch-Token",
    "X",
    "a",
]


@pytest.mark.parametrize("name", OPENS)
@pytest.mark.parametrize("spelling", [str, str.upper, str.lower, lambda name: name.replace("-", "_")])
def test_an_unknown_field_may_be_a_credential(name: str, spelling: object) -> None:
    assert callable(spelling)
    written = spelling(name)
    if written.lower() == "proxy-authorization":
        return
    expected = DROPPED if written.lower() == "proxy_authorization" else OPENING
    assert DEFAULT.kind(written.encode()) is expected


REWRITES = [
    "Forwarded",
    "X-Forwarded-Host",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Prefix",
    "X-Forwarded",
    "X-Original-URL",
    "X-Original-Host",
    "X-Original-URI",
    "X-Rewrite-URL",
    "X-HTTP-Method",
    "X-HTTP-Method-Override",
    "X-HTTP-Host-Override",
    "X-Method-Override",
    "X-Host",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Envoy-Original-Path",
    "X-Middleware-Rewrite",
    "Front-End-Https",
    "Proxy",
    "Base-Url",
    "Request-Uri",
    "X-Client-IP",
]


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("spelling", [str, str.upper, lambda name: name.replace("-", "_")])
def test_a_field_that_chooses_the_response_is_never_sent(name: str, spelling: object) -> None:
    assert callable(spelling)
    assert DEFAULT.kind(spelling(name).encode()) is DROPPED
    assert RequestFields([name, "x-*"]).kind(name.encode()) is DROPPED


@pytest.mark.parametrize(
    "name", ["If_None_Match", "accept_encoding", "User_Agent", "Content_Length", "Transfer_Encoding"]
)
def test_a_known_name_spelled_with_an_underscore_is_not_harmless(name: str) -> None:
    assert DEFAULT.kind(name.encode()) is DROPPED
    assert DEFAULT.kind(name.replace("_", "-").encode()) is HARMLESS


def test_the_configuration_adds_harmless_fields() -> None:
    fields = RequestFields(["X-Build_Id", "x-ci-*"])
    for name in (b"x-build-id", b"X_Build_ID", b"X-CI-Job", b"x_ci_url"):
        assert fields.kind(name) is HARMLESS and DEFAULT.kind(name) is OPENING
    for name in (b"x-ci-token", b"X-CI-Api-Key", b"x-ci", b"x-build", b"Cookie"):
        assert fields.kind(name) is OPENING


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [("cookie", True), ("Proxy_Authorization", True), ("c*", True), ("auth*", True), ("*", True), ("x-*", False)],
)
def test_a_pattern_may_not_cover_credentials(pattern: str, covers: bool) -> None:
    assert covers_credentials(pattern) is covers


def test_a_field_without_a_value_is_no_credential() -> None:
    headers = Headers([(b"authorization", b""), (b"X-Own", b"1"), (b"Accept", b"*/*"), (b"X-Host", b"evil")])
    assert DEFAULT.opening(headers) == [(b"X-Own", b"1")]
    kept: List[bytes] = [name for name, _ in DEFAULT.on_behalf_of_all(headers)]
    assert kept == [b"authorization", b"X-Own", b"Accept"]


def test_long_and_many_names_are_not_remembered() -> None:
    fields = RequestFields()
    for number in range(3000):
        fields.kind(b"x-%d" % number)
        fields.kind(b"x" * (100 + number))
    assert len(fields._known) <= 1024 and max(map(len, fields._known)) <= 64
