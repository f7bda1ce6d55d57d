"""What a configuration is warned of; and that a good one is not."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
from support.running import filters

from server import config, config_checks
from server.config_values import FILTERS


def said(tmp_path: Path, text: str) -> List[str]:
    path = tmp_path / "some.toml"
    path.write_text(text)
    return config_checks.warnings(config.load(path, tmp_path / "home"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[proxy]\nfilters = []", "proxy.filters = []"),
        (r"[proxy]\nfilters = ['^https://a\.test/.*\.deb$']", "scheme or a host"),
        (r"[proxy]\nfilters = ['https?://.*']", "scheme or a host"),
        (r"[proxy]\nfilters = ['^a\.test/.*\.deb$']", "scheme or a host"),
        (r"[proxy]\nfilters = ['^//a\.test/']", "scheme or a host"),
        (r"[proxy]\nfilters = ['\.deb\?token=']", "query"),
        (r"[proxy]\nfilters = ['\.deb[?]v=[0-9]+$']", "query"),
        (r"[proxy]\nfilters = ['^pool/.*\.deb$']", "begins with one"),
        ("[cache]\nmax_size = 10", "cache.max_size = 10"),
        ("[cache]\nmax_size = '0'", "cache.max_size = 0"),
        ("[cache]\nmin_free = '900T'", "cache.min_free"),
        ("[cache]\nmin_free = ''\nmax_size = '900T'", "cache.max_size"),
        ("[proxy]\nallow_clients = []", "proxy.allow_clients"),
        ("[proxy]\nauth_file = 'users'", "proxy.auth_file"),
        ("[proxy]\nrequire_client_cert = true\ntls_bind = ''", "proxy.require_client_cert"),
        ("[misc]\nfile_dir = '$HOME/x'", "misc.file_dir"),
        ("[misc]\nfile_dir = '/x/${HOME}'", "misc.file_dir"),
        ("[misc]\ncert_dir = '%h/certs'", "misc.cert_dir"),
        ("[misc]\ncert_dir = '/x/~/certs'", "misc.cert_dir"),
        ("[proxy]\nupstream_insecure = ['0.0.0.0/0']", "proxy.upstream_insecure"),
        ("[proxy]\nupstream_insecure = ['*.com']", "proxy.upstream_insecure"),
        ("[cache]\nignore_query = ['*']", "cache.ignore_query"),
        (
            f"[certs]\nname_constraints = true\nserver_dns_sans = {[f'h{number}.test' for number in range(600)]}",
            "certs.name_constraints",
        ),
    ],
)
def test_a_configuration_that_cannot_work_gets_a_warning(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "users").write_text("# nobody\n\n")
    (line,) = said(tmp_path, text.replace(r"\n", "\n"))
    assert words in line and "\n" not in line


@pytest.mark.parametrize(
    "pattern",
    [
        r"\.deb$",
        r"^/pool/",
        r"^/.*\.deb(?:\?.*)?$",
        r"\.deb\??$",
        r"^[/]x",
        r"^.*\.deb$",
        r"^(?:/a|/b)",
        r"python3\.11/",
        r"(?:a|b)\?",
        *FILTERS,
    ],
)
def test_a_filter_that_can_match_gets_no_warning(tmp_path: Path, pattern: str) -> None:
    assert filters(pattern) and said(tmp_path, f"[proxy]\nfilters = ['{pattern}']\n[cache]\nmin_free = ''\n") == []


def test_the_defaults_give_no_warning(tmp_path: Path) -> None:
    assert said(tmp_path, "[cache]\nmin_free = '1M'\n") == []
