"""The configuration: the seed's file, the defaults, and one line for everything that is wrong."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from support import readme_table
from support.effort import LONG

from server import config, config_keys
from server.config import ConfigError
from server.config_values import Address
from upstream.dialling import Parent

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SEED = r"""
[misc]
log_level = 'info'
cert_dir  = '/var/tmp/dduct/certs/'
file_dir  = '/var/tmp/dduct/files/'

[proxy]
tcp_bind = '127.0.0.1:8000'
tls_bind = '0.0.0.0:4430'
filters  = [
  '^/v2/.*/blobs/sha256:\w+$',
  '^/.*\.(?:apk|deb|rpm)$',
  '^/.*\.(?:tar|tbz|tgz|txz)$',
  '^/.*\.(?:7z|bz2|gz|xz|zip|zst)$',
]

[certs]
rsa_key_bits    = 3072
days_from_now   = 3072
ca_cn           = 'dduct'
server_cn       = '*.dduct.rs'
server_dns_sans = ['*.dduct.rs', '*.docker.io', '*.gcr.io', '*.githubusercontent.com', '*.k8s.io', '*.quay.io', 'ghcr.io', 'quay.io']
server_ip_sans  = ['127.0.0.1']
client_cn       = 'client.dduct.rs'
p12_pass        = 'dduct'
"""  # noqa: E501
KEYS = [str(key) for key in config_keys.KEYS]


def load(tmp_path: Path, text: str) -> config_keys.Config:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, tmp_path / "home")


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000 and str(tmp_path / "some.toml") in line
    return line.partition("some.toml: ")[2]


# --- what is right ----------------------------------------------------------------------------------


def test_the_original_configuration_works_unchanged(tmp_path: Path) -> None:
    loaded, defaults = load(tmp_path, SEED), config.defaults(tmp_path)
    assert loaded.misc.cert_dir == Path("/var/tmp/dduct/certs")
    assert loaded.misc.file_dir == Path("/var/tmp/dduct/files")
    assert loaded.proxy.filters[0].pattern == r"^/v2/.*/blobs/sha256:\w+$"
    assert len(loaded.proxy.filters) == 4
    assert set(loaded.certs.server_dns_sans) < set(defaults.certs.server_dns_sans)
    assert replace(loaded.certs, server_dns_sans=defaults.certs.server_dns_sans) == defaults.certs
    assert replace(loaded.proxy, filters=()) == replace(defaults.proxy, filters=())
    assert loaded.cache == defaults.cache


def test_the_file_in_the_repository_states_the_defaults() -> None:
    loaded, defaults = config.load(ROOT / "dduct.toml", ROOT), config.defaults(ROOT)
    assert loaded == replace(defaults, source=loaded.source)


@pytest.mark.parametrize("key", KEYS)
def test_the_file_in_the_repository_explains_every_key(key: str) -> None:
    section, name = key.split(".")
    text = (ROOT / "dduct.toml").read_text(encoding="utf-8")
    block = text.partition(f"[{section}]\n")[2].partition("\n[")[0]
    match = re.search(rf"^(?:# )?{name} = ", block, re.MULTILINE)
    assert match is not None
    before = block[: match.start()].rstrip("\n").rpartition("\n")[2]
    assert before.startswith("# ")


def test_the_file_in_the_repository_has_the_declared_keys_in_their_order() -> None:
    found, section = [], ""
    for line in (ROOT / "dduct.toml").read_text(encoding="utf-8").splitlines():
        heading, name = re.fullmatch(r"\[(\w+)\]", line), re.match(r"(?:# )?(\w+) = ", line)
        section = heading[1] if heading is not None else section
        found += [f"{section}.{name[1]}"] if name is not None else []
    assert found == KEYS


def test_the_readme_has_the_declared_keys() -> None:
    """`make readme` makes it so."""
    assert readme_table.written(README) == readme_table.table()


def test_the_readme_names_the_keys_that_need_a_restart() -> None:
    (sentence,) = re.findall(r"((?:`\w+`[, and\n]+)+)\s*need a restart", README)
    assert set(re.findall(r"`(\w+)`", sentence)) == {key.name for key in config_keys.KEYS if key.declared.restart}


def test_a_reload_keeps_the_keys_that_need_a_restart_and_names_them(tmp_path: Path) -> None:
    running = load(tmp_path, "[proxy]\nworkers = 3\nktls = true\n")
    wanted = load(tmp_path, "[misc]\ncert_dir = 'other'\n[proxy]\nworkers = 2\nktls = false\n")
    used, waiting = config_keys.until_restart(wanted, running)
    assert list(map(str, waiting)) == ["misc.cert_dir", "proxy.workers"]
    assert (used.misc.cert_dir, used.proxy.workers, used.proxy.ktls) == (running.misc.cert_dir, 3, False)
    assert config_keys.until_restart(running, running) == (running, [])


def test_default_directories_lie_beside_the_program(tmp_path: Path) -> None:
    defaults = config.defaults(tmp_path)
    assert (defaults.misc.cert_dir, defaults.misc.file_dir) == (tmp_path / "certs", tmp_path / "files")
    assert load(tmp_path, "").misc.cert_dir == tmp_path / "home/certs"


def test_relative_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    loaded = load(tmp_path, "[misc]\ncert_dir = 'mine'\n[proxy]\nupstream_ca = 'ca.pem'\n")
    assert loaded.misc.cert_dir == tmp_path / "mine"
    assert loaded.proxy.upstream_ca == tmp_path / "ca.pem"


def test_a_printed_configuration_can_be_loaded_again(tmp_path: Path) -> None:
    text = "[proxy]\ntcp_bind = '[::1]:80'\ntls_bind = ''\nidle_timeout = '5m'\n[cache]\nauth_grace = 0\n"
    first = load(tmp_path, text + "[certs]\np12_pass = '********'\nca_cn = \"it's\"\n")
    again = load(tmp_path, config.describe(first))
    assert again == first


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    text = "[proxy]\nupstream_proxy = 'http://me:hush@proxy:3128'\n[certs]\np12_pass = 'hush'\n"
    assert "hush" not in config.describe(load(tmp_path, text))


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


# --- what is wrong ----------------------------------------------------------------------------------

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


# What no key expects, and what some may take: written as TOML.
ODD = [
    *("0", "-1", "true", "1.5", "nan", "inf", "-inf", "1e400", "1e-320", "9223372036854775807", "9223372036854775808"),
    *("9" * 400, "0x" + "f" * 5000, "[]", "{}", "{a = 1}", "[[]]", "[{}]", "1979-05-27", "07:32:00"),
    *("''", "'.'", "'/'", "'~root'", "'~nobody-at-all'", '"a\\u0000b"', '"\\n"', '"\\uFFFF"', "'é'", f"'{'x' * 300}'"),
    *(f"'/{'x/' * 3000}'", f"'{'9' * 400}'", f"'{'9' * 400}T'", "'8388608T'", "'8388607T'", "'5\u212a'", "'5\u0663'"),
    *("'\u0663s'", f"'0.{'0' * 400}1s'", "'0.0000001s'", "'0.1s'", "'30d'", "'1234567s'"),
    *("'a..b:1'", "'.a:1'", f"'{'a' * 64}:1'", f"'{'ü' * 70}:1'", "'ü:1'", "'*:1'", "'[::1%25eth0]:1'", "'a:\u0663'"),
    *("'http://a..b:80'", f"'http://{'a' * 64}:80'", "'http://ü:80'", "'http://%00:%0a@a:80'", "'http://a:99999'"),
    *(f"['{opening * 3000}{closing * 3000}']" for opening, closing in (("(", ")"), ("(?:", ")"))),
    *("['a{99999999999}']", f"['(?({'9' * 5000})a)']", "['(?au)']", "['(?L)']", "['(?<=a*)']", f"['{'(' * 500}']"),
    *(f"['(?P<sha256_{'9' * 300}>a)']", "['(?P<1>a)']", f"['{'a?' * 5000}']", f"['{'a.' * 126}']", f"['{'1' * 5000}']"),
    *("['fe80::1%eth0']", "['fe80::%eth0/64']", f"['10.0.0.0/{'9' * 5000}']", "['0/0']", "['*.']", "['.']", "['ü']"),
]


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_key_is_printed_back_or_a_one_line_error(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    # A short run tries each value with an eighth of the keys.
    for value in ODD if LONG else ODD[KEYS.index(key) % 8 :: 8]:
        try:
            loaded = load(tmp_path, f"[{section}]\n{name} = {value}\n")
        except ConfigError as error:
            line = str(error).partition("some.toml: ")[2]
            assert key in line and "\n" not in line and len(line) < 1000, value[:80]
            continue
        if key != "certs.p12_pass" and "@" not in value:  # those are not printed
            again = load(tmp_path, config.describe(loaded))
            assert getattr(getattr(again, section), name) == getattr(getattr(loaded, section), name), value[:80]


def test_a_secret_is_not_shown_even_where_it_is_wrong(tmp_path: Path) -> None:
    assert "hush" not in complaint(tmp_path, "[proxy]\nupstream_proxy = 'gopher://me:hush@proxy:70'\n")


def test_a_list_says_which_item_is_wrong(tmp_path: Path) -> None:
    line = complaint(tmp_path, "[certs]\nserver_dns_sans = ['a', 'https://b']\n")
    assert "item 2" in line and "https://b" in line


NO_SANS = "server_dns_sans = []\nserver_ip_sans = []\n"


@pytest.mark.parametrize(
    ("certs", "key"),
    [
        ("name_constraints = true\nclient_cn = 'Jürgen'\n", "client_cn"),
        ("name_constraints = true\nserver_cn = '*.'\n", "server_cn"),
        (f"{NO_SANS}server_cn = 'Büro'\n", "server_cn"),
    ],
)
def test_a_common_name_used_as_host_name_must_be_valid(tmp_path: Path, certs: str, key: str) -> None:
    assert complaint(tmp_path, f"[certs]\n{certs}").startswith(f"certs.{key} = ")


@pytest.mark.parametrize(
    "certs",
    [
        f"ca_cn = '{'ü' * 32}'\nserver_cn = 'Büro'\nclient_cn = 'Jürgen'\n",
        "name_constraints = true\nclient_cn = '10.0.0.1'\n",
        f"{NO_SANS}client_cn = 'Jürgen'\n",
    ],
)
def test_other_common_names_are_not_restricted(tmp_path: Path, certs: str) -> None:
    load(tmp_path, f"[certs]\n{certs}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[proxy]\ntcp_bid = ''\n", "unknown key proxy.tcp_bid; did you mean proxy.tcp_bind?"),
        ("[certs]\nserver_dns_san = []\n", "did you mean certs.server_dns_sans?"),
        ("[proxi]\n", "did you mean proxy?"),
        ("tcp_bind = ''\n", "tcp_bind stands outside of all sections: expected below [proxy]"),
        ("[zzz]\n", "unknown section or key 'zzz'"),
        ("misc = 5\n", "misc = 5: expected a section"),
        ("[proxy]\ntcp_bind = ''\ntls_bind = ''\n", "expected at least one address"),
        ("[misc\n", "not TOML"),
        ("[misc]\nlog_level = 'info'\nlog_level = 'info'\n", "not TOML"),
        ('[misc]\n"a\\nb" = 1\n', r"unknown key 'misc.a\nb'"),
        (f"[misc]\n{'a' * 9999} = 1\n", "unknown key misc.aaa"),
        (f"[{'a' * 9999}]\n", "unknown section or key 'aaa"),
        (f"misc = '{'a' * 9999}'\n", "misc = 'aaa"),
        (f"misc = 0x{'f' * 5000}\n", ": expected a section, written [misc]"),
        (f"x = {'[' * 3000}", "not TOML"),
    ],
)
def test_an_unknown_key_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(tmp_path, text)


@contextmanager
def as_nobody() -> Iterator[None]:
    """As a user without root's permissions."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("key", ["upstream_ca", "auth_file"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("secret/ca.pem", "Permission denied: "),
        ("closed.pem", "Permission denied: "),
        ("x" * 300, "File name too long"),
        ("open.pem/x", "Not a directory: "),
        ("loop", "Too many levels of symbolic links: "),
        ("pipe", "there is none at"),
    ],
)
def test_an_unreadable_file_named_by_a_key_is_one_line(key: str, path: str, said: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are for their owner alone
        directory = Path(name)
        (directory / "secret").mkdir()
        for file in ("secret/ca.pem", "closed.pem", "open.pem"):
            (directory / file).touch()
        os.symlink("loop", directory / "loop")
        os.mkfifo(directory / "pipe")
        (directory / "some.toml").write_text(f"[proxy]\n{key} = '{path}'\n")
        for file, mode in (("", 0o755), ("secret", 0), ("closed.pem", 0)):
            (directory / file).chmod(mode)
        config.defaults(directory)  # imports what it needs, which may lie in a home
        with as_nobody(), pytest.raises(ConfigError) as caught:
            config.load(directory / "some.toml", directory)
        (directory / "secret").chmod(0o700)
    line = str(caught.value)
    assert f"proxy.{key} = " in line and said in line and "\n" not in line


def test_an_unreadable_configuration_file_is_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=said):
            config.load(path, tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load(binary, tmp_path)


# --- places -----------------------------------------------------------------------------------------


def places(cert_dir: object, file_dir: object) -> str:
    return f"[misc]\ncert_dir = '{cert_dir}'\nfile_dir = '{file_dir}'\n"


@pytest.mark.parametrize(
    ("cert_dir", "file_dir", "relation"),
    [
        ("data", "data", "the same as"),
        ("data/", "data", "the same as"),
        ("data/certs", "data", "inside"),
        ("data/a/b/c", "data/", "inside"),
        ("data/../data/certs", "./data", "inside"),
        ("certs/../data", "other/../data", "the same as"),
        ("data", "data/files", "around"),
        (".", "files", "around"),
        ("link/certs", "data", "inside"),
        ("link", "data", "the same as"),
        ("data/certs", "link", "inside"),
        ("dangling/certs", "not-yet", "inside"),
    ],
)
def test_keys_never_lie_where_files_are_removed(tmp_path: Path, cert_dir: str, file_dir: str, relation: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "dangling").symlink_to(tmp_path / "not-yet")
    line = complaint(tmp_path, places(cert_dir, file_dir))
    assert line.startswith("misc.cert_dir = '") and f"is {relation} misc.file_dir = '" in line
    assert "neither of them inside the other" in line


@pytest.mark.parametrize(
    ("cert_dir", "file_dir"),
    [("data", "data2"), ("data/certs", "data/files"), ("a/data", "data"), ("data/../certs", "data")],
)
def test_directories_beside_each_other_are_accepted(tmp_path: Path, cert_dir: str, file_dir: str) -> None:
    load(tmp_path, places(cert_dir, file_dir))


def test_another_path_of_the_same_directory_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second mount of it: no link tells, but device and inode do."""
    (tmp_path / "data").mkdir()
    (tmp_path / "mounted").mkdir()
    real = os.path.samefile

    def samefile(one: Any, other: Any) -> bool:
        return real(*(str(path).replace("/mounted", "/data") for path in (one, other)))

    monkeypatch.setattr("os.path.samefile", samefile)
    assert "is inside misc.file_dir" in complaint(tmp_path, places("mounted/certs", "data"))


@pytest.mark.parametrize("key", ["cert_dir", "file_dir"])
@pytest.mark.parametrize("place", ["/", "/tmp/..", "/etc/", "/home", "/var", "/usr"])
def test_system_directories_are_refused(tmp_path: Path, key: str, place: str) -> None:
    text = places(place, tmp_path / "x") if key == "cert_dir" else places(tmp_path / "x", place)
    assert re.match(rf"misc\.{key} = '.*': expected a directory of dduct's own, such as '/", complaint(tmp_path, text))


def test_a_cache_in_the_program_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    line = complaint(tmp_path, places("certs", "home"))
    assert "misc.file_dir" in line and "where the program is" in line


@pytest.mark.parametrize("folder", ["http", "https", "sha256"])
@pytest.mark.parametrize("key", ["auth_file", "upstream_ca"])
def test_files_named_by_keys_must_not_lie_in_file_dir(tmp_path: Path, key: str, folder: str) -> None:
    (tmp_path / "files" / folder).mkdir(parents=True)
    (tmp_path / "files" / folder / "mine").touch()
    line = complaint(tmp_path, places("certs", "files") + f"[proxy]\n{key} = 'files/{folder}/mine'\n")
    assert line.startswith(f"proxy.{key} = '") and "misc.file_dir" in line and f"'{folder}'" in line


def test_the_configuration_file_must_not_lie_in_file_dir(tmp_path: Path) -> None:
    inside = tmp_path / "data/http"
    inside.mkdir(parents=True)
    assert "this file ('" in complaint(inside, places(tmp_path / "certs", tmp_path / "data"))


def test_a_pattern_with_a_star_inside_counts_as_one_constraint_and_no_name(tmp_path: Path) -> None:
    certs = load(tmp_path, "[certs]\nserver_dns_sans = ['a.test', '*.a.*.b.test', '*.c.*.b.test']\n").certs
    less = load(tmp_path, "[certs]\nserver_dns_sans = ['a.test', 'b.test']\n").certs
    # The names are a.test and an address; the constraints a.test, b.test, dduct's two names and the address.
    assert config.comparisons(certs) == (2 + 1) * 5 and config.comparisons(less) == (3 + 1) * 5


@pytest.mark.parametrize(("count", "accepted"), [(1021, True), (1022, False)])
def test_more_constrained_hosts_than_openssl_verifies_are_refused(tmp_path: Path, count: int, accepted: bool) -> None:
    hosts = [f"h{number}.test" for number in range(count)]
    text = f"[certs]\nname_constraints = true\nserver_dns_sans = {hosts}\n"
    if accepted:
        load(tmp_path, text)
        return
    line = complaint(tmp_path, text)
    assert line.startswith(f"certs.name_constraints = true with {count + 1} hosts: expected at most ")
    load(tmp_path, text.replace("true", "false"))


# --- what was probably meant ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[proxy]\ntcp_bind = 8000\n", "127.0.0.1:8000"),
        ("[proxy]\nfilters = ['x']\nfilters = ['x']\n", "in the line of filters; is it there twice?"),
        ("[certs]\np12_pass = 'hush\nca_cn = 'x'\n", "in the line of p12_pass"),
        ("[cache]\nmax_size = '10%'\n", "no share of the disk (%)"),
        ("[cache]\nfresh_for = '1w'\n", "units are s, m, h, d"),
        ("[certs]\nserver_dns_sans = ['bücher.de']\n", "'xn--bcher-kva.de'"),
        ("[certs]\nserver_dns_sans = ['*']\n", "all hosts at once cannot be listed"),
        ("[certs]\nserver_dns_sans = ['a.*.com']\n", "everything before a name, or for one label of it"),
        ("[certs]\nserver_dns_sans = ['https://a.test/x']\n", "did you mean 'a.test'?"),
        ("[certs]\nserver_dns_sans = ['a.test:443']\n", "did you mean 'a.test'?"),
        ("[proxy]\ntcp_bind = '127.0.0.1:80'\ntls_bind = '127.0.0.1:80'\n", "are the same"),
        ("[proxy]\ntcp_bind = '127.0.0.1:80'\ntls_bind = '0.0.0.0:80'\n", "are the same"),
    ],
)
def test_an_error_suggests_what_was_probably_meant(tmp_path: Path, text: str, said: str) -> None:
    line = complaint(tmp_path, text)
    assert said in line and "hush" not in line


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff[certs]\nca_cn = 'marked'\n").certs.ca_cn == "marked"
