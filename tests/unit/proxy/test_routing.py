"""What a request is for, and what its object is called."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import pytest

from fetching.naming import Name, Naming, Parameters, names_credential, storage_name
from monitoring.redaction import nameable, nameable_path
from net.addresses import Reach
from net.arrival import Arrival
from protocol.headers import Headers
from protocol.http1 import Authority, ProtocolError, RequestHead, Target
from proxy import routing
from proxy.mirror import TokenScope
from proxy.routing import (
    BuiltinPage,
    Fetch,
    HostList,
    Hosts,
    Intercept,
    MaxForwardsReached,
    MirrorToken,
    Refuse,
    Rules,
    Tunnel,
)
from server import config
from storage.record import Digest

DEFAULTS = config.defaults(Path("/nowhere"))
NAMING = Naming(DEFAULTS.proxy.filters, Parameters(DEFAULTS.cache.ignore_query))
RULES = Rules(Hosts(["listed.test", "*.below.test", "192.0.2.1", "::1"]), Hosts(["*.dduct.rs", "localhost"]), NAMING)
LOCAL = Authority("192.0.2.9", 8000)
PLAIN = Arrival(LOCAL, reach=Reach.EVERYTHING)
TLS = Arrival(Authority("192.0.2.9", 4430), reach=Reach.EVERYTHING, encrypted=True)
INSIDE = Arrival(LOCAL, reach=Reach.EVERYTHING, connect_target=Authority("listed.test", 443))
FAR_PORT = Arrival(LOCAL, reach=Reach.EVERYTHING, connect_target=Authority("listed.test", 8443))
SHA256, SHA512 = "0123456789abcdef" * 4, "0123456789abcdef" * 8


# --- hosts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "listed"),
    [
        ("listed.test", True),
        ("a.below.test", True),
        ("a.b.c.below.test", True),
        ("192.0.2.1", True),
        ("::1", True),
        ("below.test", False),
        ("evilbelow.test", False),
        ("evillisted.test", False),
        ("a.listed.test", False),
        ("listed.test.evil", False),
        ("below.test.evil", False),
        (".below.test", True),
        ("", False),
        ("192.0.2.10", False),
    ],
)
def test_a_host_is_listed_label_by_label(host: str, listed: bool) -> None:
    assert (host in RULES.intercept) is listed


@pytest.mark.parametrize(
    ("pattern", "host", "listed"),
    [
        ("*.a.*.b.test", "x.a.y.b.test", True),
        ("*.a.*.b.test", "w.x.a.y.b.test", True),
        ("*.a.*.b.test", "a.y.b.test", False),
        ("*.a.*.b.test", "x.a.b.test", False),
        ("*.a.*.b.test", "x.a.y.z.b.test", False),
        ("*.a.*.b.test", "x.a.y.b.test.evil", False),
        ("*.a.*.b.test", "x.evila.y.b.test", False),
        ("*.a.*.b.test", "x.a.y.evilb.test", False),
        ("A.*.b.test", "a.y.b.test", True),
        ("a.*.b.test", "x.a.y.b.test", False),
        ("a.*.b.*.c.test", "a.x.b.y.c.test", True),
        ("a.*.b.*.c.test", "a.x.y.b.c.test", False),
    ],
)
def test_a_star_inside_a_pattern_stands_for_one_label(pattern: str, host: str, listed: bool) -> None:
    assert (host in Hosts(["other.test", pattern])) is listed


def test_the_default_hosts_are_registries_and_not_all_of_their_clouds() -> None:
    hosts = Hosts(DEFAULTS.certs.server_dns_sans)
    registries = ["registry-1.docker.io", "auth.docker.io", "gcr.io", "eu.gcr.io", "europe-docker.pkg.dev", "nvcr.io"]
    registries += ["mcr.microsoft.com", "public.ecr.aws", "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "cgr.dev"]
    registries += ["registry.gitlab.com", "registry.redhat.io", "registry.access.redhat.com", "docker.elastic.co"]
    registries += ["lscr.io", "ghcr.io", "quay.io", "registry.k8s.io"]
    assert [host for host in registries if host not in hosts] == []
    others = ["bucket.s3.eu-west-1.amazonaws.com", "sts.amazonaws.com", "gitlab.com", "microsoft.com", "redhat.com"]
    others += ["x.dkr.ecr.evil.amazonaws.com.evil.test", "public.ecr.aws.evil.test"]
    assert [host for host in others if host in hosts] == []


def test_host_patterns_ignore_case() -> None:
    assert "a.b" in Hosts(["A.b"]) and "x.b" in Hosts(["*.B"]) and 5 not in Hosts(["5"])


# --- decisions --------------------------------------------------------------------------------------


def head(method: str, target: str, *fields: Tuple[str, str]) -> RequestHead:
    pairs = [(name.encode(), value.encode()) for name, value in fields]
    return RequestHead(method.encode(), target.encode(), 1, Headers(pairs))


def to(host: str) -> Tuple[str, str]:
    return ("Host", host)


def fetch(url: str, kept: bool = False) -> Fetch:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    name, _, port = host.partition(":")
    path, mark, query = path.partition("?")
    authority = Authority(name, int(port or {"http": 80, "https": 443}[scheme]))
    target = Target(scheme, authority, slash + path or "*", query if mark else None)
    return Fetch(target, storage_name(target, NAMING) if kept else None)


DECISIONS: List[Tuple[str, RequestHead, Arrival, object]] = [
    ("CONNECT to a listed host", head("CONNECT", "listed.test:443"), PLAIN, Intercept(Authority("listed.test", 443))),
    ("on any port", head("CONNECT", "listed.test:8443"), PLAIN, Intercept(Authority("listed.test", 8443))),
    ("in any case", head("CONNECT", "LISTED.test:443"), TLS, Intercept(Authority("listed.test", 443))),
    ("to a listed address", head("CONNECT", "[::1]:443"), PLAIN, Intercept(Authority("::1", 443))),
    ("to any other host", head("CONNECT", "other.test:443"), PLAIN, Tunnel(Authority("other.test", 443))),
    ("to one that ends alike", head("CONNECT", "evilbelow.test:443"), PLAIN, Tunnel(Authority("evilbelow.test", 443))),
    ("inside", head("CONNECT", "listed.test:443"), INSIDE, Refuse),
    ("http in absolute form", head("GET", "http://other.test/a"), PLAIN, fetch("http://other.test/a")),
    ("kept whatever the host", head("GET", "http://o.test/a.deb"), PLAIN, fetch("http://o.test/a.deb", True)),
    ("HEAD of it", head("HEAD", "http://o.test/a.deb"), PLAIN, fetch("http://o.test/a.deb", True)),
    ("PUT of it", head("PUT", "http://o.test/a.deb"), PLAIN, fetch("http://o.test/a.deb")),
    (
        "https in absolute form",
        head("GET", "https://listed.test/a.deb"),
        PLAIN,
        fetch("https://listed.test/a.deb", True),
    ),
    ("of a host not listed", head("GET", "https://other.test/a.deb"), PLAIN, fetch("https://other.test/a.deb")),
    ("our own page by name", head("GET", "/ca.crt", to("localhost:8000")), PLAIN, BuiltinPage("/ca.crt")),
    ("by address", head("GET", "/ca.crt", to("192.0.2.9:8000")), PLAIN, BuiltinPage("/ca.crt")),
    ("by any name of ours", head("GET", "/x", to("proxy.dduct.rs")), PLAIN, BuiltinPage("/x")),
    ("by an unknown name, on our port", head("GET", "/x", to("proxy:8000")), PLAIN, BuiltinPage("/x")),
    ("without a name", head("GET", "/healthz"), PLAIN, BuiltinPage("/healthz")),
    ("asked through ourselves", head("GET", "http://localhost:8000/ca.crt", to("x")), PLAIN, BuiltinPage("/ca.crt")),
    ("the like of another host", head("GET", "http://other.test/ca.crt"), PLAIN, fetch("http://other.test/ca.crt")),
    (
        "a host that points here",
        head("GET", "/a.deb", to("listed.test")),
        PLAIN,
        fetch("http://listed.test/a.deb", True),
    ),
    ("inside TLS", head("GET", "/a.deb", to("listed.test")), TLS, fetch("https://listed.test/a.deb", True)),
    ("by our port", head("GET", "/a.deb", to("listed.test:4430")), TLS, fetch("https://listed.test/a.deb", True)),
    ("one not listed, inside TLS", head("GET", "/a", to("other.test")), TLS, Refuse),
    ("one not listed, in plain", head("GET", "/a", to("other.test")), PLAIN, fetch("http://other.test/a")),
    (
        "another than the handshake's",
        head("GET", "/a", to("listed.test")),
        Arrival(TLS.local, Reach.EVERYTHING, True, None, "x.below.test"),
        Refuse,
    ),
    ("intercepted", head("GET", "/a.deb", to("listed.test")), INSIDE, fetch("https://listed.test/a.deb", True)),
    (
        "in absolute form",
        head("GET", "https://listed.test/a", to("listed.test")),
        INSIDE,
        fetch("https://listed.test/a"),
    ),
    ("without Host (1.0)", head("GET", "/a"), INSIDE, fetch("https://listed.test/a")),
    ("another Host", head("GET", "/a", to("other.test")), INSIDE, Refuse),
    ("another port", head("GET", "/a", to("listed.test:444")), INSIDE, Refuse),
    ("the default port in full", head("GET", "/a", to("listed.test:443")), INSIDE, fetch("https://listed.test/a")),
    ("an empty port", head("GET", "/a", to("listed.test:")), INSIDE, fetch("https://listed.test/a")),
    ("on another port", head("GET", "/a", to("listed.test:8443")), FAR_PORT, fetch("https://listed.test:8443/a")),
    (
        "there, no port",
        head("GET", "/a.deb", to("LISTED.test")),
        FAR_PORT,
        fetch("https://listed.test:8443/a.deb", True),
    ),
    ("there, an empty port", head("GET", "/a", to("listed.test:")), FAR_PORT, fetch("https://listed.test:8443/a")),
    ("there, the default port", head("GET", "/a", to("listed.test:443")), FAR_PORT, Refuse),
    ("there, another port", head("GET", "/a", to("listed.test:8444")), FAR_PORT, Refuse),
    ("there, another Host", head("GET", "/a", to("other.test")), FAR_PORT, Refuse),
    ("another target", head("GET", "https://other.test/a", to("listed.test")), INSIDE, Refuse),
    ("http inside", head("GET", "http://listed.test/a", to("listed.test")), INSIDE, Refuse),
    ("OPTIONS of a server", head("OPTIONS", "*", to("listed.test")), INSIDE, fetch("https://listed.test")),
    ("in absolute form", head("OPTIONS", "http://other.test"), PLAIN, fetch("http://other.test")),
    ("of dduct", head("OPTIONS", "*", to("localhost")), PLAIN, MaxForwardsReached()),
    ("GET of a star", head("GET", "*", to("localhost")), PLAIN, Refuse),
    ("GET of a star inside", head("GET", "*", to("listed.test")), INSIDE, Refuse),
    ("at its last stop", head("TRACE", "http://o.test/a", ("Max-Forwards", "0")), PLAIN, MaxForwardsReached()),
    ("not yet", head("TRACE", "http://o.test/a", ("Max-Forwards", "1")), PLAIN, fetch("http://o.test/a")),
]


@pytest.mark.parametrize(("what", "request_head", "where", "expected"), DECISIONS, ids=[row[0] for row in DECISIONS])
def test_each_request_has_one_decision(what: str, request_head: RequestHead, where: Arrival, expected: object) -> None:
    decision = routing.decide(request_head, where, RULES)
    if isinstance(expected, type):
        assert isinstance(decision, expected)
    else:
        assert decision == expected


BLOB = f"/v2/a/b/blobs/sha256:{SHA256}"
AT_LISTED = fetch(f"https://listed.test{BLOB}", True)
MIRRORED = replace(AT_LISTED, mirrored=True)
BY_QUERY, BY_PATH = f"{BLOB}?ns=listed.test", f"/v2/listed.test{BLOB[3:]}"
SCOPE = "/v2/token?service=dduct&scope=repository:listed.test/a/b:pull"
TOKEN = MirrorToken(TokenScope(Authority("listed.test", 443), "repository:a/b:pull"))
DOCKERLESS = Refuse(404, "other.test is not in certs.server_dns_sans or certs.server_ip_sans: dduct is no mirror of it")
AT_LOOPBACK = Rules(Hosts(["listed.test", "127.0.0.1"]), RULES.own_names, NAMING)

MIRROR: List[Tuple[str, RequestHead, Arrival, object]] = [
    *(
        (f"asked as {host}, {target[:20]}", head("GET", target, to(host)), PLAIN, MIRRORED)
        for host in (
            "proxy:8000",
            "192.0.2.9:8000",
            "localhost:8000",
            "x.dduct.rs",
            "192.0.2.9:30800",
            "10.0.0.1:30800",
        )
        for target in (BY_QUERY, BY_PATH)
    ),
    ("without a Host", head("GET", BY_QUERY), PLAIN, MIRRORED),
    ("HEAD", head("HEAD", BY_QUERY, to("proxy:8000")), PLAIN, MIRRORED),
    ("inside TLS", head("GET", BY_QUERY, to("proxy:4430")), TLS, MIRRORED),
    ("inside TLS, on a mapped port", head("GET", BY_QUERY, to("proxy")), TLS, MIRRORED),
    ("through dduct", head("GET", f"http://localhost:8000{BY_QUERY}"), PLAIN, MIRRORED),
    ("not listed", head("GET", f"{BLOB}?ns=other.test", to("proxy:8000")), PLAIN, DOCKERLESS),
    ("not listed, by path", head("GET", f"/v2/other.test{BLOB[3:]}", to("proxy:8000")), PLAIN, DOCKERLESS),
    ("no registry", head("GET", BLOB, to("proxy:8000")), PLAIN, Refuse),
    ("the mirror itself", head("GET", "/v2/", to("proxy:8000")), PLAIN, BuiltinPage("/v2/")),
    ("a registry's base", head("GET", "/v2/?ns=listed.test", to("proxy:8000")), PLAIN, Fetch),
    ("a token", head("GET", SCOPE, to("proxy:8000")), PLAIN, TOKEN),
    ("a page of no mirror", head("GET", "/v2", to("proxy:8000")), PLAIN, BuiltinPage("/v2")),
    *(
        (f"{method} {target[:9]}", head(method, target, to("proxy:8000")), PLAIN, Refuse)
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
        for target in ("/v2/", BY_QUERY, BY_PATH, SCOPE)
    ),
    ("HEAD of a token", head("HEAD", SCOPE, to("proxy:8000")), PLAIN, Refuse),
    # Hosts that point at dduct stay what they are.
    ("a listed host", head("GET", BY_QUERY, to("listed.test")), TLS, fetch(f"https://listed.test{BY_QUERY}", True)),
    ("its path", head("GET", BY_PATH, to("listed.test")), TLS, fetch(f"https://listed.test{BY_PATH}", True)),
    ("another host's path", head("GET", BLOB, to("other.test")), PLAIN, fetch(f"http://other.test{BLOB}", True)),
    ("another host's base", head("GET", "/v2/", to("other.test")), PLAIN, fetch("http://other.test/v2/")),
    ("another host's token", head("GET", SCOPE, to("other.test")), PLAIN, fetch(f"http://other.test{SCOPE}")),
    (
        "another host's registry",
        head("GET", "/v2/a?ns=team", to("other.test")),
        PLAIN,
        fetch("http://other.test/v2/a?ns=team"),
    ),
    ("a push to another host", head("PUT", BY_QUERY, to("other.test")), PLAIN, fetch(f"http://other.test{BY_QUERY}")),
    ("a proxied host", head("GET", f"http://other.test{BY_PATH}"), PLAIN, fetch(f"http://other.test{BY_PATH}", True)),
    ("intercepted", head("GET", BY_QUERY, to("listed.test")), INSIDE, fetch(f"https://listed.test{BY_QUERY}", True)),
]


@pytest.mark.parametrize(("what", "request_head", "where", "expected"), MIRROR, ids=[row[0] for row in MIRROR])
def test_a_request_to_dduct_for_a_registry_is_decided_like_one_through_it(
    what: str, request_head: RequestHead, where: Arrival, expected: object
) -> None:
    test_each_request_has_one_decision(what, request_head, where, expected)


def test_a_mapped_port_on_loopback_is_ours_although_loopback_is_listed() -> None:
    request_head = head("GET", BY_QUERY, to("127.0.0.1:30800"))
    assert routing.decide(request_head, PLAIN, AT_LOOPBACK) == MIRRORED


def test_a_refused_method_comes_with_the_allowed_ones() -> None:
    refused = routing.decide(head("PUT", BY_QUERY, to("proxy:8000")), PLAIN, RULES)
    assert isinstance(refused, Refuse) and (refused.status, refused.allow) == (405, b"GET, HEAD")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("CONNECT", "listed.test"),
        ("CONNECT", "http://listed.test"),
        ("GET", "ftp://a/b"),
        ("GET", "a"),
        ("GET", "http://"),
    ],
)
def test_an_invalid_target_is_refused(method: str, target: str) -> None:
    with pytest.raises(ProtocolError):
        routing.decide(head(method, target, to("x")), PLAIN, RULES)


# --- names ------------------------------------------------------------------------------------------

NAMES: List[Tuple[str, Optional[Name]]] = [
    ("/pool/a.deb", Name("https/h/pool/a.deb")),
    ("/pool/a.deb?", Name("https/h/pool/a.deb")),
    ("/a.html", None),
    ("/a.deb/", None),
    ("/pool/a%2bb%7e.deb", Name("https/h/pool/a%2Bb~.deb")),
    ("/pool/a%2Bb~.deb", Name("https/h/pool/a%2Bb~.deb")),
    ("/%61.d%65b", Name("https/h/a.deb")),
    ("/a%2fb.deb", Name("https/h/a%2Fb.deb")),
    (f"/v2/a/b/blobs/sha256:{SHA256}", Name(f"https/h/v2/a/b/blobs/sha256:{SHA256}", Digest("sha256", SHA256))),
    (f"/v2/a/b/blobs/sha512:{SHA512}", Name(f"https/h/v2/a/b/blobs/sha512:{SHA512}", Digest("sha512", SHA512))),
    (f"/v2/a/blobs/sha512:{SHA512[1:]}", None),
    (f"/v2/a/blobs/sha512:{SHA256}", None),
    (f"/v2/a/blobs/sha256%3A{SHA256}", None),
    (f"/v2/a/blobs/sha256:{SHA256[1:]}", None),
    ("/v2/a/manifests/latest", None),
    (f"/v2/a/manifests/sha256:{SHA256}", None),
    (f"/d/by-hash/SHA256/{SHA256}", Name(f"https/h/d/by-hash/SHA256/{SHA256}", Digest("sha256", SHA256))),
    (f"/d/by-hash/SHA512/{SHA512}", Name(f"https/h/d/by-hash/SHA512/{SHA512}", Digest("sha512", SHA512))),
    (f"/d/by-hash/MD5Sum/{SHA256[:32]}", None),
    (
        f"/packages/{SHA256[:2]}/{SHA256[2:4]}/{SHA256[4:]}/a-1-py3-none-any.whl",
        Name(
            f"https/h/packages/{SHA256[:2]}/{SHA256[2:4]}/{SHA256[4:]}/a-1-py3-none-any.whl", Digest("blake2b", SHA256)
        ),
    ),
    (f"/packages/{SHA256[:2]}/{SHA256[2:4]}/{SHA256[4:]}/a-1-py3-none-any.whl.metadata", None),
    ("/packages/a-1.tar.gz", Name("https/h/packages/a-1.tar.gz")),
    ("/a.crate?x=1&token=y", Name("https/h/a.crate?x=1")),
    ("/crates/serde/1.0.0/download", Name("https/h/crates/serde/1.0.0/download")),
    ("/api/v1/crates/serde/1.0.0/download", Name("https/h/api/v1/crates/serde/1.0.0/download")),
    ("/api/v1/crates/serde/downloads", None),
    ("/a.apk?token=y", Name("https/h/a.apk")),
    ("/a.apk?b=1&a=2", Name("https/h/a.apk?b=1&a=2")),
    ("/a.apk?b=1&&c", Name("https/h/a.apk?b=1&&c")),
    ("/a.zst?p=%2e%2e/x", Name("https/h/a.zst?p=%2e%2e%2Fx")),
    ("/a.gz?X-Amz-Credential=a%2Fb&X-Amz-Date=1&versionId=3", Name("https/h/a.gz?versionId=3")),
    ("/a.gz?x%2Damz%2Ddate=1", Name("https/h/a.gz")),
    ("/a.gz?X-Goog-Signature=1&generation=2", Name("https/h/a.gz?generation=2")),
    ("/a.gz?se=1&sp=r&sv=2&sr=b&sig=x%3D&rscd=attachment", Name("https/h/a.gz?rscd=attachment")),
    ("/a.gz?Expires=1&Signature=2&Key-Pair-Id=3&Policy=4", Name("https/h/a.gz")),
    ("/a.gz?secret=1&service=2", Name(f"https/h/a.gz?secret={nameable('secret=1').partition('=')[2]}&service=2")),
    ("/a;v=1;jsessionid=77/x.gz", Name("https/h" + nameable_path("/a;v=1;jsessionid=77/x.gz"))),
]


@pytest.mark.parametrize(("path", "name"), NAMES, ids=[path[:60] for path, _ in NAMES])
def test_an_object_has_one_name(path: str, name: Optional[Name]) -> None:
    path, mark, query = path.partition("?")
    target = Target("https", Authority("h", 443), path, query if mark else None)
    assert storage_name(target, NAMING) == name


ALL = Rules(RULES.intercept, RULES.own_names, replace(NAMING, metadata=DEFAULTS.cache.metadata))
NPM, PYPI = b"application/vnd.npm.install-v1+json; q=1.0, */*", b"application/vnd.pypi.simple.v1+json, text/html; q=0.1"


def named(path: bytes, field: Tuple[bytes, bytes], rules: Rules = ALL, method: bytes = b"GET") -> Optional[str]:
    head = RequestHead(method, path, 1, Headers([(b"Host", b"listed.test"), field]))
    decision = routing.decide(head, INSIDE, rules)
    assert isinstance(decision, Fetch)
    return None if decision.name is None else decision.name.path.partition("#")[0]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (b"/npm/left-pad", (b"Accept", NPM)),
        (b"/npm/@a%2fb", (b"accept", NPM)),
        (b"/npm/left-pad", (b"pacote-req-type", b"packument")),
        (b"/root/+simple/pip/", (b"Accept", PYPI)),
        (b"/mirror/se/rd/serde", (b"Cargo-Protocol", b"version=1")),
    ],
)
def test_metadata_is_known_by_what_its_client_asks_for(path: bytes, field: Tuple[bytes, bytes]) -> None:
    assert named(path, field) == f"https/listed.test{path.decode().replace('%2f', '%2F')}"
    assert named(path, field, method=b"HEAD") is not None
    assert named(path, (b"X-Other", field[1])) is None
    assert named(path, field, RULES) is None  # without rules for metadata
    assert named(path, field, method=b"POST") is None


@pytest.mark.parametrize(
    "field",
    [
        (b"Accept", b"application/json"),
        (b"Accept", b"application/vnd.npm.install-v2+json"),
        (b"Pacote-Req-Type", b"tarball"),
        (b"Accept", b"x" * 2048 + NPM),
    ],
)
def test_other_fields_make_no_metadata(field: Tuple[bytes, bytes]) -> None:
    assert named(b"/npm/left-pad", field) is None


def test_fields_make_no_metadata_of_what_passes_unread() -> None:
    head = RequestHead(b"GET", b"https://other.test/npm/left-pad", 1, Headers([(b"Accept", NPM)]))
    decision = routing.decide(head, PLAIN, ALL)
    assert isinstance(decision, Fetch) and decision.name is None


def test_a_filter_comes_before_fields() -> None:
    assert named(b"/npm/left-pad/-/left-pad-1.0.0.tgz", (b"Accept", NPM)) == (
        "https/listed.test/npm/left-pad/-/left-pad-1.0.0.tgz"
    )


def test_signature_parameters_are_sent_but_not_part_of_the_name() -> None:
    name = storage_name(Target("https", Authority("h", 443), "/a.gz", "v=1&sig=x%3D&b=2&token="), NAMING)
    assert name == Name("https/h/a.gz?v=1&b=2") and name is not None and name.signature == "sig=x%3D&token="


def test_port_and_scheme_are_part_of_the_name() -> None:
    names = {
        storage_name(Target(scheme, Authority("h", port), "/a.deb"), NAMING)
        for scheme, port in (("http", 80), ("https", 443), ("https", 8443), ("http", 443))
    }
    assert {name.path for name in names if name} == {
        "http/h/a.deb",
        "https/h/a.deb",
        "https/h:8443/a.deb",
        "http/h:443/a.deb",
    }


@pytest.mark.parametrize(
    ("pattern", "path", "digest"),
    [
        ("/(?P<md5>[0-9a-f]+)$", "/" + "a" * 32, ("md5", "a" * 32)),
        ("/(?P<md5>[0-9a-f]+)$", "/" + "a" * 31, None),
        ("/(?P<sha256>.*)$", "/" + "g" * 64, None),
        ("/(?P<sha256>.*)$", "/" + "A" * 64, ("sha256", "a" * 64)),
        ("/(?P<sha1_2>..)/(?P<sha1>.*)$", "/ab/" + "c" * 38, ("sha1", "ab" + "c" * 38)),
        ("/x(?P<sha256>[0-9a-f]{64})?", "/x", None),
    ],
)
def test_a_filter_names_its_digest(pattern: str, path: str, digest: Optional[Tuple[str, str]]) -> None:
    naming = Naming((re.compile(pattern),), Parameters(()))
    name = storage_name(Target("https", Authority("h", 443), path), naming)
    assert name is not None and name.digest == digest


@pytest.mark.parametrize(
    ("parameter", "secret"),
    [
        *((name, True) for name in ("api_key", "apiKey", "APIKey", "access_token", "X-Auth", "accesstoken", "key")),
        *(
            (name, True)
            for name in ("private-token", "sessionId", "PHPSESSIONID", "password", "userSecret", "auth.sig")
        ),
        *((name, False) for name in ("", "v", "version", "keyboard", "author", "tokenizer", "monkey", "ns", "passage")),
    ],
)
def test_a_parameter_is_secret_by_the_words_of_its_name(parameter: str, secret: bool) -> None:
    assert names_credential(parameter) is secret


@pytest.mark.parametrize(
    ("host", "patterns", "inside"),
    [
        ("a.test", ["a.test"], True),
        ("a.test", ["*.test"], True),
        ("a.b.test", ["*.test"], True),
        ("test", ["*.test"], False),  # as with `.test` in other programs' lists: what is below
        ("atest", ["*.test"], False),
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("10.1.2.3", ["10.1.2.3"], True),
        ("11.1.2.3", ["10.0.0.0/8"], False),
        ("127.1", ["127.0.0.0/8"], True),  # what resolvers take for an address
        ("0x7f000001", ["127.0.0.1"], True),
        ("::ffff:10.1.2.3", ["10.0.0.0/8"], True),
        ("fd00::5", ["fd00::/8"], True),
        ("fd00:0::5", ["fd00::5"], True),
        ("fe00::5", ["fd00::/9"], False),
        ("::1", ["0.0.0.0/0"], False),
        ("a.test", ["0.0.0.0/0", "::/0"], False),  # a name is no address
        ("a.test", ["*"], True),
        ("a.test", [], False),
    ],
)
def test_a_host_list_matches_names_suffixes_addresses_and_networks(
    host: str, patterns: Sequence[str], inside: bool
) -> None:
    assert (host in HostList(patterns)) is inside


@pytest.mark.parametrize("host", [None, 5, b"a"])
def test_a_host_list_contains_no_other_types(host: object) -> None:
    assert host not in HostList(["a"])
