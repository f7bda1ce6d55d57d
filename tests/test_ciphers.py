"""The order of TLS 1.3's cipher suites."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Iterator, List

import pytest

import ciphers
from ciphers import has_aes, prefer_aes_128, suites

FAST = "TLS_AES_128_GCM_SHA256"


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    for function in (has_aes, ciphers._set_ciphersuites):
        function.cache_clear()
    yield
    for function in (has_aes, ciphers._set_ciphersuites):
        function.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, path: Path, features: str) -> None:
    path.write_text(features)
    monkeypatch.setattr("ciphers._CPUINFO", path)


@pytest.mark.parametrize("protocol", [ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT])
def test_aes_128_comes_first_and_nothing_is_lost(
    protocol: ssl._SSLMethod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "model name\t: x\nflags\t\t: fpu aes sse2\n")
    context = ssl.SSLContext(protocol)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context)[0] == FAST
    assert suites(context)[1:] == [name for name in before if name != FAST]


@pytest.mark.parametrize("features", ["", "flags\t\t: fpu sse2\n", "bugs\t: aes\n", "Features\t: fp asimd\n"])
def test_without_aes_the_order_stays(features: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", features)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context) == before


def test_arm_tells_of_it_in_its_own_way_and_some_kernels_do_not_at_all(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not has_aes(cpuinfo)
    has_aes.cache_clear()
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd aes pmull\n")
    assert has_aes(cpuinfo)


def test_a_suite_that_is_not_there_is_not_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    monkeypatch.setattr("ciphers.suites", lambda _: ["TLS_AES_256_GCM_SHA384"])
    monkeypatch.setattr("ciphers._set_ciphersuites", lambda: pytest.fail("there is nothing to put in order"))
    prefer_aes_128(context)


def test_a_python_that_can_do_it_itself_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """3.15 and later."""
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")
    wanted: List[str] = []

    class Context(ssl.SSLContext):
        def set_ciphersuites(self, names: str) -> None:
            wanted.append(names)

    monkeypatch.setattr("ciphers._LAYOUT_KNOWN", False)
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    prefer_aes_128(context)
    assert wanted[0].split(":")[0] == FAST and sorted(wanted[0].split(":")) == sorted(suites(context))


@pytest.mark.parametrize("missing", ["the layout", "the file", "the library", "the function", "ctypes"])
def test_where_it_cannot_be_done_the_order_stays(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")

    class Spec:
        origin = {"the file": "built-in", "the library": str(tmp_path / "_ssl.so")}.get(missing, _ctypes_file())

    if missing == "the layout":
        monkeypatch.setattr("ciphers._LAYOUT_KNOWN", False)
    elif missing == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: Spec)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context) == before


def _ctypes_file() -> str:
    """A library that knows nothing of TLS."""
    import _ctypes

    return str(_ctypes.__file__)
