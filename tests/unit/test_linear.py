"""Bytes from clients and origins cost at most time linear in their length.

The test finds the regular expressions of all modules: a new one needs no entry here.
"""

from __future__ import annotations

import ast
import importlib
import re
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple, Union

import pytest
from support.costly import COSTLY_VALUES
from support.modules import MODULES

from protocol import field_values, freshness, http1
from protocol.headers import Headers, canonical, split_list
from protocol.http1 import RequestHead, ResponseHead
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
        if module in OWN or module == "server.patterns":
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


# --- lists ------------------------------------------------------------------------------------------

LISTS = [
    (b"", []),
    (b",", []),
    (b" , ,\t", []),
    (b"a", [b"a"]),
    (b"a,b", [b"a", b"b"]),
    (b" a ,\tb ", [b"a", b"b"]),
    (b'a="b,c",d', [b'a="b,c"', b"d"]),
    (b'"a,b","c"', [b'"a,b"', b'"c"']),
    (b'"a\\",b",c', [b'"a\\",b"', b"c"]),
    (b'"a\\\\",b', [b'"a\\\\"', b"b"]),
    (b'a\\"b,c",d', [b'a\\"b,c"', b"d"]),
    # an unclosed quote reaches to the end
    (b'a,"b,c', [b"a", b'"b,c']),
    (b'a,"b\\', [b"a", b'"b\\']),
    (b'a,"b\\",c', [b"a", b'"b\\",c']),
    (b'"', [b'"']),
    (b'"\\', [b'"\\']),
]


@pytest.mark.parametrize("value, elements", LISTS)
def test_a_list_is_split_like_the_reference(value: bytes, elements: List[bytes]) -> None:
    assert split_list(value) == elements
    assert Headers([(b"X", value)]).elements(b"x") == elements


# --- whole values and whole heads ---------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


@pytest.mark.parametrize("value", COSTLY_VALUES, ids=lambda value: repr(value[:12]))
def test_reading_a_value_takes_linear_time(value: bytes) -> None:
    headers = Headers([(b"a", value)])
    base = http1.parse_absolute(b"http://origin.test/a/b")

    def read_all() -> None:
        for read in (field_values.parse_ranges, field_values.parse_date, canonical, split_list):
            read(value)
        freshness.directives_of(Headers([(b"cache-control", value)])).seconds(b"max-age")
        http1.resolve(base, value)
        headers.tokens(b"a")
        for parse in (http1.parse_absolute, lambda text: http1.parse_authority(text, 80)):
            try:
                parse(value)
            except http1.ProtocolError:
                pass

    assert min(seconds(read_all) for _ in range(3)) < 0.4


def test_a_vary_that_repeats_a_field_costs_no_more_than_once() -> None:
    request = RequestHead(b"GET", b"/", 1, Headers([(b"accept", b"x, " * 20000)]))
    response = ResponseHead(200, b"", 1, Headers([(b"Vary", b"accept," * 8000)]))
    assert min(seconds(lambda: freshness.vary_fields(request, response)) for _ in range(3)) < 0.4
    assert [name for name, _ in freshness.vary_fields(request, response)] == ["accept"]


def test_many_lines_of_one_field_are_one_list() -> None:
    lines = [(b"A", b"%d" % number + b"x" * 250) for number in range(200)]
    assert Headers(lines).get(b"a") == b", ".join(value for _, value in lines)
