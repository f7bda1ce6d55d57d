"""What is on dduct's own machine is for clients there, unless proxy.allow_own opens it."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Sequence, Set

import pytest
from support.client import Answer
from support.origin import Asked, Connection, Files, Origin
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from net import addresses
from net.addresses import OwnServices, Reach, Scope, may_reach, reach_of
from upstream.dialling import Parent

Build = Callable[..., RunningDduct]
ROOT = Path(__file__).resolve().parents[2]
BODY = os.urandom(10_000)
LAN, ELSEWHERE = "127.0.0.3", "127.0.0.4"  # an address of this machine in its network plays, and one of another machine


@pytest.fixture(autouse=True)
def cast(monkeypatch: pytest.MonkeyPatch) -> Dict[str, str]:
    """Which address has which role; the dictionary says what names resolve to. Clients are on another machine."""
    names: Dict[str, str] = {"registry.lab": LAN, "far.lab": ELSEWHERE, "loop.lab": HOST}
    local_only, local, look_up = addresses.is_local_only, addresses._is_local, socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        return look_up(names.get(host, host), *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(addresses, "is_local_only", lambda host: host not in (LAN, ELSEWHERE) and local_only(host))
    monkeypatch.setattr(addresses, "_is_local", lambda host: host == LAN or (host != ELSEWHERE and local(host)))
    monkeypatch.setattr("proxy.connections.reach_of", lambda client, host: Reach.NOTHING)
    return names


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reach], None]:
    """Say where clients are from now on."""
    return lambda reach: monkeypatch.setattr("proxy.connections.reach_of", lambda client, host: reach)


def get(dduct: RunningDduct, url: str, method: str = "GET") -> Answer:
    with dduct.client() as client:
        return client.get(url, "x", method=method)


def connect(dduct: RunningDduct, authority: str) -> int:
    with dduct.client() as client:
        return client.connect(authority).status


def opened(dduct: RunningDduct, *services: str) -> None:
    dduct.server.reload(replace(dduct.config, proxy=replace(dduct.config.proxy, allow_own=services)))


@pytest.mark.parametrize("host", [LAN, "registry.lab", f"[::ffff:{LAN}]", "127.3", "0x7f000003"])
def test_a_remote_client_does_not_reach_an_address_of_this_machine(dduct: RunningDduct, host: str) -> None:
    with Origin(Files({"/x.deb": BODY, "/page": BODY}), host=LAN) as origin:
        for path in ("/x.deb", "/page"):
            refused = get(dduct, f"http://{host}:{origin.port}{path}")
            assert refused.status == 403 and b"proxy.allow_own = ['" in refused.body
        assert get(dduct, f"http://{host}:{origin.port}/x.deb", "HEAD").status == 403
        assert connect(dduct, f"{host}:{origin.port}") == 403
        assert origin.accepted == 0
    assert dduct.counters.value(Counter.REFUSED) == 4


def test_a_remote_client_reaches_other_machines(dduct: RunningDduct) -> None:
    with Origin(Files({"/x.deb": BODY, "/page": BODY}), host=ELSEWHERE) as origin:
        for path in ("/x.deb", "/page"):
            assert get(dduct, f"http://far.lab:{origin.port}{path}").body == BODY
        assert connect(dduct, f"{ELSEWHERE}:{origin.port}") == 200


def test_a_redirect_to_this_machine_is_not_followed(dduct: RunningDduct) -> None:
    with Origin(Files({"/y.deb": BODY}), host=LAN) as inner:

        def away(asked: Asked, connection: Connection) -> None:
            connection.respond(302, [("Location", f"http://registry.lab:{inner.port}/y.deb")])

        with Origin(away, host=ELSEWHERE) as outer:
            assert get(dduct, f"http://far.lab:{outer.port}/x.deb").status == 403
            assert inner.accepted == 0 and outer.accepted == 1


def test_a_name_with_several_addresses_leads_to_the_allowed_ones(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Origin(Files({"/page": BODY}), host=ELSEWHERE) as origin:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, origin.port)) for address in (LAN, ELSEWHERE, HOST)
        ]
        look_up = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *rest, **more: found if host == "several.lab" else look_up(host, *rest, **more),
        )
        assert get(dduct, f"http://several.lab:{origin.port}/page").body == BODY


@pytest.mark.parametrize("reach", [Reach.OWN_ADDRESSES, Reach.EVERYTHING])
def test_clients_on_this_machine_reach_it_and_share_one_transfer(
    dduct: RunningDduct, clients: Callable[[Reach], None], reach: Reach
) -> None:
    clients(reach)
    with Origin(Files({"/x.deb": BODY}), host=LAN) as origin:
        url = f"http://{LAN}:{origin.port}/x.deb"
        assert [get(dduct, url).body for _ in range(3)] == [BODY] * 3
        assert origin.count("/x.deb") == 1
        clients(Reach.NOTHING)
        for method in ("GET", "HEAD"):
            assert get(dduct, url, method).status == 403  # and not from the cache
        assert origin.count("/x.deb") == 1


def test_a_client_from_a_nonloopback_address_of_this_machine_does_not_reach_loopback(
    dduct: RunningDduct, clients: Callable[[Reach], None]
) -> None:
    """It may be a container whose network is a program on this machine."""
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    url = f"http://{HOST}:{origin.port}/x.deb"
    clients(Reach.EVERYTHING)
    assert get(dduct, url).body == BODY
    clients(Reach.OWN_ADDRESSES)
    assert get(dduct, url).status == 403 and connect(dduct, f"localhost:{origin.port}") == 403


@pytest.mark.parametrize("service", ["{host}:{port}", "{host}", "registry.lab:{port}", "registry.lab"])
def test_allow_own_opens_a_service_of_this_machine(start_dduct: Build, service: str) -> None:
    with Origin(Files({"/x.deb": BODY, "/page": BODY}), host=LAN) as origin:
        key = service.format(host=LAN, port=origin.port)
        dduct = start_dduct(allow_own=(key,))
        url = f"http://registry.lab:{origin.port}"
        for path in ("/x.deb", "/page"):
            assert [get(dduct, url + path).body for _ in range(2)] == [BODY] * 2
        assert origin.count("/x.deb") == 1
        assert connect(dduct, f"registry.lab:{origin.port}") == 200
        # A name opens what is asked for by that name; an address does so under every name.
        assert connect(dduct, f"{LAN}:{origin.port}") == (403 if "registry" in key else 200)


def test_a_reload_opens_and_closes_a_service_of_this_machine(dduct: RunningDduct) -> None:
    with Origin(Files({"/page": BODY}), host=LAN) as origin:
        url = f"http://{LAN}:{origin.port}/page"
        statuses = []
        for services in ([], [f"{LAN}:{origin.port}"], []):
            opened(dduct, *services)
            statuses.append(get(dduct, url).status)
        assert statuses == [403, 200, 403]


def test_allow_own_also_opens_objects_that_local_clients_fetched(
    dduct: RunningDduct, clients: Callable[[Reach], None]
) -> None:
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    with Origin(Files({path: BODY}), host=LAN) as origin:
        url = f"http://{LAN}:{origin.port}{path}"
        clients(Reach.EVERYTHING)
        assert get(dduct, url).body == BODY
        clients(Reach.NOTHING)
        assert get(dduct, url).status == 403
        opened(dduct, f"{LAN}:{origin.port}")
        assert get(dduct, url).body == BODY
        assert origin.count(path) == 1
        opened(dduct, "registry.lab")  # asked for by another name: its own answer
        assert get(dduct, url).status == 403


def test_allow_own_opens_no_other_port(start_dduct: Build) -> None:
    with Origin(Files({"/page": BODY}), host=LAN) as open_one, Origin(Files({"/page": BODY}), host=LAN) as closed:
        dduct = start_dduct(allow_own=(f"{LAN}:{open_one.port}",))
        assert get(dduct, f"http://{LAN}:{open_one.port}/page").status == 200
        assert get(dduct, f"http://{LAN}:{closed.port}/page").status == 403


def test_allow_own_opens_loopback_if_it_names_it(start_dduct: Build) -> None:
    with Origin(Files({"/page": BODY})) as origin:
        dduct = start_dduct(allow_own=(f"{HOST}:{origin.port}",))
        for host in (HOST, "localhost", "loop.lab"):
            assert get(dduct, f"http://{host}:{origin.port}/page").body == BODY
        assert get(dduct, f"http://{HOST}:{dduct.tcp_port}/page").status != 200  # dduct itself is no origin


def test_allow_own_does_not_open_dduct_itself(start_dduct: Build, cast: Dict[str, str]) -> None:
    dduct = start_dduct(allow_own=("self.lab",))
    cast["self.lab"] = HOST
    assert get(dduct, f"http://self.lab:{dduct.tcp_port}/page").status == 508


# --- behind a parent --------------------------------------------------------------------------------


def relay_all(asked: Asked, connection: Connection) -> None:
    connection.respond(200, [("Cache-Control", "max-age=1000")], BODY)


@pytest.mark.parametrize("place", [HOST, LAN], ids=["on loopback", "on an address of this machine"])
def test_a_parent_proxy_on_this_machine_does_not_open_this_machine(start_dduct: Build, place: str) -> None:
    with Origin(relay_all, host=place) as parent:
        dduct = start_dduct(upstream_proxy=Parent(place, parent.port))
        for host in (LAN, "registry.lab", "loop.lab"):
            assert get(dduct, f"http://{host}:80/page").status == 403
            assert connect(dduct, f"{host}:22") == 403
        assert parent.requests == []
        assert get(dduct, "http://far.lab/page").body == BODY
        opened(dduct, "registry.lab:80")
        assert get(dduct, "http://registry.lab/x.deb").body == BODY
        assert get(dduct, "http://registry.lab/x.deb").body == BODY
        assert len(parent.requests) == 2


def test_a_remote_parent_proxy_is_not_asked_for_an_address_of_this_machine(start_dduct: Build) -> None:
    with Origin(relay_all, host=ELSEWHERE) as parent:
        dduct = start_dduct(upstream_proxy=Parent(ELSEWHERE, parent.port))
        for host in (LAN, f"[::ffff:{LAN}]", "127.0.0.9", "localhost"):
            assert get(dduct, f"http://{host}/page").status == 403
            assert connect(dduct, f"{host}:22") == 403
        assert parent.requests == []


# --- judging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "local", "reach"),
    [
        ("127.0.0.1", "127.0.0.1", Reach.EVERYTHING),
        ("::1", "::1", Reach.EVERYTHING),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", Reach.EVERYTHING),
        ("192.0.2.5", "192.0.2.5", Reach.OWN_ADDRESSES),
        ("2001:db8::5", "2001:db8::5", Reach.OWN_ADDRESSES),
        ("192.0.2.6", "192.0.2.5", Reach.NOTHING),
        ("192.0.2.6", "127.0.0.1", Reach.NOTHING),
    ],
)
def test_a_client_is_local_by_its_address(client: str, local: str, reach: Reach) -> None:
    assert reach_of(client, local) is reach


@pytest.mark.parametrize(
    ("client", "reached"),
    [
        (Reach.NOTHING, {Scope.ALL}),
        (Reach.OWN_ADDRESSES, {Scope.ALL, Scope.OWN_ADDRESS}),
        (Reach.EVERYTHING, {Scope.ALL, Scope.OWN_ADDRESS, Scope.LOCAL_ONLY}),
    ],
)
def test_a_client_reaches_the_addresses_that_are_for_it(client: Reach, reached: Set[Scope]) -> None:
    assert {scope for scope in Scope if may_reach(client, scope)} == reached


@pytest.mark.parametrize(
    ("services", "host", "address", "opens"),
    [
        (["10.0.0.5:5000"], "10.0.0.5", "10.0.0.5", True),
        (["10.0.0.5:5000"], "any.lab", "10.0.0.5", True),
        (["10.0.0.5:5000"], "any.lab", "::ffff:10.0.0.5", True),
        (["10.0.0.5:5001"], "10.0.0.5", "10.0.0.5", False),
        (["10.0.0.5"], "10.0.0.5", "10.0.0.5", True),
        (["10.0.0.5"], "10.0.0.6", "10.0.0.6", False),
        (["registry.lab:5000"], "Registry.Lab", "10.0.0.5", True),
        (["registry.lab:5000"], "registry.lab", "127.0.1.1", True),  # Debian's name for itself
        (["registry.lab"], "registry.lab", "169.254.169.254", False),  # metadata takes its own address
        (["registry.lab"], "registry.lab", "fd00:ec2::254", False),
        (["169.254.169.254:5000"], "169.254.169.254", "169.254.169.254", True),
        (["registry.lab"], "other.lab", "10.0.0.5", False),
        (["[fd00::5]:5000"], "fd00::5", "fd00::5", True),
        (["fd00::5"], "fd00::5", "fd00:0::5", True),
        ([], "10.0.0.5", "10.0.0.5", False),
    ],
)
def test_allow_own_opens_the_named_addresses_and_ports(
    services: Sequence[str], host: str, address: str, opens: bool
) -> None:
    assert OwnServices(services).opens(host, 5000, address) is opens


ADDRESSES = """
import sys
from net.addresses import Scope, scope_of
own = ["192.0.2.5", "172.17.0.1", "2001:db8::5", "::ffff:192.0.2.5", "64:ff9b::192.0.2.5", "2002:c000:205::1"]
print([address for address in own if scope_of(address) is not Scope.OWN_ADDRESS])
others = ["192.0.2.6", "2001:db8::6", "203.0.113.1"]
print([address for address in others if scope_of(address) is not Scope.ALL])
"""


@pytest.mark.parametrize("host", ["192.0.2.5", "3221225989", "0xc0000205", "192.0.517", "::ffff:192.0.2.5"])
def test_an_address_of_this_machine_is_recognized_in_every_spelling(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(addresses, "_is_local", lambda address: address == "192.0.2.5")
    assert addresses.scope_of(host) is Scope.OWN_ADDRESS


def test_the_kernel_tells_the_addresses_of_this_machine() -> None:
    """In a network namespace with addresses of its own; bridges have some, too."""
    commands = [
        "ip link set lo up",
        "ip link add lan0 type bridge && ip link set lan0 up && ip addr add 192.0.2.5/24 dev lan0",
        "ip -6 addr add 2001:db8::5/64 dev lan0 nodad",
        "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up",
        f"{sys.executable} -c '{ADDRESSES}'",
    ]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", "\n".join(commands)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if "Operation not permitted" in done.stderr or "not supported" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")
