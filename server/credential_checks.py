"""Warnings about `[[credentials]]`: rules that can never be used, and secrets that others may read.

The functions create and change nothing. No line has any part of a secret.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Iterator, Tuple

from net.addresses import split_service
from proxy.routing import HostList, Hosts
from server.config_keys import RULES, Config, CredentialRule
from upstream.secret_sources import SecretError, SecretFile, program_of

_READABLE_BY_ALL = 0o004
_USER = re.compile(r"^([^:\s#]+):", re.MULTILINE)


def warnings_of_credentials(config: Config) -> Iterator[str]:
    """What works, but hardly as intended; one line each."""
    for number, rule in enumerate(config.credentials, 1):
        place = f"{RULES}[{number}]"
        yield from (f"{place}: {line}" for line in (*_hosts(rule, config), *_secret(rule), *_users(rule, config)))
        for earlier, other in enumerate(config.credentials[: number - 1], 1):
            same = [host for host in rule.hosts if host in other.hosts]
            if same and _covers(other, rule):
                yield f"{place}: never used for '{same[0]}', because {RULES}[{earlier}] is for the same clients"


def _hosts(rule: CredentialRule, config: Config) -> Iterator[str]:
    intercepted = Hosts([*config.certs.server_dns_sans, *config.certs.server_ip_sans])
    unverified = HostList(config.proxy.upstream_insecure)
    if rule.allow_http:
        return
    for entry in rule.hosts:
        host = split_service(entry)[0].replace("*.", "any.", 1)
        if host not in intercepted:
            yield f"never used for '{entry}', which is not listed in certs.server_dns_sans or certs.server_ip_sans"
        elif host in unverified:
            yield f"never used for '{entry}', which is in proxy.upstream_insecure (unless allow_http = true)"


def _secret(rule: CredentialRule) -> Iterator[str]:
    if rule.helper and shutil.which(program_of(rule.helper)) is None:
        yield f"there is no program {program_of(rule.helper)} in PATH"
    for path in (rule.password_file, rule.token_file):
        if path is None:
            continue
        try:
            SecretFile(path, rule.username or None).read()
            if os.stat(path).st_mode & _READABLE_BY_ALL:
                yield f"every user of this machine may read {path}"
        except (SecretError, OSError) as error:
            yield f"never used: {error}"


def _users(rule: CredentialRule, config: Config) -> Iterator[str]:
    if not rule.users or config.proxy.auth_file is None:
        return
    try:
        known = set(_USER.findall(config.proxy.auth_file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError):
        return  # `rehearse` reports it
    for user in rule.users:
        if user not in known:
            yield f"'{user}' is no user of proxy.auth_file"


def _covers(one: CredentialRule, other: CredentialRule) -> bool:
    """Whether the first rule is for all clients of the second one, wherever that is used."""
    if other.allow_http and not one.allow_http:
        return False
    return _holds(one.users, other.users) and _holds(one.clients, other.clients)


def _holds(all_of: Tuple[str, ...], those: Tuple[str, ...]) -> bool:
    return not all_of or (bool(those) and set(those) <= set(all_of))
