"""The keys of the configuration: the one declaration of each, from which all else follows.

Rules of this module:

* A field of a section is a key: `key` gives it its reader (`config_values.py`), its default as written in TOML, and
  its meaning. mypy holds the reader's type against the field's.
* README's table of keys is made from here (`make readme`). A test holds README and dduct.toml against this module.
* A key that is not marked `restart` takes effect at a reload; one about certificates, when such a one is next made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar, cast

from certs import CertificateSettings
from fetching.naming import MetadataRule
from server import config_values as read
from server.config_values import FILTERS, Address
from server.moving_names import METADATA, VOLATILE
from upstream.dialling import Parent

T = TypeVar("T")


@dataclass(frozen=True)
class Declaration:
    """What a key is declared to be. `default` is as written in TOML; `meaning` is for README's table."""

    read: Callable[[Any, Path], Any]
    default: Any
    meaning: str
    shown: str  # in place of the default in README's table; empty: the default
    restart: bool  # takes effect at a start only
    secret: bool  # is never shown


def key(
    read: Callable[[Any, Path], T],
    default: Any,
    meaning: str,
    *,
    shown: str = "",
    restart: bool = False,
    secret: bool = False,
) -> T:
    """Declare a key, as the value of its field. The field has no default: `config.py` gives each one a value."""
    return cast(T, field(metadata={"declared": Declaration(read, default, meaning, shown, restart, secret)}))


@dataclass(frozen=True)
class Misc:
    """Section [misc]."""

    log_level: str = key(read.log_level, "info", "`off`, `error`, `warn`, `info`, `debug`, `trace`")
    cert_dir: Path = key(
        read.directory, "certs/", "certificates and keys", shown="`certs/` beside the program", restart=True
    )
    file_dir: Path = key(read.directory, "files/", "the cache", shown="`files/` beside the program", restart=True)


@dataclass(frozen=True)
class Proxy:
    """Section [proxy]; times in seconds."""

    tcp_bind: Optional[Address] = key(
        read.address, "127.0.0.1:8000", "plain proxy port; `''` for none; IPv6 as `'[::1]:8000'`", restart=True
    )
    tls_bind: Optional[Address] = key(read.address, "0.0.0.0:4430", "the same inside TLS; `''` for none", restart=True)
    filters: Tuple[re.Pattern[str], ...] = key(
        read.list_of(read.filter_pattern),
        list(FILTERS),
        "regular expressions, searched in the path of a URL; dduct refuses one that would take long on some path",
        shown="layers, packages, archives",
    )
    idle_timeout: float = key(
        read.seconds, "60s", "how long a client connection may be without a request; a tunnel gets ten times that"
    )
    connect_timeout: float = key(
        read.seconds, "10s", "each of: to find and connect to an origin, for the handshake, for a parent's CONNECT"
    )
    upstream_timeout: float = key(
        read.seconds, "30s", "how long an origin may be silent, before and during an answer that may be kept"
    )
    relay_timeout: float = key(
        read.seconds, "5m", "the same for all other answers: long polls, events, uploads; at least `upstream_timeout`"
    )
    max_connections: int = key(
        read.whole(1, 1_000_000),
        4096,
        "client connections at a time, for each worker. Beyond it, dduct ends a silent connection of the address "
        "that has the most of these, in favour of the new client. If there is none, the new client gets `503` "
        "with `Retry-After` at once",
    )
    max_silent_per_client: int = key(
        read.whole(0, 1_000_000),
        0,
        "how many connections one address may have before their first accepted request; `0`: a quarter of "
        "`max_connections`, at least 32. The number of connections in use is not limited",
    )
    workers: int = key(
        read.whole(0, 64), 0, "processes that share the listeners; `0`: one for each core, at most 8", restart=True
    )
    allow_clients: Tuple[str, ...] = key(
        read.list_of(read.network),
        [
            "127.0.0.0/8",
            "::1",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
        ],
        "addresses and networks that may use dduct; it refuses all others when they connect (`403` on "
        "`tcp_bind`, a TLS alert on `tls_bind`)",
        shown="this machine, private networks",
    )
    allow_own: Tuple[str, ...] = key(
        read.list_of(read.own_service),
        [],
        "services of dduct's own machine that other machines may reach, such as a registry: `'10.0.0.5:5000'`, "
        "`'registry.lab:5000'`, `'[fd00::5]:443'`, or only a host for all its ports",
    )
    auth_file: Optional[Path] = key(
        read.readable("a file"),
        "",
        "users with passwords (`python3 dduct.py passwd USER >> users`); dduct then asks for "
        "`Proxy-Authorization: Basic`",
    )
    require_client_cert: bool = key(
        read.boolean,
        False,
        "`tls_bind` accepts only clients with a certificate of dduct's CA (`client.crt`, `client.p12`)",
    )
    ktls: bool = key(
        read.boolean,
        True,
        "the kernel encrypts, where it can (`modprobe tls` before dduct starts): large objects cost half the "
        "processor time",
    )
    upstream_ca: Optional[Path] = key(
        read.readable("a PEM file"), "", "PEM file with CAs to trust upstream, in addition to the system's"
    )
    upstream_insecure: Tuple[str, ...] = key(
        read.list_of(read.host_or_network),
        [],
        "hosts whose certificate is not verified (logged at start); names, `*.name` or `.name` for all below, "
        "addresses, networks",
    )
    client_cert_hosts: Tuple[str, ...] = key(
        read.list_of(read.host_or_network_or_all),
        [],
        "hosts that get `client.crt` when they ask for a certificate, written in the same way; `['*']`: all hosts",
    )
    upstream_proxy: Optional[Parent] = key(
        read.proxy_url, "", "parent proxy, `http://` or `https://`, `user:password@` allowed"
    )
    no_upstream_proxy: Tuple[str, ...] = key(
        read.list_of(read.host_or_network),
        [],
        "hosts to reach without the parent, written in the same way; dduct looks up no names for that",
    )


@dataclass(frozen=True)
class CacheSettings:
    """Section [cache]; times in seconds, sizes in bytes."""

    max_size: Optional[int] = key(
        read.size,
        "",
        "space for objects, directories included. Beyond it, the least recently used objects are removed; larger "
        "objects are relayed. K, M, G, T",
        shown="`''` (any)",
    )
    min_free: Optional[int] = key(
        read.size,
        "1G",
        "space that stays free on the disk. Below it, the least recently used objects are removed, if that "
        "helps. A twentieth of the inodes (10,000 at most) also stays free",
    )
    fresh_for: float = key(
        read.seconds_or_none,
        "1d",
        "how long an object is fresh when the origin says nothing; `0`: validated on every request",
    )
    heuristic_max: float = key(
        read.seconds_or_none,
        "7d",
        "how long, at most, an object is fresh when the origin only says when it was last modified; `0`: no "
        "guess, and objects without a lifetime from their origin are validated on every request",
    )
    recheck: float = key(
        read.seconds_or_none,
        "10m",
        "an object that is fresh by such a guess, and was validated longer ago, is sent at once and validated in "
        "the background; `0`: on every request",
    )
    retry_window: float = key(
        read.seconds_or_none,
        "2m",
        "a client received all of an object that was fresh by such a guess. If it asks again within this time, "
        "dduct validates the object first; one such question for each object in that time; `0`: none",
    )
    volatile: Tuple[re.Pattern[str], ...] = key(
        read.list_of(read.path_pattern),
        list(VOLATILE),
        "regular expressions, searched in the path of a URL: these objects are validated on every request",
        shown="indexes of apt, rpm-md, apk, gem, CPAN, CRAN, conda, …",
    )
    metadata: Tuple[MetadataRule, ...] = key(
        read.metadata_rules,
        [list(pair) for pair in METADATA.items()],
        "further objects that are kept, as pairs: a regular expression as in `filters`, and how long its objects may "
        "be sent without asking (`'0s'`: validated on every request). An expression that begins with `^//` is searched "
        "in `//host/path`, and one that begins as `^Accept: ` does in the request's field of that name. What the "
        "client accepts belongs to the name of such an object",
        shown="manifests, indexes of pip, npm, cargo, go, apt, dnf, …",
    )
    tag_check: float = key(
        read.seconds_or_none,
        "0s",
        "how long the tag of an image may be sent without asking its registry; `0s`: it is asked each time, by `HEAD`",
    )
    ratelimit_floor: int = key(
        read.whole(0, 1_000_000),
        10,
        "where a registry says that it answers fewer further requests than this (`RateLimit-Remaining`), the tag of an "
        "image may be sent for an hour without asking; `0`: never",
    )
    ask_anonymously: bool = key(
        read.boolean,
        True,
        "dduct asks once a day, without credentials, whether a repository of images is public, where only clients with "
        "credentials have asked for it, or nobody has",
    )
    stale_if_error: bool = key(read.boolean, True, "a stale object is better than none")
    obey_no_store: bool = key(read.boolean, True, "`false`: a filter overrides the origin's `no-store` and `private`")
    negative: float = key(
        read.seconds_or_none,
        "60s",
        "how long, at most, dduct keeps a `404`, a `410` or a permanent redirect that says how long it is good; `0`: "
        "it asks each time",
    )
    auth_grace: float = key(
        read.seconds_or_none,
        "60s",
        "how long dduct remembers that an origin accepted a client, for each pair of credentials and object",
    )
    ignore_query: Tuple[str, ...] = key(
        read.list_of(read.parameter),
        [
            *("X-Amz-*", "X-Goog-*", "AWSAccessKeyId", "GoogleAccessId"),
            *("Signature", "Expires", "Policy", "Key-Pair-Id"),
            *("se", "sp", "spr", "sv", "sr", "sig", "st", "sks", "skoid", "sktid", "ske", "skt", "skv"),
            *("hmac", "verify", "token", "jwt"),
        ],
        "query parameters that do not make a different object; `*` at the end",
        shown="signing parameters",
    )
    harmless_fields: Tuple[str, ...] = key(
        read.list_of(read.harmless_field),
        [],
        "your own request fields that are not credentials, in addition to those that dduct knows; `*` at the end",
    )


@dataclass(frozen=True)
class Certs(CertificateSettings):
    """Section [certs]."""

    rsa_key_bits: int = key(read.whole(2048, 8192), 3072, "key size of the CA, server and client certificates")
    days_from_now: int = key(read.whole(1, 36500), 3072, "lifetime of these certificates")
    ca_cn: str = key(read.common_name, "dduct", "name of the CA; up to 64 bytes, like the other two names")
    server_cn: str = key(
        read.common_name,
        "*.dduct.rs",
        "name of the server certificate. Names that it covers mean dduct itself. It is a host name if there are "
        "no SANs",
    )
    server_dns_sans: Tuple[str, ...] = key(
        read.list_of(read.host_pattern),
        [
            "*.dduct.rs",
            "*.dkr.ecr.*.amazonaws.com",
            "*.docker.io",
            "*.gcr.io",
            "*.githubusercontent.com",
            "*.k8s.io",
            "*.pkg.dev",
            "*.quay.io",
            "cgr.dev",
            "docker.elastic.co",
            "gcr.io",
            "ghcr.io",
            "lscr.io",
            "mcr.microsoft.com",
            "nvcr.io",
            "public.ecr.aws",
            "quay.io",
            "registry.access.redhat.com",
            "registry.connect.redhat.com",
            "registry.gitlab.com",
            "registry.redhat.io",
        ],
        "**hosts to intercept**, and registries to be a mirror of; `*.docker.io` covers every depth below. Inside a "
        "name, a `*` stands for one label: `*.dkr.ecr.*.amazonaws.com`",
        shown="registries",
    )
    server_ip_sans: Tuple[str, ...] = key(read.list_of(read.ip), ["127.0.0.1"], "addresses to intercept")
    client_cn: str = key(
        read.common_name, "client.dduct.rs", "name of the client certificate, sent to `proxy.client_cert_hosts`"
    )
    p12_pass: str = key(read.string, "dduct", "password of `server.p12` and `client.p12`", secret=True)
    name_constraints: bool = key(
        read.boolean,
        False,
        "a new CA is valid only for the listed hosts, `server_cn` and `client_cn` (and names below them, or below what "
        "follows a `*` inside a name); hosts that you list later need a new CA",
    )
    leaf_days: int = key(
        read.whole(1, 825), 199, "lifetime of the leaf certificate that dduct makes for an intercepted host"
    )


@dataclass(frozen=True)
class CredentialRule:
    """One table of [[credentials]]."""

    hosts: Tuple[str, ...] = key(
        read.list_of(read.credential_host),
        [],
        "the hosts that get the secret: `'ghcr.io'`, `'*.lab'`, `'registry.lab:5000'`; without a port, the usual one",
    )
    realms: Tuple[str, ...] = key(
        read.list_of(read.credential_host),
        [],
        "further hosts that get it, if one of `hosts` names them as its token server; written in the same way",
    )
    users: Tuple[str, ...] = key(
        read.list_of(read.string), [], "the users of `proxy.auth_file` for whom it is used; `[]`: all"
    )
    clients: Tuple[str, ...] = key(
        read.list_of(read.network), [], "the addresses and networks for which it is used; `[]`: all"
    )
    username: str = key(read.username, "", "the user to whom the password belongs")
    password_file: Optional[Path] = key(read.readable("a file"), "", "a file with the password")
    helper: str = key(
        read.helper,
        "",
        "instead of these two: the NAME of a program `docker-credential-NAME`, which gives user and password",
    )
    token_file: Optional[Path] = key(
        read.readable("a file"), "", "instead of these: a file with a token, which is sent as it is (`Bearer`)"
    )
    allow_http: bool = key(
        read.boolean, False, "the secret may go over plain http, and to hosts of `proxy.upstream_insecure`"
    )


@dataclass(frozen=True)
class Config:
    """A complete configuration; `source` is its file, None for the built-in defaults."""

    misc: Misc
    proxy: Proxy
    cache: CacheSettings
    certs: Certs
    source: Optional[Path]
    credentials: Tuple[CredentialRule, ...] = ()


SECTIONS = {"misc": Misc, "proxy": Proxy, "cache": CacheSettings, "certs": Certs}  # as Config has them
RULES = "credentials"  # the one array of tables


@dataclass(frozen=True)
class Key:
    """A declared key, with its place."""

    section: str
    name: str
    declared: Declaration

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"

    def of(self, config: Config) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.section), self.name)


KEYS = tuple(
    Key(section, one.name, one.metadata["declared"]) for section, kind in SECTIONS.items() for one in fields(kind)
)
RULE_KEYS = tuple(Key(RULES, one.name, one.metadata["declared"]) for one in fields(CredentialRule))


def until_restart(wanted: Config, running: Config) -> Tuple[Config, List[Key]]:
    """`wanted` with the values of `running` for keys that need a restart, and the keys that differ by that."""
    differing = [key for key in KEYS if key.declared.restart and key.of(wanted) != key.of(running)]
    kept: Dict[str, Dict[str, Any]] = {}
    for one in differing:
        kept.setdefault(one.section, {})[one.name] = one.of(running)
    sections = {section: replace(getattr(wanted, section), **values) for section, values in kept.items()}
    return replace(wanted, **sections), differing
