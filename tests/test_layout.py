"""The house keeps its shape: imports go down the table, rooms stay small, nothing hides errors."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom; ARCHITECTURE.md says the same in words.
ROOMS: Dict[str, Set[str]] = {
    "client_watch": set(),
    "details": set(),
    "patterns": set(),
    "moving_names": set(),
    "config_paths": {"ownfiles"},
    "remembering": set(),
    "headers": {"remembering"},
    "request_fields": {"headers"},
    "config_values": {"moving_names", "patterns", "request_fields"},
    "config": {"config_values", "config_paths", "moving_names"},
    "http1": {"headers"},
    "values": {"remembering"},
    "openssl": set(),
    "authority": set(),
    "certs": {"authority", "openssl"},
    "leaves": {"authority", "notices", "openssl"},
    "addresses": set(),
    "password_queue": set(),
    "access": {"addresses", "password_queue"},
    "notices": set(),
    "locks": set(),
    "redaction": set(),
    "ownfiles": set(),
    "locations": {"ownfiles"},
    "room": set(),
    "record": {"details"},
    "store": {"details", "record", "room", "locations", "redaction", "locks", "notices", "ownfiles"},
    "hashing": {"store"},
    "window": set(),
    "asking": {"details"},
    "pacing": {"client_watch"},
    "fill": {
        "client_watch",
        "asking",
        "pacing",
        "room",
        "window",
        "redaction",
        "locks",
        "ownfiles",
        "store",
        "hashing",
    },
    "follow": {"client_watch", "pacing", "locks", "ownfiles", "store", "fill"},
    "cache": {"details", "disk_watch", "room", "store", "fill", "follow"},
    "verify": {"redaction", "locks", "ownfiles", "store", "fill"},
    "disk_watch": {"notices", "store"},
    "hot": {"disk_watch", "store"},
    "evict": {"room", "notices", "redaction", "locks", "ownfiles", "store"},
    "nested": set(),
    "stream": {"client_watch", "http1", "nested"},
    "body": {"http1", "stream"},
    "policy": {"addresses", "patterns", "redaction", "http1"},
    "media_types": set(),
    "freshness": {"details", "remembering", "http1", "values", "media_types", "request_fields"},
    "validation": {"http1", "values", "freshness"},
    "proof": {"http1", "validation"},
    "permission": {"freshness", "http1", "media_types", "request_fields", "store"},
    "own_bytes": {"hashing", "store"},
    "selection": {"http1", "values", "validation"},
    "grants": set(),
    "metrics": set(),
    "recent": set(),
    "response_head": {"http1", "stream"},
    "origin_tls": {"openssl", "stream"},
    "connecting": {"client_watch"},
    "reachability": set(),
    "dialling": {
        "client_watch",
        "metrics",
        "connecting",
        "reachability",
        "http1",
        "addresses",
        "stream",
        "response_head",
        "origin_tls",
    },
    "connection_pool": set(),
    "upstream": {
        "client_watch",
        "addresses",
        "request_fields",
        "http1",
        "metrics",
        "stream",
        "body",
        "reachability",
        "response_head",
        "dialling",
        "connection_pool",
    },
    "request_log": {"details", "http1", "log_text", "policy", "reply"},
    "reply": {"details", "tunnel", "http1", "values", "stream", "body"},
    "setup_page": {"http1", "policy"},
    "pages": {"http1", "policy", "metrics", "setup_page"},
    "relay": {"details", "http1", "values", "body", "policy", "upstream", "reply"},
    "tunnel": {"addresses", "details", "stream"},
    "filler": {
        "client_watch",
        "recent",
        "request_fields",
        "redaction",
        "http1",
        "store",
        "fill",
        "cache",
        "body",
        "policy",
        "freshness",
        "validation",
        "grants",
        "metrics",
        "upstream",
    },
    "deliver": {"details", "store", "fill", "body", "selection", "reply", "http1"},
    "inquiry": {
        "details",
        "asking",
        "body",
        "redaction",
        "addresses",
        "media_types",
        "permission",
        "proof",
        "http1",
        "store",
        "fill",
        "policy",
        "freshness",
        "validation",
        "selection",
        "filler",
        "relay",
        "upstream",
    },
    "recovery": {
        "client_watch",
        "inquiry",
        "follow",
        "deliver",
        "verify",
        "store",
        "fill",
        "cache",
        "body",
        "validation",
        "upstream",
    },
    "filling": {
        "details",
        "permission",
        "filler",
        "inquiry",
        "follow",
        "store",
        "fill",
        "validation",
        "metrics",
        "upstream",
    },
    "revalidation": {
        "addresses",
        "headers",
        "http1",
        "policy",
        "freshness",
        "selection",
        "store",
        "cache",
        "metrics",
        "upstream",
        "filler",
        "filling",
        "inquiry",
    },
    "outcomes": {
        "cache",
        "hot",
        "selection",
        "fill",
        "follow",
        "asking",
        "freshness",
        "http1",
        "inquiry",
        "policy",
        "store",
        "upstream",
    },
    "fetch": {
        "client_watch",
        "details",
        "outcomes",
        "addresses",
        "recent",
        "revalidation",
        "asking",
        "own_bytes",
        "proof",
        "validation",
        "filler",
        "filling",
        "recovery",
        "hot",
        "inquiry",
        "follow",
        "deliver",
        "verify",
        "http1",
        "store",
        "fill",
        "cache",
        "body",
        "policy",
        "freshness",
        "selection",
        "grants",
        "metrics",
    }
    | {"upstream", "reply", "relay"},
    "session_client": {"access", "http1", "log_text", "metrics", "notices", "password_queue", "policy", "recent"}
    | {"runtime"},
    "uncached": {"addresses", "validation", "body", "http1", "metrics", "relay", "reply", "runtime", "stream"}
    | {"upstream"},
    "session": {
        "client_watch",
        "places",
        "session_client",
        "uncached",
        "details",
        "request_log",
        "patterns",
        "redaction",
        "access",
        "log_text",
        "opening",
        "runtime",
        "first_bytes",
        "notices",
        "http1",
        "leaves",
        "stream",
        "body",
        "policy",
        "metrics",
        "upstream",
        "reply",
        "pages",
        "setup_page",
    }
    | {"relay", "tunnel", "filler", "fetch", "hot", "idle"},
    "listener": {"idle", "notices"},
    "log_text": {"redaction"},
    "client_hello": set(),
    "opening": {"addresses", "client_hello", "first_bytes", "http1", "policy", "stream"},
    "runtime": {"access", "filler", "hot", "leaves", "notices", "policy", "setup_page"},
    "places": set(),
    "first_bytes": set(),
    "refusals": {"idle"},
    "connections": {"access", "addresses", "first_bytes", "http1", "idle", "metrics", "places", "policy", "refusals"}
    | {"client_watch", "runtime", "session", "stream"},
    "idle": set(),
    "server": {
        "runtime",
        "room",
        "recent",
        "permission",
        "request_fields",
        "access",
        "addresses",
        "connections",
        "places",
        "idle",
        "listener",
        "config",
        "config_values",
        "http1",
        "certs",
        "openssl",
        "leaves",
        "cache",
        "stream",
        "policy",
        "freshness",
        "grants",
        "metrics",
        "dialling",
        "origin_tls",
        "upstream",
    }
    | {"evict", "filler", "session", "hot", "setup_page"},
    "config_checks": {"certs", "config", "config_values", "listener", "origin_tls", "server"},
    "notify": set(),
    "watchdog": set(),
    "workers": {"watchdog"},
    "arguments": set(),
    "dduct": {
        "arguments",
        "config_checks",
        "redaction",
        "access",
        "config",
        "certs",
        "metrics",
        "notify",
        "server",
        "verify",
        "watchdog",
        "workers",
    },
}
THIRD_PARTY = {"cryptography", "tomli"}
# The edge of every thread, process, idle connection and reload.
BROAD_EXCEPTS = {"listener": 1, "workers": 1, "idle": 1, "dduct": 1}
LONGEST_ROOM, LONGEST_FUNCTION = 600, 60

# The standard library's names are known to Python itself from 3.10 on; the check need not run on 3.9.
STANDARD = getattr(sys, "stdlib_module_names", None)


def imported(tree: ast.AST) -> Set[str]:
    """Top-level names of the modules that a tree imports."""
    names: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").partition(".")[0])
    return names


def problems(name: str, source: str) -> Iterator[str]:
    """What is wrong with a room, one line each."""
    tree = ast.parse(source)
    names = imported(tree)
    for other in sorted(names & set(ROOMS)):
        if other not in ROOMS[name]:
            yield f"{name} imports {other}, which is not below it"
    if STANDARD is not None:
        for other in sorted(names - set(ROOMS) - THIRD_PARTY - set(STANDARD)):
            yield f"{name} imports {other}, which is not there at run time"
    if not ast.get_docstring(tree):
        yield f"{name} does not say what it is"
    if source.count("\n") > LONGEST_ROOM:
        yield f"{name} has {source.count(chr(10))} lines: it is two rooms"
    broad = 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"{name}.{node.name} has {length} lines"
        elif isinstance(node, ast.ExceptHandler) and _swallows(node):
            broad += 1
    if broad > BROAD_EXCEPTS.get(name, 0):
        yield f"{name} has {broad} except clauses that swallow everything"
    yield from _mutable_globals(name, tree)


def _swallows(node: ast.ExceptHandler) -> bool:
    broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
    return broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


def _mutable_globals(name: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets: List[ast.expr] = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            variable = target.id if isinstance(target, ast.Name) else ""
            mutable = isinstance(node, ast.Assign) and isinstance(node.value, (ast.List, ast.Dict, ast.Set))
            if mutable and variable != variable.upper():
                yield f"{name}.{variable} is mutable state of a module"


@pytest.mark.parametrize("name", list(ROOMS))
def test_a_room_keeps_to_the_rules(name: str) -> None:
    assert list(problems(name, (ROOT / f"{name}.py").read_text("utf-8"))) == []


def test_the_table_is_complete() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOMS)


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    assert [name for name in ROOMS if f"| `{name}.py` |" not in text] == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('"""x"""\nimport session\n', "http1 imports session"),
        ('"""x"""\nfrom cache import Cache\n', "http1 imports cache"),
        ("import re\n", "does not say"),
        ('"""x"""\n' + "\n" * 601, "two rooms"),
        ('"""x"""\ndef f():\n' + "    pass\n" * 61, "http1.f has 62 lines"),
        ('"""x"""\ntry:\n    pass\nexcept Exception:\n    pass\n', "swallow"),
        ('"""x"""\ntry:\n    pass\nexcept:\n    pass\n', "swallow"),
        ('"""x"""\nseen = []\n', "http1.seen is mutable"),
    ],
)
def test_the_rules_can_be_broken(source: str, complaint: str) -> None:
    assert any(complaint in problem for problem in problems("http1", source))


@pytest.mark.skipif(STANDARD is None, reason="Python 3.9 does not know the names of its own modules")
def test_a_package_that_is_not_there_at_run_time_is_noticed() -> None:
    assert any("requests" in problem for problem in problems("http1", '"""x"""\nimport requests\n'))


def test_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    sources = {
        str(path.relative_to(ROOT / "tests")): path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")
    }
    defined = set(re.findall(r"def (test_\w+)", "".join(sources.values())))
    named = set(re.findall(r"(?:`|::)(test_\w+)`", text))
    files = set(re.findall(r"`((?:\w+/)?test_\w+\.py)", text))
    assert len(named) > 40 and named <= defined
    assert files <= set(sources)
