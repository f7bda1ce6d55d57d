"""The configuration: the seed's file, the defaults, and one line for everything that is wrong."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator

import pytest
from support import readme_table
from support.config_files import KEYS, RULE_KEYS, complaint, load

from server import config, config_keys
from server.config import ConfigError

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


@pytest.mark.parametrize("key", [*KEYS, *RULE_KEYS])
def test_the_file_in_the_repository_explains_every_key(key: str) -> None:
    section, name = key.split(".")
    text = (ROOT / "dduct.toml").read_text(encoding="utf-8").replace("# [[credentials]]", "[credentials]")
    block = text.partition(f"[{section}]\n")[2].partition("\n[")[0]
    match = re.search(rf"^(?:# )?{name} = ", block, re.MULTILINE)
    assert match is not None
    before = block[: match.start()].rstrip("\n").rpartition("\n")[2]
    assert before.startswith("# ")


def test_the_file_in_the_repository_has_the_declared_keys_in_their_order() -> None:
    found, section = [], ""
    for line in (ROOT / "dduct.toml").read_text(encoding="utf-8").splitlines():
        heading, name = re.fullmatch(r"(?:# \[)?\[(\w+)\]+", line), re.match(r"(?:# )?(\w+) = ", line)
        section = heading[1] if heading is not None else section
        found += [f"{section}.{name[1]}"] if name is not None else []
    assert found == [*KEYS, *RULE_KEYS]


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
        (directory / "plain.toml").write_text("[proxy]\n")
        config.load(directory / "plain.toml", directory)  # imports what it needs, which may lie in a home
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


def test_a_pattern_with_a_star_inside_counts_as_one_constraint_and_no_name(tmp_path: Path) -> None:
    certs = load(tmp_path, "[certs]\nserver_dns_sans = ['a.test', '*.a.*.b.test', '*.c.*.b.test']\n").certs
    less = load(tmp_path, "[certs]\nserver_dns_sans = ['a.test', 'b.test']\n").certs
    # The names are a.test and an address; the constraints a.test, b.test, dduct's two names and the address.
    assert config.comparisons(certs) == (2 + 1) * 5 and config.comparisons(less) == (3 + 1) * 5
