"""The folders keep their order, classes and modules their size, and documents name what is there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest
from support.modules import MODULES, ORDER

ROOT = Path(__file__).resolve().parent.parent

THIRD_PARTY = {"cryptography", "tomli"}
# The edge of every thread, process, idle connection and reload.
BROAD_EXCEPTS = {"net.listener": 1, "server.workers": 1, "net.poller": 1, "server.process": 1}
LONGEST_MODULE, LONGEST_CLASS, LONGEST_FUNCTION = 500, 250, 40  # lines
MOST_METHODS, MOST_ATTRIBUTES = 20, 12
# The standard library's names are known to Python itself from 3.10 on; the check need not run on 3.9.
STANDARD = getattr(sys, "stdlib_module_names", None)


def imported(tree: ast.AST) -> Set[str]:
    """The modules that a tree imports, by dotted name."""
    names: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            inner = {f"{module}.{alias.name}" for alias in node.names} & set(MODULES)
            names.update(inner or {module})
    return names


def problems(name: str, source: str) -> Iterator[str]:
    """What is wrong with a module, one line each."""
    tree = ast.parse(source)
    folder = name.partition(".")[0]
    for other in sorted(imported(tree)):
        target = other.partition(".")[0]
        if target in ORDER and ORDER.index(target) < ORDER.index(folder):
            yield f"{name} imports {other}, which is above it"
        elif STANDARD is not None and target not in {*ORDER, *THIRD_PARTY, *STANDARD}:
            yield f"{name} imports {other}, which is not there at run time"
    if not ast.get_docstring(tree):
        yield f"{name} does not say what it is"
    broad = sum(isinstance(node, ast.ExceptHandler) and _swallows(node) for node in ast.walk(tree))
    if broad > BROAD_EXCEPTS.get(name, 0):
        yield f"{name} has {broad} except clauses that swallow everything"
    yield from _mutable_globals(name, tree)
    yield from (f"{large} has {what}" for large, what in sizes(name, source).items())


def sizes(name: str, source: str) -> Dict[str, str]:
    """What is larger than the limits allow, and by what."""
    found = {}
    if source.count("\n") > LONGEST_MODULE:
        found[name] = f"{source.count(chr(10))} lines"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if isinstance(node, ast.FunctionDef):
            if lines > LONGEST_FUNCTION:
                found[f"{name}.{node.name}"] = f"{lines} lines"
            continue
        methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
        attributes = {
            inner.attr
            for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        }
        if lines > LONGEST_CLASS or len(methods) > MOST_METHODS or len(attributes) > MOST_ATTRIBUTES:
            found[f"{name}.{node.name}"] = f"{lines} lines, {len(methods)} methods, {len(attributes)} attributes"
    return found


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


@pytest.mark.parametrize("name", list(MODULES))
def test_a_module_keeps_the_rules(name: str) -> None:
    assert list(problems(name, MODULES[name].read_text("utf-8"))) == []


def test_there_are_no_import_cycles() -> None:
    below = {name: imported(ast.parse(path.read_text("utf-8"))) & set(MODULES) for name, path in MODULES.items()}
    while True:
        lowest = [name for name, names in below.items() if not names]
        if not lowest:
            break
        for name in lowest:
            del below[name]
        below = {name: names - set(lowest) for name, names in below.items()}
    assert below == {}


def test_the_top_level_holds_only_listed_modules_and_packages() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {name for name in ORDER if "." not in name and name in MODULES}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ORDER) - {"dduct", "cache", "certs"}


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    files = [str(path.relative_to(ROOT)) for name, path in MODULES.items() if path.stem != "__init__"]
    assert [name for name in files if f"| `{name}` |" not in text] == []


# Words that this program once had for what the field has words for (GLOSSARY in ARCHITECTURE.md).
OLD_WORDS = set(
    re.findall(
        r"\w+",
        "affair affairs anew anybodys deserted entrances everybodys furnish guest heed hesitates hesitation house "
        "household inquiry introduce introduced laggard leftover leftovers nobodys octet octets patience seldom "
        "spoiled vouch vouches vouching whoever",
    )
)


def words_of(name: str) -> Set[str]:
    """The words of an identifier, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_names_have_no_old_words() -> None:
    found = set()
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "image"]  # qemu has guests
    for path in [*MODULES.values(), *tests]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for field in ("name", "id", "arg", "attr"):
                name = getattr(node, field, None)
                if isinstance(name, str) and words_of(name) & OLD_WORDS:
                    found.add(f"{path.relative_to(ROOT)}: {name}")
    assert found == set()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('"""x"""\nfrom proxy import session\n', "protocol.http1 imports proxy.session, which is above it"),
        ('"""x"""\nfrom cache import Cache\n', "protocol.http1 imports cache, which is above it"),
        ('"""x"""\nimport dduct\n', "protocol.http1 imports dduct, which is above it"),
        ("import re\n", "does not say"),
        ('"""x"""\n' + "\n" * 501, "protocol.http1 has 502 lines"),
        ('"""x"""\ndef f():\n' + "    pass\n" * 41, "protocol.http1.f has 42 lines"),
        ('"""x"""\nclass C:\n' + "    x = 1\n" * 251, "protocol.http1.C has 252 lines"),
        ('"""x"""\nclass C:\n' + "".join(f"    def f{i}(self): ...\n" for i in range(21)), "21 methods"),
        (
            '"""x"""\nclass C:\n    def f(self):\n' + "".join(f"        self.a{i} = 1\n" for i in range(13)),
            "13 attributes",
        ),
        ('"""x"""\ntry:\n    pass\nexcept Exception:\n    pass\n', "swallow"),
        ('"""x"""\ntry:\n    pass\nexcept:\n    pass\n', "swallow"),
        ('"""x"""\nseen = []\n', "protocol.http1.seen is mutable"),
    ],
)
def test_a_broken_rule_is_reported(source: str, complaint: str) -> None:
    assert any(complaint in problem for problem in problems("protocol.http1", source))


# What the kernel, Python or others call something; dduct's sources never say it.
FOREIGN = {"O_TRUNC", "SO_RCVLOWAT", "TCP_CORK"}


def test_architecture_names_only_things_that_exist() -> None:
    """Each word in backticks stands somewhere in the sources: a renamed thing keeps no old name here."""
    text = re.sub(r"```.*?```", "", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), flags=re.DOTALL)
    sources = [
        *MODULES.values(),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "packaging").rglob("*.py"),
        ROOT / "Makefile",
    ]
    sources += [ROOT / "dduct.toml", ROOT / "README.md", ROOT / "pages/setup.sh", ROOT / "packaging/test-all.sh"]
    known = set(re.findall(r"\w+", "".join(path.read_text("utf-8") for path in sources)))
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    known |= {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    named = {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[A-Za-z_]\w+", quoted)}
    assert named - known - FOREIGN == set()
    assert named >= FOREIGN


@pytest.mark.skipif(STANDARD is None, reason="Python 3.9 does not know the names of its own modules")
def test_an_import_that_is_missing_at_run_time_is_noticed() -> None:
    assert any("requests" in problem for problem in problems("protocol.http1", '"""x"""\nimport requests\n'))


def test_security_names_tests_that_exist() -> None:
    """Each in the file that is named before it."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    sources = {
        str(path.relative_to(ROOT / "tests")): path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")
    }
    source, named, missing = "", 0, []
    for file, test in re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::)?(test_\w+)?`", text):
        source = sources.get(file, "") if file else source
        named += bool(test)
        if (file and file not in sources) or (test and f"def {test}(" not in source):
            missing.append(f"{file}::{test}")
    assert missing == []
    assert named > 40
