"""What the fields of a request may do to its answer: nothing, let its client in, or redirect the question.

Rules of this module:

* Pure. Names in, a kind out.
* Turned round: a name that is not known to be harmless may be a credential. Nobody can list all the names under which
  origins take keys, tokens and passwords; what clients send beside them can be listed.
* `_` counts as `-` and case for nothing: CGI, WSGI and PHP make the same variable of `X_Api_Key` and `X-Api-Key`. No
  real client writes a known name with `_`: such a field is a trick, and does not go to an origin on behalf of all.
"""

from __future__ import annotations

import enum
from typing import Dict, Iterable, List, Tuple

from protocol.headers import Field, Headers

# Fields of one connection or one message. They never reach an origin as they came, so that they open nothing there.
_FRAMING = frozenset(
    b"connection content-length expect host keep-alive max-forwards proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade http2-settings via".split()
)
# Conditions and ranges: dduct asks for the whole, and answers them itself.
_CONDITIONS = frozenset(
    b"if-match if-modified-since if-none-match if-range if-unmodified-since range accept-encoding".split()
)

# What opens nothing: it says who sends, what it takes, and how the request is to be traced.
_HARMLESS = frozenset(
    # RFC 9110, 9111 and their kin: what the client is, prefers and takes
    b"accept accept-charset accept-datetime accept-language cache-control content-encoding content-language"
    b" content-type date digest from mime-version origin pragma priority referer user-agent want-content-digest"
    b" want-digest want-repr-digest"
    # Browsers, and what plays one; client hints without their prefix
    b" alt-used access-control-request-headers access-control-request-method device-memory dnt downlink dpr ect"
    b" early-data purpose rtt save-data sec-gpc sec-purpose service-worker ua-cpu upgrade-insecure-requests"
    b" sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version"
    b" viewport-width width x-do-not-track x-moz x-purpose x-requested-with"
    # Trace and correlation identifiers: made up anew for each request or each run, and no origin decides by them
    b" amz-sdk-invocation-id amz-sdk-request b3 baggage correlation-context correlation-id elastic-apm-traceparent"
    b" cache-key grpc-trace-bin idempotency-key ms-cv newrelic request-id sentry-trace traceparent tracestate"
    b" uber-trace-id x-amz-user-agent x-amzn-trace-id x-client-request-id x-client-trace-id x-cloud-trace-context"
    b" x-correlation-id x-envoy-attempt-count x-envoy-expected-rq-timeout-ms x-github-request-id x-goog-api-client"
    b" x-instana-l x-instana-s x-instana-t x-ms-client-request-id x-ms-correlation-request-id x-ms-request-id"
    b" x-ot-span-context x-request-id x-request-start x-trace-id x-transaction-id x-idempotency-key surrogate-key"
    # Versions of a protocol or of an interface
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
    b"sec-fetch-",  # browsers: from where a request came about
    b"sec-ch-",  # client hints
    b"pacote-",  # npm: which package, which integrity
    b"x-b3-",  # Zipkin
    b"x-datadog-",
    b"uberctx-",  # Jaeger's baggage
    b"ot-baggage-",
    b"x-stainless-",  # generated clients: language, system, retries
)
# What a prefix of the table, or of the configuration, does not make harmless.
_SECRET_ENDINGS = (b"-key", b"-token", b"-auth", b"-authorization", b"-secret", b"-password", b"-otp", b"-signature")

# What some origins heed instead of URL, method, host, scheme or address: of one client's making, and in no name.
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

_FORBIDDEN = (b"authorization", b"cookie", b"proxy-authorization")  # these are credentials by definition
_REMEMBERED_NAME = 64  # bytes; longer names are judged each time, or a client could fill the memory with them
_REMEMBERED_NAMES = 1024


class FieldKind(enum.Enum):
    """What a field of a request may do."""

    HARMLESS = "it opens nothing, and goes along"
    OPENING = "it may be what lets its client in; it goes along, and restricts what it brings"
    DROPPED = "it would choose what everybody gets, and never goes along on behalf of all"


class RequestFields:
    """The table, and what the configuration adds to it: names, and `prefix-*`."""

    def __init__(self, harmless: Iterable[str] = ()) -> None:
        names = [_normal(name.encode("latin-1")) for name in harmless]
        self._harmless = frozenset(name for name in names if not name.endswith(b"*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(b"*"))
        # Single operations on a dictionary are atomic; a lost one costs a little time.
        self._known: Dict[bytes, FieldKind] = {}

    def kind(self, name: bytes) -> FieldKind:
        """What a field of this name may do."""
        known = self._known.get(name)
        if known is None:
            known = self._judge(name.lower())
            if len(name) <= _REMEMBERED_NAME:
                if len(self._known) >= _REMEMBERED_NAMES:
                    self._known.clear()
                self._known[name] = known
        return known

    def opens(self, name: bytes) -> bool:
        """Whether a field of this name may let its client in at an origin."""
        return self.kind(name) is FieldKind.OPENING

    def opening(self, headers: Headers) -> List[Field]:
        """The fields that may let a client in. One without a value shows nothing (old npm sends such)."""
        return [field for field in headers if self.kind(field[0]) is FieldKind.OPENING and field[1]]

    def on_behalf_of_all(self, headers: Headers) -> Headers:
        """What of a request's fields goes along when its answer may be kept."""
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
    """Whether a pattern for harmless names covers what is a credential by definition."""
    name = _normal(pattern.encode("latin-1", "replace"))
    if name.endswith(b"*"):
        return any(one.startswith(name[:-1]) for one in _FORBIDDEN)
    return name in _FORBIDDEN


def _normal(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _has_prefix(name: bytes, prefixes: Tuple[bytes, ...]) -> bool:
    return name.startswith(prefixes) and not name.endswith(_SECRET_ENDINGS)


DEFAULT = RequestFields()
