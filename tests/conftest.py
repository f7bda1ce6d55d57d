"""Fixtures of all tests, and the check after each that nothing is left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from support.leaks import Watch
from support.running import RunningDduct, make_config

from certs import prepare
from tls.authority import CertificateAuthority


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    watch = Watch()
    yield
    left = watch.remains()
    assert not left, f"left behind: {', '.join(left)}"


@pytest.fixture(scope="session")
def origin_authority() -> CertificateAuthority:
    """The authority of origins: another one than dduct's own, so that upstream verification is really on."""
    return CertificateAuthority.generate("origins", 2048, 30)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cert_dir that is copied into every dduct of the tests: making RSA keys takes its time."""
    directory = tmp_path_factory.mktemp("certificates")
    prepare(directory, make_config(directory, None).certs)
    return directory


UNIT = Path(__file__).with_name("unit")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Tests that start a dduct belong in tests/system: `make quick` and unit tests stay fast."""
    for item in items:
        if UNIT in item.path.parents and {"dduct", "start_dduct"}.intersection(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid} starts a dduct: move it to tests/system")


_REACHES_INSIDE = {"monkeypatch", "caplog", "spy"}


def _workers(request: pytest.FixtureRequest) -> int:
    """How many processes a dduct has here: DDUCT_TEST_WORKERS, unless the test reaches into the only one."""
    if _REACHES_INSIDE.intersection(request.fixturenames) or request.node.get_closest_marker("one_process"):
        return 1
    return int(os.environ.get("DDUCT_TEST_WORKERS", "1"))


@pytest.fixture
def start_dduct(
    request: pytest.FixtureRequest, tmp_path: Path, origin_authority: CertificateAuthority, certificates: Path
) -> Iterator[Callable[..., RunningDduct]]:
    """Start a dduct whose [proxy] and [cache] keys are as given."""
    built: List[RunningDduct] = []
    workers = _workers(request)
    with ExitStack() as stack:

        def build(**keys: Any) -> RunningDduct:
            directory = tmp_path / f"dduct-{len(built)}"
            directory.mkdir(exist_ok=True)
            keys.setdefault("workers", workers)
            built.append(stack.enter_context(RunningDduct(directory, origin_authority, certificates, **keys)))
            return built[-1]

        yield build


@pytest.fixture
def dduct(start_dduct: Callable[..., RunningDduct]) -> RunningDduct:
    """A dduct with defaults."""
    return start_dduct()
