"""No regular expression of any module takes more than linear time.

The test finds them: a new one needs no entry here.
"""

from __future__ import annotations

import ast
import importlib
import re
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple, Union

import pytest
from support.modules import MODULES

from server import patterns

KIB = 1024

# Expressions that see no bytes from clients or origins.
OWN = {
    "server.config": "the operator's own file",
    "server.config_values": "the operator's own file",
    "pages.setup": "our own text; only what has been parsed as a host is put into it",
    "proxy.access._LINE": "the operator's own auth_file",
}

Pattern = Union["re.Pattern[str]", "re.Pattern[bytes]"]


def found_in(value: Any, depth: int = 3) -> Iterator[Pattern]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict) and depth:
        for one in [*value, *value.values()]:
            yield from found_in(one, depth - 1)
    elif isinstance(value, (tuple, list, set, frozenset)) and depth:
        for one in value:
            yield from found_in(one, depth - 1)
    elif isinstance(value, type) and value.__module__ in MODULES and depth:
        for one in vars(value).values():
            yield from found_in(one, depth - 1)


def all_patterns() -> Dict[str, Pattern]:
    found: Dict[int, Tuple[str, Pattern]] = {}
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            for number, pattern in enumerate(found_in(value)):
                found.setdefault(id(pattern), (f"{module}.{name}[{number}]" if number else f"{module}.{name}", pattern))
    return dict(found.values())


PATTERNS = {
    where: pattern
    for where, pattern in all_patterns().items()
    if where not in OWN and where.rpartition(".")[0] not in OWN
}
METHODS = ("search", "match", "fullmatch", "sub", "findall", "finditer", "split")


def uses(where: str) -> List[str]:
    """By which methods a pattern is used, as far as its module shows; all that are possible where it does not."""
    module = max((one for one in MODULES if where.startswith(f"{one}.")), key=len)
    name = where[len(module) + 1 :]
    source = MODULES[module].read_text(encoding="utf-8")
    found = re.findall(rf"\b{re.escape(name.partition('[')[0])}\.({'|'.join(METHODS)})\(", source)
    return sorted(set(found)) or ["fullmatch", "search", "sub"]


def applied(pattern: Pattern, method: str, text: str, enough: float = 0.005) -> float:
    """Processor time of one use, the best of up to three, as other programs run; `enough` is believed at once."""
    subject: Any = text.encode("latin-1") if isinstance(pattern.pattern, bytes) else text
    call: Callable[[], object] = lambda: getattr(pattern, method)(subject)  # noqa: E731
    if method == "sub":
        nothing: Any = b"" if isinstance(subject, bytes) else ""
        call = lambda: pattern.sub(nothing, subject)  # noqa: E731
    elif method == "finditer":
        call = lambda: sum(1 for _ in pattern.finditer(subject))  # noqa: E731
    best = float("inf")
    for _ in range(3):
        started = time.thread_time()
        call()
        best = min(best, time.thread_time() - started)
        if best < enough or best > 0.5:
            break
    return best


def slow_probe(pattern: Pattern, method: str) -> str:
    """A text that costs more than linear time; nothing where there is none."""
    for probe in patterns.probes(pattern.pattern, pattern.flags, patterns.ALL_CHARACTERS):
        for count in FEW:
            if applied(pattern, method, probe.text(count)) >= 0.005:
                return repr(probe.text(count))  # exponential: much more of it would take for ever
        few = applied(pattern, method, probe.text(4 * KIB // len(probe.unit)))
        # What is quadratic takes 8 ms at least for 4 KiB, and 16 times as long for four times as much.
        if few >= 0.005 and applied(pattern, method, probe.text(16 * KIB // len(probe.unit)), 8 * few) > 8 * few:
            return repr(probe.text(60))
    return ""


# In steps so small that none of them takes for ever, whatever the machine's speed: at most four times the one before.
FEW = range(8, 65, 2)


@pytest.mark.parametrize("where", sorted(PATTERNS))
def test_no_expression_takes_more_than_linear_time(where: str) -> None:
    for method in uses(where):
        assert not slow_probe(PATTERNS[where], method), method


BAD: List[Tuple[Pattern, str]] = [
    (re.compile(r"[ \t]*,[ \t]*"), "sub"),  # Vary, once
    (re.compile(r"(?:[a-z]+)+!"), "match"),
]


@pytest.mark.parametrize("pattern, method", BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_an_expression_that_takes_more_than_linear_time_is_found(pattern: Pattern, method: str) -> None:
    assert slow_probe(pattern, method)


def test_every_expression_is_found_in_its_module() -> None:
    hidden = []
    for module in MODULES:
        # The latter joins what the former has tried: a search in an alternative takes as long as all of them together.
        if module in OWN or module in ("server.patterns", "server.joined_patterns"):
            continue
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.Lambda)):
                hidden += [
                    f"{module}:{node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id == "re"
                    and node.func.attr != "escape"
                ]
    assert hidden == []


def test_excluded_names_exist() -> None:
    names = {where.rpartition(".")[0] for where in all_patterns()} | set(all_patterns()) | set(MODULES)
    assert set(OWN) <= names
