"""What a reload changes in a running dduct, and what stays."""

from __future__ import annotations

import shutil
import ssl
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import List, Optional

import pytest
from support.client import Client, wait_until
from support.origin import Files
from support.running import RunningDduct, make_config

from monitoring.metrics import Counter
from net.listener import Listener, ThreadPool
from server import process, server
from server.server import Server
from server.wiring import StartError
from storage.space import Limits

pytestmark = pytest.mark.one_process


def life_of_a_leaf(dduct: RunningDduct) -> float:
    """How long a leaf is valid that SNI has chosen, in days."""
    with dduct.client(dduct.tls_port) as client:
        client.start_tls(dduct.trust, "origin.test")
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
    assert certificate is not None
    begin, end = (ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter"))
    return (end - begin) / 86400


def test_a_failed_reload_changes_nothing(dduct: RunningDduct, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("no hash\n")
    before = life_of_a_leaf(dduct)
    shorter = replace(dduct.config, certs=replace(dduct.config.certs, leaf_days=5))
    with pytest.raises(StartError):
        dduct.server.reload(replace(shorter, proxy=replace(shorter.proxy, auth_file=users)))
    assert life_of_a_leaf(dduct) == before
    dduct.server.reload(shorter)
    assert life_of_a_leaf(dduct) == 5


def test_a_reload_changes_the_limits_of_the_same_cache(dduct: RunningDduct) -> None:
    cache, runtime = dduct.server.cache, dduct.server.runtime
    dduct.reload(max_size=1000)
    assert dduct.server.cache is cache and dduct.server.runtime is not runtime
    assert cache.store.space.situation().limits == Limits(max_size=1000)


def test_leaf_certificates_with_unchanged_settings_outlive_a_reload(dduct: RunningDduct) -> None:
    leaves = dduct.server.runtime.leaf_certificates
    dduct.reload(max_size=1000)
    assert dduct.server.runtime.leaf_certificates is leaves
    dduct.server.reload(replace(dduct.config, certs=replace(dduct.config.certs, leaf_days=5)))
    assert dduct.server.runtime.leaf_certificates is not leaves


def test_a_snapshot_shows_connections_and_draining(dduct: RunningDduct) -> None:
    with dduct.client() as client:
        assert client.get("/healthz", "localhost").status == 200
        assert dduct.server.snapshot().connections == 1
        assert "draining=False" in repr(dduct.server) and "connections=1" in repr(dduct.server)
    wait_until(lambda: not dduct.server.snapshot().connections)


@pytest.mark.parametrize("name", ["127.0.0.1", "a.dduct.rs"])
def test_a_server_certificate_that_is_not_valid_yet_is_replaced_by_a_leaf(
    tmp_path: Path, certificates: Path, name: str
) -> None:
    """Without a restart, and not on the disk: a leaf takes its place."""
    config = make_config(tmp_path, None)
    shutil.copytree(certificates, config.misc.cert_dir)
    behind = [0.0]
    server = Server(config, clock=lambda: time.time() - behind[0])
    trust = ssl.create_default_context(cafile=str(config.misc.cert_dir / "ca.crt"))
    own = ssl.PEM_cert_to_DER_cert((config.misc.cert_dir / "server.crt").read_text())

    def shown() -> Optional[bytes]:
        with Client(server.addresses[1].port) as client:
            client.start_tls(trust, name)
            assert isinstance(client.sock, ssl.SSLSocket)
            return client.sock.getpeercert(binary_form=True)

    server.start()
    try:
        if name == "127.0.0.1":
            assert shown() == own
        behind[0] = 10 * 86400.0  # and so server.crt is not valid yet
        assert shown() not in (own, None)
    finally:
        server.stop(grace=10)


def test_a_stop_in_which_nothing_ends_by_itself_has_an_end(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two listeners, and two pools of threads, take the time of one."""
    now = 1000.0
    told: List[Listener] = []

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return False

    def tell(one: Listener) -> None:
        told.append(one)

    def stop(_: Listener, seconds: float) -> None:
        assert len(told) == 2  # before the first is waited for
        wait(seconds)

    with monkeypatch.context() as patched:
        patched.setattr(server, "time", SimpleNamespace(monotonic=lambda: now))
        patched.setattr(Listener, "begin_stop", tell)
        patched.setattr(Listener, "stop", stop)
        patched.setattr(ThreadPool, "join", lambda _, seconds: wait(seconds))
        dduct.server.stop()
    assert now - 1000.0 == server.LONGEST_STOP < process._LONGEST_END <= 20.0


def test_a_stop_syncs_what_was_stored_just_before(dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.syncing._GATHERING", 60.0)
    origin = dduct.origin(Files({"/x.deb": b"body", "/y.deb": b"body"}))
    for target in ("/x.deb", "/y.deb"):
        assert dduct.fetch(origin, target).body == b"body"
    dduct.counted(Counter.PUBLISHED, 2)
    dduct.server.stop(grace=10)
    assert len(dduct.stored()) == 2 and not dduct.server.snapshot().threads
    dduct.wait_until_durable()
