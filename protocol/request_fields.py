"""The effect of request fields on the response: none, authorization, or another target.

Rules of this module:

* Pure. Names in, a kind out.
* Deny by default: a name that is not known to be harmless may be a credential. No list can hold all the names under
  which origins accept keys, tokens and passwords; the other fields that clients send can be listed.
* `_` counts as `-`, and case is ignored: CGI, WSGI and PHP make one variable of `X_Api_Key` and `X-Api-Key`. No real
  client writes a known name with `_`: such a field is an attack, and is not sent in a request on behalf of all.
"""

from __future__ import annotations

import enum
from typing import Dict, Iterable, List, Tuple

from protocol.headers import Field, Headers

# Fields of one connection or one message. They never reach an origin unchanged, so they authorize nothing there.
_FRAMING = frozenset(
    b"connection content-length expect host keep-alive max-forwards proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade http2-settings via".split()
)
# Conditions and ranges: dduct requests the whole object, and answers them itself.
_CONDITIONS = frozenset(
    b"if-match if-modified-since if-none-match if-range if-unmodified-since range accept-encoding".split()
)

# Fields without authorization: they describe the sender, its preferences, and how to trace the request.
_HARMLESS = frozenset(
    # RFC 9110, 9111 and related ones: the client's name, preferences and formats
    b"accept accept-charset accept-datetime accept-language cache-control content-encoding content-language"
    b" content-type date digest from mime-version origin pragma priority referer user-agent want-content-digest"
    b" want-digest want-repr-digest"
    # Browsers and programs that imitate them; client hints without their prefix
    b" alt-used access-control-request-headers access-control-request-method device-memory dnt downlink dpr ect"
    b" early-data purpose rtt save-data sec-gpc sec-purpose service-worker ua-cpu upgrade-insecure-requests"
    b" sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version"
    b" viewport-width width x-do-not-track x-moz x-purpose x-requested-with"
    # Trace and correlation identifiers: new for each request or each run, and no origin decides by them
    b" amz-sdk-invocation-id amz-sdk-request b3 baggage correlation-context correlation-id elastic-apm-traceparent"
    b" cache-key grpc-trace-bin idempotency-key ms-cv newrelic request-id sentry-trace traceparent tracestate"
    b" uber-trace-id x-amz-user-agent x-amzn-trace-id x-client-request-id x-client-trace-id x-cloud-trace-context"
    b" x-correlation-id x-envoy-attempt-count x-envoy-expected-rq-timeout-ms x-github-request-id x-goog-api-client"
    b" x-instana-l x-instana-s x-instana-t x-ms-client-request-id x-ms-correlation-request-id x-ms-request-id"
    b" x-ot-span-context x-request-id x-request-start x-trace-id x-transaction-id x-idempotency-key surrogate-key"
    # Versions of a protocol or an interface
    b" cargo-protocol docker-distribution-api-version git-protocol x-github-api-version x-ms-version"
    b" x-terraform-version"
    # npm up to 6 (registry-client, pacote) and later; `npm-otp` is a password and not among them
    b" npm-auth-type npm-command npm-in-ci npm-notice npm-scope npm-session version"
    # zypper (libzypp), NuGet, Maven's wagon, bundler behind a mirror, Gradle
    b" x-zypp-anonymousid x-zypp-distributionflavor x-nuget-client-version x-nuget-protocol-version x-nuget-session-id"
    b" cache-store expires x-gemfile-source x-gradle-version"
    # flatpak and ostree
    b" flatpak-ref flatpak-upgrade-from".split()
)
_HARMLESS_PREFIXES = (
    b"sec-fetch-",  # browsers: the context of a request
    b"sec-ch-",  # client hints
    b"pacote-",  # npm: package and integrity
    b"x-b3-",  # Zipkin
    b"x-datadog-",
    b"uberctx-",  # Jaeger's baggage
    b"ot-baggage-",
    b"x-stainless-",  # generated clients: language, system, retries
)
# Names with these endings are not harmless by a prefix of the table or of the configuration.
_SECRET_ENDINGS = (b"-key", b"-token", b"-auth", b"-authorization", b"-secret", b"-password", b"-otp", b"-signature")

# Some origins use these in place of URL, method, host, scheme or address. A client chooses them; no object name has
# them.
_REWRITING = frozenset(
    b"base-url cf-connecting-ip client-ip destination fastly-client-ip forwarded forwarded-for forwarded-host"
    b" forwarded-proto front-end-https http-host http-method-override method-override proxy proxy-host proxy-url"
    b" redirect request-uri true-client-ip uri x-backend-host x-client-ip x-cluster-client-ip x-envoy-external-address"
    b" x-envoy-internal x-envoy-original-dst-host x-envoy-original-host x-envoy-original-path x-forward-for"
    b" x-forward-proto x-forwarded x-front-end-https x-host x-invoke-path x-invoke-query x-matched-path x-method"
    b" x-method-override x-now-route-matches x-originating-ip x-override-url x-port x-proxy-host x-proxy-url"
    b" x-real-host x-real-ip x-remote-addr x-remote-host x-remote-ip x-request-uri x-request-url x-scheme x-server-name"
    b" x-url x-url-scheme x-wap-profile".split()
)
_REWRITING_PREFIXES = (
    b"x-forwarded-",
    b"x-http-method",
    b"x-http-host",
    b"x-http-destinationurl",
    b"x-middleware-",
    b"x-original-",
    b"x-rewrite-",
)

_FORBIDDEN = (b"authorization", b"cookie", b"proxy-authorization")  # credentials by definition
_REMEMBERED_NAME = 64  # bytes; longer names are not remembered, or a client could fill the memory with them
_REMEMBERED_NAMES = 1024


class FieldKind(enum.Enum):
    """The effect that a request field may have."""

    HARMLESS = "it opens nothing, and goes along"
    OPENING = "it may be what lets its client in; it goes along, and restricts what it brings"
    DROPPED = "it would choose what everybody gets, and never goes along on behalf of all"


class RequestFields:
    """The table, and the configuration's additions: names, and `prefix-*`."""

    def __init__(self, harmless: Iterable[str] = ()) -> None:
        names = [_normal(name.encode("latin-1")) for name in harmless]
        self._harmless = frozenset(name for name in names if not name.endswith(b"*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(b"*"))
        # Single operations on a dictionary are atomic; a lost one costs a little time.
        self._known: Dict[bytes, FieldKind] = {}

    def kind(self, name: bytes) -> FieldKind:
        """The kind of a field with this name."""
        known = self._known.get(name)
        if known is None:
            known = self._judge(name.lower())
            if len(name) <= _REMEMBERED_NAME:
                if len(self._known) >= _REMEMBERED_NAMES:
                    self._known.clear()
                self._known[name] = known
        return known

    def opens(self, name: bytes) -> bool:
        """Whether a field with this name may authorize its client at an origin."""
        return self.kind(name) is FieldKind.OPENING

    def opening(self, headers: Headers) -> List[Field]:
        """The fields that may authorize a client. A field without a value proves nothing (old npm sends such)."""
        return [field for field in headers if self.kind(field[0]) is FieldKind.OPENING and field[1]]

    def on_behalf_of_all(self, headers: Headers) -> Headers:
        """The request fields to send when the response may be stored."""
        return Headers(field for field in headers if self.kind(field[0]) is not FieldKind.DROPPED)

    def _judge(self, name: bytes) -> FieldKind:
        if name in _FRAMING or name in _CONDITIONS or name in _HARMLESS:
            return FieldKind.HARMLESS
        plain = _normal(name)
        if plain in _REWRITING or plain.startswith(_REWRITING_PREFIXES):
            return FieldKind.DROPPED
        if plain in self._harmless or _has_prefix(plain, self._prefixes):
            return FieldKind.HARMLESS
        if plain != name and (plain in _FRAMING or plain in _CONDITIONS or plain in _HARMLESS):
            return FieldKind.DROPPED
        return FieldKind.HARMLESS if _has_prefix(plain, _HARMLESS_PREFIXES) else FieldKind.OPENING


def covers_credentials(pattern: str) -> bool:
    """Whether a pattern for harmless names covers a credential by definition."""
    name = _normal(pattern.encode("latin-1", "replace"))
    if name.endswith(b"*"):
        return any(one.startswith(name[:-1]) for one in _FORBIDDEN)
    return name in _FORBIDDEN


def _normal(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _has_prefix(name: bytes, prefixes: Tuple[bytes, ...]) -> bool:
    return name.startswith(prefixes) and not name.endswith(_SECRET_ENDINGS)


DEFAULT = RequestFields()
