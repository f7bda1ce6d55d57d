"""`[[credentials]]` in a configuration: what is read, refused, warned of and printed."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
from support.config_files import RULE_KEYS, complaint, load
from support.effort import LONG

from server import config
from server.config import ConfigError
from server.config_checks import warnings
from server.wiring import secret_source
from upstream.secret_sources import Helper, SecretFile

LISTED = "[certs]\nserver_dns_sans = ['registry.lab', '*.docker.io']\n"


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    return str(path)


def rule(*lines: str, hosts: str = "['registry.lab']") -> str:
    return "\n".join((LISTED, "[[credentials]]", f"hosts = {hosts}", *lines, ""))


def with_password(secret: str, *lines: str, hosts: str = "['registry.lab']") -> str:
    return rule("username = 'bot'", f"password_file = '{secret}'", *lines, hosts=hosts)


def test_a_rule_is_read_and_printed_back(tmp_path: Path, secret: str) -> None:
    hosts = "['Registry.LAB', '*.docker.io', 'registry.lab:5000', '10.0.0.1', '[::1]:443']"
    text = with_password(secret, "clients = ['10.0.0.0/8']", "realms = ['auth.lab']", hosts=hosts)
    loaded = load(tmp_path, text + with_password(secret).partition(LISTED)[2])
    one, other = loaded.credentials
    assert one.hosts == ("registry.lab", "*.docker.io", "registry.lab:5000", "10.0.0.1", "[::1]:443")
    assert (one.clients, one.realms, one.users, one.username) == (("10.0.0.0/8",), ("auth.lab",), (), "bot")
    assert other.hosts == ("registry.lab",) and not other.allow_http
    assert "hunter2" not in config.describe(loaded)
    assert load(tmp_path, config.describe(loaded)).credentials == loaded.credentials


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("[[credentials]]\n", "credentials[1]: expected hosts"),
        ("[[credentials]]\nhosts = ['a']\n", "credentials[1]: expected one of: username and password_file, helper, t"),
        ("[[credentials]]\nhosts = ['a']\nhelper = 'x'\ntoken_file = 'secret'\n", "expected one of: "),
        ("[[credentials]]\nhosts = ['a']\npassword_file = 'secret'\n", "expected username and password_file together"),
        ("[[credentials]]\nhosts = ['a']\nhelper = 'x'\nusername = 'u'\n", "expected username and password_file toge"),
        ("[[credentials]]\nhosts = ['a']\nhelper = 'x'\nusers = ['u']\n", "expected no users, because proxy.auth_file"),
        ("[[credentials]]\nhost = ['a']\n", "unknown key credentials[1].host; did you mean hosts?"),
        ("[[credentials]]\n[[credentials]]\npassword = 'hunter2'\n", "unknown key credentials[2].password; did you"),
        ("[credentials]\nhosts = ['a']\n", "expected tables, each below a line [[credentials]]"),
        ("credentials = ['a']\n", "expected tables, each below a line [[credentials]]"),
        ("[[credential]]\n", "unknown section or key 'credential'; did you mean credentials?"),
    ],
)
def test_a_rule_that_cannot_be_used_is_one_line(tmp_path: Path, secret: str, lines: str, expected: str) -> None:
    line = complaint(tmp_path, lines)
    assert expected in line and "hunter2" not in line


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("hosts", ["'a'", "['https://a']", "['a:0']", "['a:70000']", "['*']", "['a/b']", "[5]"]),
        ("realms", ["['a:']", "['u@a']"]),
        ("users", ["'alice'", "[5]"]),
        ("clients", ["['lab']", "['10.0.0.1/8']"]),
        ("username", ["5", "'a:b'"]),
        ("password_file", ["5", "'none'", "'.'"]),
        ("helper", ["'../x'", "'a b'", "'-x'", "5"]),
        ("token_file", ["'none'"]),
        ("allow_http", ["1", "'yes'"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(tmp_path: Path, key: str, values: List[str]) -> None:
    assert f"credentials.{key}" in RULE_KEYS
    for value in values if LONG else values[:3]:
        line = complaint(tmp_path, f"[[credentials]]\n{key} = {value}\n")
        assert line.startswith(f"credentials[1].{key} = ") and ": expected " in line


def test_every_key_has_its_bad_values() -> None:
    marks = test_a_bad_value_is_named_with_what_is_expected.pytestmark  # type: ignore[attr-defined]
    assert [f"credentials.{key}" for key, _ in marks[0].args[1]] == RULE_KEYS


def test_a_secret_does_not_lie_where_files_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "files/https/a"
    place.mkdir(parents=True)
    (place / "secret").write_text("hunter2")
    text = f"[misc]\nfile_dir = '{tmp_path}/files'\n" + with_password(str(place / "secret"))
    assert "credentials[1].password_file" in complaint(tmp_path, text)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "hosts = ['other.lab']",
            "credentials[1]: never used for 'other.lab', which is not listed in certs.server_dns_",
        ),
        ("hosts = ['*.lab']", "credentials[1]: never used for '*.lab', which is not listed in certs.server_dns_sans"),
        ("hosts = ['docker.io:443']", "credentials[1]: never used for 'docker.io:443', which is not listed"),
    ],
)
def test_a_host_that_is_never_decrypted_gets_a_warning(tmp_path: Path, secret: str, more: str, expected: str) -> None:
    text = with_password(secret).replace("hosts = ['registry.lab']", more)
    (line,) = warnings(load(tmp_path, text))
    assert expected in line
    assert warnings(load(tmp_path, text + "allow_http = true\n")) == []


def test_a_good_rule_gets_no_warning(tmp_path: Path, secret: str) -> None:
    hosts = "['registry.lab:5000', 'registry-1.docker.io', '*.docker.io', '*.eu.docker.io']"
    assert warnings(load(tmp_path, with_password(secret, hosts=hosts))) == []


def test_an_unverified_host_gets_a_warning(tmp_path: Path, secret: str) -> None:
    text = "[proxy]\nupstream_insecure = ['registry.lab']\n" + with_password(secret)
    assert "which is in proxy.upstream_insecure" in "".join(warnings(load(tmp_path, text)))


def test_secrets_that_others_may_read_or_nobody_can_use_get_a_warning(tmp_path: Path, secret: str) -> None:
    Path(secret).chmod(0o644)
    assert f"every user of this machine may read {secret}" in "".join(warnings(load(tmp_path, with_password(secret))))
    for content in (b"", b"\n", b"hunter2\nand more", b"\xff", b"x" * 20_000):
        Path(secret).write_bytes(content)
        (line,) = warnings(load(tmp_path, with_password(secret)))
        assert line.startswith(f"credentials[1]: never used: {secret} ") and "hunter2" not in line


def test_a_helper_that_is_not_there_gets_a_warning(tmp_path: Path) -> None:
    (line,) = warnings(load(tmp_path, rule("helper = 'nobody-has-it'")))
    assert line == "credentials[1]: there is no program docker-credential-nobody-has-it in PATH"


def test_unknown_users_get_a_warning(tmp_path: Path, secret: str) -> None:
    (tmp_path / "users").write_text("# ours\nalice:$scrypt$…\n")
    text = "[proxy]\nauth_file = 'users'\n" + with_password(secret, "users = ['alice', 'bob']")
    assert [line for line in warnings(load(tmp_path, text)) if "credentials" in line] == [
        "credentials[1]: 'bob' is no user of proxy.auth_file"
    ]


@pytest.mark.parametrize(
    ("first", "second", "useless"),
    [
        ("", "", True),
        ("", "clients = ['10.0.0.1']", True),
        ("clients = ['10.0.0.1']", "clients = ['10.0.0.1']", True),
        ("clients = ['10.0.0.1']", "clients = ['10.0.0.2']", False),
        ("clients = ['10.0.0.1']", "", False),
        ("", "allow_http = true", False),
        ("allow_http = true", "", True),
    ],
)
def test_a_rule_behind_another_one_for_the_same_clients_gets_a_warning(
    tmp_path: Path, secret: str, first: str, second: str, useless: bool
) -> None:
    text = with_password(secret, first) + with_password(secret, second).partition(LISTED)[2]
    lines = warnings(load(tmp_path, text))
    expected = "credentials[2]: never used for 'registry.lab', because credentials[1] is for the same clients"
    assert lines == ([expected] if useless else [])


def test_each_kind_of_rule_has_its_source(tmp_path: Path, secret: str) -> None:
    for line, kind in (("helper = 'x'", Helper), (f"token_file = '{secret}'", SecretFile)):
        assert isinstance(secret_source(load(tmp_path, rule(line)).credentials[0]), kind)


def test_a_broken_file_shows_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[[credentials]]\npassword_file = 'hunter2\n")
    assert "hunter2" not in str(caught.value)
