"""Whether a regular expression backtracks: how its search time grows with the length of the text.

Python's engine tries every way in which overlapping repetitions can share a text. `(?:[a-z]+)+` has 2^n of them, and
`.*x.*y` has n^2. The engine holds the interpreter's lock, so one such search stops the whole process.

Only a trial shows this. The texts to try are built from the expression: a start that leads to a repetition, many units
that the repetition takes, and an end that does not match. The texts grow in small steps, so that exponential time
shows before a search takes long.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from fetching.naming import LONGEST_PATH

# They have other names before Python 3.11; typeshed lacks both.
_op: Any = importlib.import_module("re._constants" if sys.version_info >= (3, 11) else "sre_constants")
_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_MAX_SECONDS = 0.02  # of processor time, for one search in a text of LONGEST_PATH
_ONE_BY_ONE = 40  # counts up to this are tried one by one: exponential time shows there
_GROWTH = 1.2  # factor, from there to _THEN_FASTER
_THEN_FASTER = 300
_GROWTH_THEN = 3
_MAX_PAIRS = 250
_MAX_STARTS = 4
_MIXED = 5
_MAX_ENDS = 4
_MAX_CHOICES = 256
_BUDGET = 3.0  # seconds of processor time for one expression; one that needs more is refused
_TRIES = 3  # a search is slow only if each try is: the machine may be busy

_Nodes = Sequence[Tuple[Any, Any]]
_REPEATS = tuple(getattr(_op, name) for name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") if hasattr(_op, name))
_BEGINNINGS = ((_op.AT, _op.AT_BEGINNING), (_op.AT, _op.AT_BEGINNING_STRING))

# All characters that a path may have: those of RFC 3986, and others that clients send nevertheless.
PATH_CHARACTERS = frozenset(chr(code) for code in range(0x21, 0x7F)) - frozenset("?#")
ALL_CHARACTERS = frozenset(chr(code) for code in range(0x100))


@dataclass(frozen=True)
class Probe:
    """A text of any length: `start`, then repeated `unit`, then `end`."""

    start: str
    unit: str
    end: str

    def text(self, repetitions: int) -> str:
        """The text with so many units."""
        return self.start + self.unit * repetitions + self.end


@lru_cache(maxsize=512)  # every reload reads the same patterns
def too_slow(text: str) -> Optional[str]:
    """A path, shortened, on which the pattern `text` is too slow; None if none is found.

    `text` is a valid regular expression.
    """
    pattern = re.compile(text)
    if _is_simple(_parse(text, pattern.flags)):
        return None
    spent = 0.0
    for probe in probes(text, pattern.flags, PATH_CHARACTERS):
        before = time.thread_time()
        if _is_slow(pattern.search, probe, LONGEST_PATH) or spent > _BUDGET:
            return f"{probe.start[:40]}{probe.unit[:20] * 3}…{probe.end}"
        spent += time.thread_time() - before
    return None


def _is_slow(search: Callable[[str], object], probe: Probe, longest: int) -> bool:
    for repetitions in _lengths(max(1, (longest - len(probe.start) - len(probe.end)) // len(probe.unit))):
        text = probe.text(repetitions)
        if all(_seconds(search, text) > _MAX_SECONDS for _ in range(_TRIES)):
            return True
    return False


def _seconds(search: Callable[[str], object], text: str) -> float:
    started = time.thread_time()
    search(text)
    return time.thread_time() - started


def _lengths(longest: int) -> Iterator[int]:
    count = 1
    while count < longest:
        yield count
        if count < _ONE_BY_ONE:
            count += 1
        else:
            count = int(count * (_GROWTH if count < _THEN_FASTER else _GROWTH_THEN))
    yield longest


def _is_simple(nodes: Any) -> bool:
    """Whether few ways to match a text exist, so no trial is needed: most filters have one `.*` and an end."""
    unbounded, ways = _ways(nodes)
    anchored = bool(nodes) and nodes[0] in _BEGINNINGS
    return ways <= _MAX_CHOICES and unbounded <= anchored


def _ways(nodes: _Nodes) -> Tuple[int, float]:
    """The number of unbounded repetitions, and the number of ways in which the rest may match."""
    unbounded, ways = 0, 1.0
    for op, value in nodes:
        inner = [_ways(one) for one in _inner(op, value)]
        unbounded += sum(count for count, _ in inner)
        if op in _REPEATS:
            least, most, body = value
            if most is _op.MAXREPEAT:
                # A repeated single character varies in one number only.
                simple = len(body) == 1 and body[0][0] in (_op.ANY, _op.IN, _op.LITERAL, _op.NOT_LITERAL)
                unbounded += 1 if simple else 2
            else:
                ways *= (most - least + 1) * min(inner[0][1], _MAX_CHOICES) ** min(most, _MAX_CHOICES // 8)
                unbounded *= 2 if most > 1 else 1
        elif inner:
            ways *= sum(count for _, count in inner)
        elif op is _op.GROUPREF:
            ways = math.inf
    return unbounded, ways


# --- texts made of an expression ------------------------------------------------------------------


def probes(text: Union[str, bytes], flags: int, alphabet: FrozenSet[str]) -> Iterator[Probe]:
    """Texts on which an expression is slow, if it is slow on any."""
    made = _Samples(_parse(text, flags), alphabet, bool(flags & re.IGNORECASE))
    ends = ["", *itertools.islice(made.odd, _MAX_ENDS)]
    for start, unit in made.repeated():
        for end in ends:
            yield Probe(start, unit, end)


def _parse(text: Union[str, bytes], flags: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _parser.parse(text, flags & ~re.UNICODE if isinstance(text, bytes) else flags)


_COMMON = 'a0A/.-_%+=,; \t"\\:@~!\n\r\xe9'
_CATEGORIES: Dict[Any, Callable[[str], bool]] = {
    _op.CATEGORY_DIGIT: lambda c: c.isdigit(),
    _op.CATEGORY_NOT_DIGIT: lambda c: not c.isdigit(),
    _op.CATEGORY_SPACE: lambda c: c.isspace(),
    _op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    _op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    _op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class _Samples:
    """Texts that an expression or a part of it matches."""

    def __init__(self, nodes: _Nodes, alphabet: FrozenSet[str], ignores_case: bool) -> None:
        self._nodes = nodes
        self._alphabet = alphabet
        self._ignores_case = ignores_case
        mentioned = (character for character in _characters(nodes) if character in alphabet)
        common = (character for character in _COMMON if character in alphabet)
        self._interesting = list(dict.fromkeys([*itertools.islice(mentioned, 60), *common]))
        # Ends that prevent a match: characters that the expression excludes, and one that it does not name.
        named = set(_characters(nodes))
        excluded = [c for c in _excluded(nodes) if c in alphabet]
        self.odd = list(dict.fromkeys([*(c for c in "!\x00~" if c in alphabet - named)][:1] + excluded))

    def repeated(self) -> Iterator[Tuple[str, str]]:
        """A start that leads to a repetition, and a unit for it."""
        pairs: Dict[Tuple[str, str], None] = {}
        starts = {"": None}
        for start, body in self._repetitions(self._nodes, ""):
            starts[start] = None
            for unit in self._variants(body):
                # Without a start, too: a search may begin at each position.
                pairs[start, unit] = pairs["", unit] = None
        taken = [c for c in self._interesting if any(self._takes(node, c) for node in _walk(self._nodes))]
        units = taken + ["".join(pair) for pair in itertools.permutations(taken[:_MIXED], 2)]
        for start in itertools.islice(starts, _MAX_STARTS):
            pairs.update(((start, unit), None) for unit in units)
        return itertools.islice((pair for pair in pairs if pair[1]), _MAX_PAIRS)

    def _repetitions(self, nodes: _Nodes, start: str) -> Iterator[Tuple[str, _Nodes]]:
        """Each repetition with more than two counts, and a text that leads to it."""
        for op, value in nodes:
            for inner in _inner(op, value):
                yield from self._repetitions(inner, start)
            if op in _REPEATS and value[1] - value[0] > 1:
                yield start, value[2]
            start += self._one([(op, value)])

    def _variants(self, body: _Nodes) -> List[str]:
        """Some texts that a repetition's body matches: with each alternative, and with characters of a class."""
        found = [self._one(body), self._one(body) * 2]
        nodes = list(body)
        for position, (op, value) in enumerate(nodes):
            before, after = self._one(nodes[:position]), self._one(nodes[position + 1 :])
            for inner in _inner(op, value):
                found.append(before + self._one(inner) + after)
            found += [before + c + after for c in self._interesting[:24] if self._takes((op, value), c)]
        return found

    def _one(self, nodes: Iterable[Tuple[Any, Any]]) -> str:
        """One text that nodes match."""
        text = ""
        for op, value in nodes:
            if op in _REPEATS:
                text += self._one(value[2]) * min(max(1, value[0]), 300)
            elif op in (_op.SUBPATTERN, getattr(_op, "ATOMIC_GROUP", None), _op.BRANCH):
                text += self._one(next(iter(_inner(op, value)), ()))
            else:
                text += next((c for c in self._interesting if self._takes((op, value), c)), "")
        return text

    def _takes(self, node: Tuple[Any, Any], character: str) -> bool:
        """Whether a node for one character matches it."""
        op, value = node
        if op is _op.LITERAL:
            same = (character.lower(), character.upper()) if self._ignores_case else (character,)
            return chr(value) in same
        if op is _op.NOT_LITERAL:
            return chr(value) != character
        if op is _op.ANY:
            return True
        if op is not _op.IN:
            return False
        negated = value[0][0] is _op.NEGATE
        return negated != any(self._is_in(item, character) for item in value)

    def _is_in(self, item: Tuple[Any, Any], character: str) -> bool:
        op, value = item
        if op is _op.RANGE:
            cases = {character, character.lower(), character.upper()} if self._ignores_case else {character}
            return any(len(c) == 1 and value[0] <= ord(c) <= value[1] for c in cases)
        if op is _op.CATEGORY:
            return bool(_CATEGORIES[value](character))
        return op is _op.LITERAL and self._takes(item, character)


def _inner(op: Any, value: Any) -> List[_Nodes]:
    """The expressions inside a node."""
    if op in _REPEATS:
        return [value[2]]
    if op is _op.SUBPATTERN:
        return [value[-1]]
    if op is _op.BRANCH:
        return list(value[1])
    if op in (_op.ASSERT, _op.ASSERT_NOT):
        return [value[1]]
    if op is _op.GROUPREF_EXISTS:
        return [one for one in value[1:] if one is not None]
    return [value] if op is getattr(_op, "ATOMIC_GROUP", None) else []


def _walk(nodes: _Nodes) -> Iterator[Tuple[Any, Any]]:
    for op, value in nodes:
        yield op, value
        for inner in _inner(op, value):
            yield from _walk(inner)


def _characters(nodes: _Nodes) -> Iterator[str]:
    """The characters in an expression: literals, and ends of ranges."""
    for op, value in _walk(nodes):
        if op in (_op.LITERAL, _op.NOT_LITERAL):
            yield chr(value)
        elif op is _op.IN:
            for kind, item in value:
                if kind is _op.LITERAL:
                    yield chr(item)
                elif kind is _op.RANGE:
                    yield from (chr(item[0]), chr(item[1]))


def _excluded(nodes: _Nodes) -> Iterator[str]:
    """The characters that an expression excludes."""
    for op, value in _walk(nodes):
        if op is _op.NOT_LITERAL:
            yield chr(value)
        elif op is _op.IN and value[0][0] is _op.NEGATE:
            for kind, item in value[1:]:
                if kind in (_op.LITERAL, _op.RANGE):
                    yield chr(item if kind is _op.LITERAL else item[1])
