"""The configuration, read and checked as a whole: errors name key, value and remedy.

Rules of this module:

* `config_keys.py` declares the keys. Here are the rules between keys, and what holds for all of them.
* An unknown key, a wrong type and a wrong value are errors, each one line long. No value is guessed.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from fetching.naming import MetadataRule
from server import config_values as read
from server.config_keys import KEYS, RULE_KEYS, RULES, SECTIONS, Certs, Config, CredentialRule, Key
from server.config_paths import misplaced
from server.config_values import Address
from tls.authority import constraint_for, may_be_named


class ConfigError(Exception):
    """The configuration is unusable; the message is one line: file, key, value and what is expected."""


# OpenSSL's NAME_CHECK_MAX: names of a certificate times constraints of its authority.
_MAX_COMPARISONS = 2**20
_MAX_CONSTRAINED_HOSTS = 1020


def defaults(home: Path) -> Config:
    """The built-in configuration, with directories in `home`. Raises ConfigError."""
    return _build({}, home, home, None)


def load(path: Path, home: Path) -> Config:
    """Read a configuration file. Raises ConfigError.

    Relative paths are relative to the file's directory; missing keys are as in `defaults(home)`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # editors on Windows write a byte order mark
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number too long, or a list too deep
        raise ConfigError(f"{path}: not TOML: {error}{_key_at(text, str(error))}") from error
    return _build(document, path.resolve().parent, home, path)


def _key_at(text: str, error: str) -> str:
    """The key in the line of a TOML error; its value may be a password and is not shown."""
    match = re.search(r"at line ([0-9]+)", error)
    lines = text.splitlines()
    if match is None or not 0 < int(match.group(1)) <= len(lines):
        return ""
    key = re.match(r"\s*([A-Za-z0-9_.-]+)\s*=", lines[int(match.group(1)) - 1])
    if key is None:
        return ""
    twice = "; is it there twice?" if "overwrite" in error or "twice" in error else ""
    return f", in the line of {read.short(key.group(1))}{twice}"


def _build(document: Mapping[str, Any], base: Path, home: Path, source: Optional[Path]) -> Config:
    where = f"{source}: " if source else ""
    for problem in _strangers(document):
        raise ConfigError(where + problem)
    values: Dict[str, Dict[str, Any]] = {section: {} for section in SECTIONS}
    for key in KEYS:
        table = document.get(key.section, {})
        values[key.section][key.name] = _value(key, str(key), table, base if key.name in table else home, where)
    sections: Dict[str, Any] = {section: kind(**values[section]) for section, kind in SECTIONS.items()}
    rules = [
        CredentialRule(
            **{key.name: _value(key, f"{_place(number)}.{key.name}", table, base, where) for key in RULE_KEYS}
        )
        for number, table in enumerate(document.get(RULES, ()), 1)
    ]
    config = Config(**sections, source=source, credentials=tuple(rules))
    for problem in _misfits(config, home):
        raise ConfigError(where + problem)
    return config


def _value(key: Key, shown: str, table: Mapping[str, Any], base: Path, where: str) -> Any:
    """The value of a key in its table, or its default. Raises ConfigError, with the key as it is `shown`."""
    value = table.get(key.name, key.declared.default)
    try:
        return key.declared.read(value, base)
    except read.Expected as error:
        raise ConfigError(f"{where}{shown} = {_shown(key, value)}: expected {read.short(str(error))}") from None


def _place(number: int) -> str:
    """How errors call one of several tables."""
    return f"{RULES}[{number}]"


def _strangers(document: Mapping[str, Any]) -> Iterator[str]:
    """Errors about entries that no key is declared for, one line each."""
    keys = [str(key) for key in KEYS]
    for section, content in document.items():
        homes = [key.section for key in KEYS if key.name == section]
        if section == RULES:
            yield from _strange_rules(content)
        elif homes and section not in SECTIONS:
            yield f"{section} stands outside of all sections: expected below [{homes[0]}]"
        elif section not in SECTIONS:
            known = [*SECTIONS, RULES, *(key.name for key in KEYS)]
            yield f"unknown section or key {read.brief(section)}{_nearest(section, known)}"
        elif not isinstance(content, dict):
            yield f"{section} = {read.brief(content)}: expected a section, written [{section}]"
        else:
            for name in content:
                if f"{section}.{name}" not in keys:
                    yield f"unknown key {read.short(f'{section}.{name}')}{_nearest(f'{section}.{name}', keys)}"


def _strange_rules(content: Any) -> Iterator[str]:
    if not isinstance(content, list) or not all(isinstance(table, dict) for table in content):
        yield f"{RULES} = {read.brief(content)}: expected tables, each below a line [[{RULES}]]"
        return
    names = [key.name for key in RULE_KEYS]
    for number, table in enumerate(content, 1):
        for name in table:
            if name not in names:
                yield f"unknown key {read.short(f'{_place(number)}.{name}')}{_nearest(name, names)}"


def _misfits(config: Config, home: Path) -> Iterator[str]:
    """Errors about keys in conflict, one line each."""
    files = {
        "proxy.auth_file": config.proxy.auth_file,
        "proxy.upstream_ca": config.proxy.upstream_ca,
        "this file": config.source,
    }
    for number, rule in enumerate(config.credentials, 1):
        files[f"{_place(number)}.password_file"] = rule.password_file
        files[f"{_place(number)}.token_file"] = rule.token_file
        yield from (f"{_place(number)}: expected {problem}" for problem in _misfits_of(rule, config))
    yield from misplaced(config.misc.cert_dir, config.misc.file_dir, home, files)
    if _collide(config.proxy.tcp_bind, config.proxy.tls_bind):
        yield (
            f"proxy.tcp_bind = '{config.proxy.tcp_bind}' and proxy.tls_bind = '{config.proxy.tls_bind}' are the same: "
            "expected two ports, or '' for one of them"
        )
    if config.proxy.tcp_bind is None and config.proxy.tls_bind is None:
        yield "proxy.tcp_bind and proxy.tls_bind are both '': expected at least one address"
    certs = config.certs
    listed = ("server_cn", "client_cn") if certs.name_constraints else ()
    alone = () if certs.server_dns_sans or certs.server_ip_sans else ("server_cn",)
    for name in (*listed, *alone):
        value = getattr(certs, name)
        try:
            read.host_or_ip(value, Path())
        except read.Expected:
            yield f"certs.{name} = {read.brief(value)}: expected a host name (certs.name_constraints, or no SANs)"
    if certs.name_constraints:
        yield from _too_many_constraints(certs)


def _misfits_of(rule: CredentialRule, config: Config) -> Iterator[str]:
    """What a rule for credentials lacks, or has too much."""
    if not rule.hosts:
        yield "hosts, such as ['registry.lab']"
    if rule.users and config.proxy.auth_file is None:
        yield "no users, because proxy.auth_file is ''"
    if sum(map(bool, (rule.password_file, rule.helper, rule.token_file))) != 1:
        yield "one of: username and password_file, helper, token_file"
    if bool(rule.username) != bool(rule.password_file):
        yield "username and password_file together"


def _collide(one: Optional[Address], other: Optional[Address]) -> bool:
    if one is None or other is None or one.port != other.port or not one.port:
        return False
    return one.host == other.host or "0.0.0.0" in (one.host, other.host)


def comparisons(certs: Certs) -> int:
    """How many pairs of name and constraint a client compares to verify server.crt, as configured."""
    hosts = (*certs.server_dns_sans, *certs.server_ip_sans)
    constraints = {constraint_for(host) for host in (*hosts, certs.server_cn, certs.client_cn)}
    names = [host for host in hosts if may_be_named(host)] or [certs.server_cn]
    return (len(names) + 1) * (len(constraints) + (0 if certs.server_ip_sans else 2))


def _too_many_constraints(certs: Certs) -> Iterator[str]:
    if comparisons(certs) > _MAX_COMPARISONS:
        count = len(certs.server_dns_sans) + len(certs.server_ip_sans)
        yield (
            f"certs.name_constraints = true with {count} hosts: expected at most about {_MAX_CONSTRAINED_HOSTS}; "
            f"OpenSSL compares {_MAX_COMPARISONS} pairs of name and constraint, and refuses server.crt beyond; "
            "list '*.' names instead, or set it to false"
        )


def _nearest(name: str, known: List[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(key: Key, value: Any) -> str:
    # A value with an @ may be a URL with a password.
    secret = key.declared.secret or (isinstance(value, str) and "@" in value)
    return "…" if secret else read.brief(value)


def describe(config: Config) -> str:
    """The effective configuration in TOML, without secrets, for `--check`."""
    lines = [f"# from {config.source or 'the built-in defaults'}"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key in KEYS:
            if key.section == section:
                lines.append(f"{key.name} = {_toml(key, key.of(config))}")
    for rule in config.credentials:
        lines += ["", f"[[{RULES}]]"]
        lines += [f"{key.name} = {_toml(key, getattr(rule, key.name))}" for key in RULE_KEYS]
    return "\n".join(lines)


def _toml(key: Key, value: Any) -> str:
    if key.declared.secret:
        return "'********'"
    if isinstance(value, MetadataRule):
        return f"[{_toml(key, value.pattern)}, {_toml(key, value.unasked)}]"
    if isinstance(value, tuple):
        items = "".join(f"\n  {_toml(key, item)}," for item in value)
        return f"[{items}\n]" if items else "[]"
    if isinstance(value, float):
        return f"'{int(value) if value.is_integer() else value!r}s'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if value is None:
        return "''"
    text = value.pattern if isinstance(value, re.Pattern) else str(value)
    return f"'{text}'" if "'" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
