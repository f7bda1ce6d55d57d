"""What the values of keys mean, and which are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from support.config_files import KEYS, complaint, load

from fetching.naming import MetadataRule
from server.config_values import Address
from upstream.dialling import Parent

GOOD: List[Tuple[str, str, Any]] = [
    ("proxy.tcp_bind", "'[::1]:8000'", Address("::1", 8000)),
    ("proxy.tcp_bind", "'[::]:0'", Address("::", 0)),
    ("proxy.tcp_bind", "'localhost:80'", Address("localhost", 80)),
    ("proxy.tls_bind", "''", None),
    ("proxy.idle_timeout", "'90s'", 90.0),
    ("proxy.idle_timeout", "90", 90.0),
    ("proxy.idle_timeout", "1.5", 1.5),
    ("proxy.idle_timeout", "'2m'", 120.0),
    ("proxy.idle_timeout", "'1.5 h'", 5400.0),
    ("cache.max_size", "'20G'", 20 * 2**30),
    ("cache.max_size", "'1.5 TiB'", 3 * 2**39),
    ("cache.max_size", "5000", 5000),
    ("cache.max_size", "''", None),
    ("cache.min_free", "'500mb'", 500 * 2**20),
    ("cache.min_free", "0", 0),
    ("cache.fresh_for", "'7d'", 7 * 86400.0),
    ("cache.fresh_for", "0", 0.0),
    ("cache.heuristic_max", "'0s'", 0.0),
    ("cache.heuristic_max", "'30d'", 30 * 86400.0),
    ("cache.recheck", "0", 0.0),
    ("cache.recheck", "'1.5m'", 90.0),
    ("cache.retry_window", "'0s'", 0.0),
    ("cache.volatile", "[]", ()),
    ("cache.auth_grace", "'0'", 0.0),
    ("cache.auth_grace", "0", 0.0),
    ("cache.metadata", "[]", ()),
    ("cache.metadata", "[['^/a', '5m']]", (MetadataRule(re.compile("^/a"), 300.0),)),
    ("cache.metadata", "{ '^/a' = '5m' }", (MetadataRule(re.compile("^/a"), 300.0),)),
    ("cache.negative", "'0s'", 0.0),
    ("cache.negative", "'5m'", 300.0),
    ("cache.tag_check", "'60s'", 60.0),
    ("cache.stale_if_error", "false", False),
    ("cache.ignore_query", "[]", ()),
    ("cache.harmless_fields", "['X-Build', 'x-ci-*']", ("X-Build", "x-ci-*")),
    ("proxy.upstream_proxy", "''", None),
    ("proxy.upstream_proxy", "'http://proxy:3128'", Parent("proxy", 3128)),
    ("proxy.upstream_proxy", "'https://[::1]:443/'", Parent("::1", 443, True)),
    ("proxy.upstream_proxy", "'http://a:b%40c@p:1'", Parent("p", 1, False, "a:b@c")),
    ("proxy.no_upstream_proxy", "['*.Lab', '::1', '10.0.0.1']", ("*.lab", "::1", "10.0.0.1")),
    ("certs.server_dns_sans", "['*.A.example.', 'b']", ("*.a.example", "b")),
    ("certs.server_dns_sans", "['*.dkr.ecr.*.a.example', 'a.*.b.c']", ("*.dkr.ecr.*.a.example", "a.*.b.c")),
    ("certs.server_ip_sans", "['0:0::1']", ("::1",)),
    (
        "proxy.no_upstream_proxy",
        "['.Lab', '*.svc', 'a.', '[::1]', '10.0.0.0/8', 'FD00::/8']",
        ("*.lab", "*.svc", "a", "::1", "10.0.0.0/8", "fd00::/8"),
    ),
    (
        "proxy.allow_own",
        "['10.0.0.5:5000', 'Registry.lab:5000', '[fd00:0::5]:443', '10.0.0.5', 'fd00::5', 'a']",
        ("10.0.0.5:5000", "registry.lab:5000", "[fd00::5]:443", "10.0.0.5", "fd00::5", "a"),
    ),
    ("proxy.client_cert_hosts", "['*']", ("*",)),
    ("certs.p12_pass", "''", ""),
    ("misc.log_level", "'WARN'", "warn"),
]


@pytest.mark.parametrize(("key", "value", "meaning"), GOOD)
def test_a_value_means_what_it_says(tmp_path: Path, key: str, value: str, meaning: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load(tmp_path, f"[{section}]\n{name} = {value}\n"), section), name) == meaning


BAD: Dict[str, List[str]] = {
    "misc.log_level": ["'loud'", "1", "[]"],
    "misc.cert_dir": ["''", "5", '"a\\u0000b"', "'~nobody-at-all/x'"],
    "misc.file_dir": ["''", "[]"],
    "proxy.tcp_bind": [
        "'8000'",
        "8000",
        "'a:b'",
        "'127.0.0.1'",
        "'::1:8000'",
        "'[x]:1'",
        "'a:65536'",
        "'a b:1'",
        "'a..b:1'",
    ],
    "proxy.tls_bind": ["'127.0.0.1:'", "true", f"'{'a' * 64}:1'"],
    "proxy.filters": [
        "'a'",
        "['(']",
        "[5]",
        "['(?P<sha255>a)']",
        "['(?P<sha256>a)(?P<md5>b)']",
        "['a{99999999999}']",
        "['^/(?:[a-z]+)+!']",
    ],
    "proxy.idle_timeout": [
        "'soon'",
        "0",
        "-1",
        "true",
        "'5 weeks'",
        "'1e9'",
        "[]",
        "'31d'",
        "'0.0001s'",
        f"0x{'f' * 5000}",
    ],
    "proxy.connect_timeout": ["''", "'0s'", "[]"],
    "proxy.upstream_timeout": ["''", "'0s'"],
    "proxy.relay_timeout": ["''", "'0s'", "-1"],
    "proxy.client_cert_hosts": ["'*'", "['']", "['https://a']", "['a:443']", "['10.0.0.1/8']", "[5]"],
    "proxy.upstream_ca": ["'nowhere.pem'", "5", "'.'"],
    "proxy.upstream_insecure": ["'a'", "['https://a']", "['a/b']", "[5]", "['']"],
    "proxy.upstream_proxy": [
        "'proxy:3128'",
        "'ftp://a:1'",
        "'http://a'",
        "'http://a:b@'",
        "'http://u@a:1'",
        "5",
        "'http://a..b:80'",
    ],
    "proxy.no_upstream_proxy": ["['*']", "'a'", "['.']", "['10.0.0.1/8']", "['a:80']", "['fe80::1%eth0']", "['*.*.a']"],
    "proxy.allow_clients": ["'::1'", "['10.0.0.1/8']", "['a']", "[5]"],
    "proxy.allow_own": [
        "'a:1'",
        "['']",
        "['a:']",
        "['a:0']",
        "['a:65536']",
        "['*.a:1']",
        "['10.0.0.0/8']",
        "['http://a']",
    ],
    "proxy.auth_file": ["'nowhere'", "5", "'.'"],
    "proxy.require_client_cert": ["1", "'no'"],
    "proxy.ktls": ["1", "'yes'"],
    "proxy.workers": ["-1", "'all'", "65"],
    "proxy.max_silent_per_client": ["-1", "'many'", "true"],
    "proxy.max_connections": ["0", "'many'", "1.5"],
    "cache.max_size": [
        "'much'",
        "-1",
        "true",
        "'5X'",
        "[]",
        f"'{'9' * 400}'",
        "9223372036854775808",
        "'8388608T'",
        "'5\u212a'",
    ],
    "cache.min_free": ["'-1G'", "1.5"],
    "cache.fresh_for": ["-1", "'x'", "'31d'", "'0.0001s'"],
    "cache.heuristic_max": ["-1", "'x'", "true"],
    "cache.recheck": ["-1", "'x'", "'31d'"],
    "cache.retry_window": ["-1", "'x'", "true"],
    "cache.volatile": ["'a'", "['(']", "[5]"],
    "cache.metadata": [
        *("'a'", "['^/a']", "[['^/a']]", "[['(', '0s']]", "[['^/a', -1]]"),
        *("[['^/(?P<x>a)', '0s']]", "[[5, 5]]", "{ a = 'x' }"),
    ],
    "cache.negative": ["-1", "true", "'x'"],
    "cache.tag_check": ["-1", "'x'", "true"],
    "cache.ratelimit_floor": ["-1", "'x'", "true", "1.5"],
    "cache.ask_anonymously": ["'yes'", "1"],
    "cache.stale_if_error": ["'yes'", "1"],
    "cache.obey_no_store": ["0"],
    "cache.auth_grace": ["-1", "false", "'x'"],
    "cache.ignore_query": ["'a'", "['']", "['a=b']", "['*a']", "[1]"],
    "cache.harmless_fields": [
        *("'x-a'", "['']", "['*']", "['x y']", "['x:']", "['*-id']", "[1]"),
        *("['Authorization']", "['cookie']", "['proxy_authorization']", "['auth*']", "['Proxy-*']", "['c*']"),
    ],
    "certs.rsa_key_bits": ["1024", "9000", "'3072'", "3072.0", "true"],
    "certs.days_from_now": ["0", "100000", "'1d'"],
    "certs.ca_cn": ["''", f"'{'x' * 65}'", f"'{'ü' * 33}'", "5"],
    "certs.server_cn": ["''", f"'{'ü' * 33}'"],
    "certs.server_dns_sans": [
        *("['a.*.b']", "['a.*']", "['*.*.b.c']", "['a.*.*.b.c']", "['a.*x.b.c']"),
        *("['*']", "['a..b']", "'a'", "['a:443']", "['-a']", "['a', 5]"),
    ],
    "certs.server_ip_sans": ["['fe80::1%eth0']", "['a']", "['10.0.0.0/8']", "['1.2.3']"],
    "certs.client_cn": ["''", "[]"],
    "certs.p12_pass": ["5"],
    "certs.name_constraints": ["1", "'yes'"],
    "certs.leaf_days": ["0", "826", "1.5"],
}


def test_every_key_has_its_bad_values() -> None:
    assert sorted(BAD) == sorted(KEYS)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_value_is_named_with_what_is_expected(tmp_path: Path, key: str, value: str) -> None:
    section, name = key.split(".")
    line = complaint(tmp_path, f"[{section}]\n{name} = {value}\n")
    assert line.startswith(f"{key} = ") and ": expected " in line
