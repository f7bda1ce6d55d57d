"""dduct as a whole, on real sockets, with an origin whose authority is not dduct's own."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import pytest
from support.client import Answer, Client
from support.origin import Asked, Connection, Files, Gate, Origin
from support.pairs import reset
from support.running import HOST, RunningDduct

from net.stream import Stream
from server.config_values import Address
from tls.authority import CertificateAuthority

BODY = os.urandom(300_000)
Build = Callable[..., RunningDduct]


def stored_name(origin: Origin, path: str, scheme: str = "https", host: str = HOST) -> str:
    return f"{scheme}/{host}:{origin.port}{path}"


def test_a_leaking_test_is_noticed() -> None:
    from support.leaks import Watch

    watch = Watch()
    left = socket.socket()
    assert any("socket" in name for name in watch.remains())
    left.close()
    assert watch.remains() == []


# --- dduct's own pages --------------------------------------------------------------------------


def is_hit(answer: Answer) -> bool:
    """Whether it came from the cache without a word to its origin."""
    return (answer.get("cache-status") or "").split(";")[:2] == ["dduct", " hit"]


def over_tls(dduct: RunningDduct, name: str = HOST) -> Client:
    client = dduct.client(dduct.tls_port)
    client.start_tls(dduct.trust, name)
    return client


@pytest.mark.parametrize("port", ["tcp", "tls"])
def test_builtin_pages_are_served_on_both_ports(dduct: RunningDduct, port: str) -> None:
    client = dduct.client() if port == "tcp" else over_tls(dduct)
    own = f"{HOST}:{dduct.tcp_port if port == 'tcp' else dduct.tls_port}"
    health = client.get("/healthz", own)
    assert (health.status, health.body) == (200, b"ok\n")
    certificate = client.get("/ca.crt", own)
    assert certificate.body == (dduct.config.misc.cert_dir / "ca.crt").read_bytes()
    assert certificate.get("content-type") == "application/x-x509-ca-cert"
    assert client.get("/nothing", own).status == 404
    assert client.get("/ca.crt", own, method="HEAD").get("content-length") == str(len(certificate.body))
    refused = client.get("/healthz", own, method="DELETE")
    assert (refused.status, refused.get("allow")) == (405, "GET, HEAD")


def test_builtin_pages_are_served_through_the_proxy(dduct: RunningDduct) -> None:
    own = f"{HOST}:{dduct.tcp_port}"
    assert dduct.client().get(f"http://{own}/healthz", own).body == b"ok\n"


@pytest.mark.parametrize("host", ["localhost", "proxy.lab", "proxy.dduct.rs"])
def test_builtin_pages_are_served_under_any_name_that_is_not_intercepted(dduct: RunningDduct, host: str) -> None:
    assert dduct.client().get("/healthz", f"{host}:{dduct.tcp_port}").body == b"ok\n"


# --- the main job -------------------------------------------------------------------------------


def test_a_matching_object_is_fetched_once_and_lies_under_its_url(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/pool/x.deb": BODY}))
    first = dduct.fetch(origin, "/pool/x.deb")
    assert (first.status, first.body) == (200, BODY)
    assert "stored" in (first.get("cache-status") or "")
    second = dduct.fetch(origin, "/pool/x.deb")
    assert (second.status, second.body) == (200, BODY)
    assert is_hit(second)
    assert second.get("etag") == first.get("etag") == f'"{len(BODY)}"'
    assert second.get("age") is not None
    assert origin.count("/pool/x.deb") == 1 and origin.body_sent == len(BODY)
    assert (dduct.files / stored_name(origin, "/pool/x.deb")).read_bytes() == BODY


def test_a_request_that_matches_no_filter_is_relayed_every_time(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/index.html": BODY}))
    for _ in range(2):
        assert dduct.fetch(origin, "/index.html").body == BODY
    assert origin.count("/index.html") == 2
    assert dduct.stored() == []


def test_plain_http_in_absolute_form_is_stored_for_any_host(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    authority = f"localhost:{origin.port}"
    for _ in range(2):
        assert dduct.client().get(f"http://{authority}/x.deb", authority).body == BODY
    assert origin.count("/x.deb") == 1
    assert dduct.stored() == [stored_name(origin, "/x.deb", "http", "localhost")]


def test_one_client_connection_and_one_origin_connection_carry_many_requests(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({f"/{n}": BODY for n in range(10)}))
    client = dduct.intercepted(origin)
    for n in range(10):
        assert client.get(f"/{n}", f"{HOST}:{origin.port}").body == BODY
    assert origin.accepted == 1


def test_a_tls_session_is_resumed_in_any_worker(start_dduct: Build) -> None:
    dduct = start_dduct(workers=2)
    origin = dduct.origin(Files({"/x": BODY}))
    session: Optional[ssl.SSLSession] = None
    for _ in range(40):
        with dduct.client() as client:
            assert client.connect(f"{HOST}:{origin.port}").status == 200
            client.start_tls(dduct.trust, HOST, session)
            assert client.get("/x", f"{HOST}:{origin.port}").body == BODY
            assert client.tls.session_reused is (session is not None)
            session = client.tls.session


def test_a_request_is_repeated_if_the_idle_connection_was_closed(dduct: RunningDduct) -> None:
    def hang_up(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], b"answer")
        connection.close_notify()

    origin = dduct.origin(hang_up)
    client = dduct.intercepted(origin)
    for _ in range(5):
        assert client.get("/page", f"{HOST}:{origin.port}").body == b"answer"


def test_pipelined_requests_are_answered_in_order(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({f"/{n}.deb": b"%d" % n for n in range(10)}), tls=False)
    authority = f"{HOST}:{origin.port}"
    client = dduct.client()
    client.send(
        b"".join(b"GET http://%s/%d.deb HTTP/1.1\r\nHost: x\r\n\r\n" % (authority.encode(), n) for n in range(10))
    )
    assert [client.read().body for n in range(10)] == [b"%d" % n for n in range(10)]


def test_intercepted_tls_works_inside_tls(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    sock = socket.create_connection((HOST, dduct.tls_port), 20)
    stream = Stream(sock, 20)
    stream.start_tls(dduct.trust, HOST)
    stream.send(f"CONNECT {HOST}:{origin.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert stream.read_head(20).startswith(b"HTTP/1.1 200 Connection established\r\nVia: ")
    stream.start_tls(dduct.trust, HOST)
    stream.send(b"GET /x.deb HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % (HOST.encode(), origin.port))
    assert stream.read_head(20).startswith(b"HTTP/1.1 200 ")
    received, buffer = b"", memoryview(bytearray(65536))
    while True:
        count = stream.readinto(buffer)
        if not count:
            break
        received += bytes(buffer[:count])
    assert received == BODY
    stream.close()


def test_a_connect_without_host_is_accepted(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    with dduct.client() as client:
        client.send(f"CONNECT {HOST}:{origin.port} HTTP/1.1\r\n\r\n".encode())
        assert client.read("CONNECT").status == 200
        client.start_tls(dduct.trust, HOST)
        assert client.get("/x.deb", f"{HOST}:{origin.port}").body == BODY


def test_ipv6_works_for_clients_and_origins(start_dduct: Build) -> None:
    dduct = start_dduct(tcp_bind=Address("::1", 0))
    origin = dduct.origin(Files({"/x.deb": BODY}), host="::1")
    client = Client(dduct.tcp_port, "::1")
    with client:
        assert client.connect(f"[::1]:{origin.port}").status == 200
        client.start_tls(dduct.trust, "::1")
        assert client.get("/x.deb", f"[::1]:{origin.port}").body == BODY
    assert dduct.stored() == [stored_name(origin, "/x.deb", host="[::1]")]


def test_a_host_whose_name_points_here_is_served_on_either_port(dduct: RunningDduct) -> None:
    secure = dduct.origin(Files({"/x.deb": BODY}), host="127.0.0.2")
    assert over_tls(dduct).get("/x.deb", f"127.0.0.2:{secure.port}").body == BODY
    assert dduct.stored() == [stored_name(secure, "/x.deb", host="127.0.0.2")]
    plain = dduct.origin(Files({"/x.deb": b"plain"}), tls=False, host="127.0.0.2")
    assert dduct.client().get("/x.deb", f"127.0.0.2:{plain.port}").body == b"plain"


def test_the_tls_port_shows_a_leaf_for_the_name_that_is_asked_for(dduct: RunningDduct) -> None:
    for name in ("origin.test", "deep.below.listed.test"):
        client = over_tls(dduct, name)
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", name),)
        misdirected = client.get("/x.deb", "127.0.0.2")
        assert misdirected.status == 421


def test_an_unlisted_host_on_the_tls_port_is_misdirected(dduct: RunningDduct) -> None:
    assert over_tls(dduct).get("/x.deb", "elsewhere.test").status == 421


# --- tunnels ------------------------------------------------------------------------------------


def test_an_unlisted_host_is_tunnelled_undecrypted(dduct: RunningDduct, origin_authority: CertificateAuthority) -> None:
    from tls.leaf_certificates import LeafCertificateCache, LeafSettings

    origin = Origin(
        Files({"/x.deb": BODY}), LeafCertificateCache(origin_authority, LeafSettings(9)).context("localhost")
    )
    with origin:
        trust = ssl.create_default_context(cadata=origin_authority.pem.decode())
        client = dduct.client()
        assert client.connect(f"localhost:{origin.port}").status == 200
        client.start_tls(trust, "localhost")
        assert client.get("/x.deb", "localhost").body == BODY
    assert dduct.stored() == []


def test_a_name_that_merely_ends_like_a_listed_one_is_not_intercepted(dduct: RunningDduct) -> None:
    client = dduct.client()
    for name in ("evilorigin.test", "evillisted.test", "listed.test"):
        assert client.connect(f"{name}:1").status == 502  # dialled for a tunnel, and unknown to DNS
        client = dduct.client()
    assert client.connect("origin.test:1").status == 200  # answered by dduct itself


def test_a_tunnel_passes_half_closes_both_ways(dduct: RunningDduct) -> None:
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(20)
        client = dduct.client()
        assert client.connect(f"localhost:{listener.getsockname()[1]}").status == 200
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(20)
            client.send(b"all I have to say")
            client.sock.shutdown(socket.SHUT_WR)
            said = b""
            while True:
                data = peer.recv(100)
                if not data:
                    break
                said += data
            assert said == b"all I have to say"
            peer.sendall(BODY)
            peer.shutdown(socket.SHUT_WR)
            heard = b""
            while True:
                data = client.sock.recv(65536)
                if not data:
                    break
                heard += data
            assert heard == BODY


def test_an_origin_that_breaks_off_in_a_tunnel_does_not_look_finished(dduct: RunningDduct) -> None:
    """What is inside may be ended by the connection's end alone."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(20)
        client = dduct.client()
        assert client.connect(f"localhost:{listener.getsockname()[1]}").status == 200
        peer, _ = listener.accept()
        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        client.read_until(b"half")
        reset(peer)
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)


def test_a_tunnel_to_nowhere_is_502_before_anything_else(dduct: RunningDduct) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))  # it never listens, but keeps the port from others
        answer = dduct.client().connect(f"localhost:{nobody.getsockname()[1]}")
    assert answer.status == 502
    assert b"cannot connect" in answer.body


# --- one transfer, and clients do not delay each other -----------------------------------------


def halves(gate: Gate, status: int = 200) -> Callable[[Asked, Connection], None]:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(status, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:100_000])
        gate.wait()
        connection.send_body(BODY[100_000:])

    return handler


def test_ten_clients_at_once_cause_one_transfer_and_all_stream_while_it_runs(dduct: RunningDduct) -> None:
    gate = Gate()
    origin = dduct.origin(halves(gate))
    clients = [dduct.intercepted(origin) for _ in range(10)]
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode()
    for client in clients:
        client.send(request)
    early = []
    for client in clients:
        client.read_until(b"\r\n\r\n")
        early.append(client._exactly(100_000))
    gate.reached()
    gate.open()
    late = [client._exactly(len(BODY) - 100_000) for client in clients]
    assert {first + last for first, last in zip(early, late)} == {BODY}
    assert origin.count("/x.deb") == 1


@pytest.mark.parametrize("fields", ["", "Range: bytes=150000-\r\n"])
def test_a_head_is_sent_before_the_first_bytes_of_a_slow_fill(
    dduct: RunningDduct, monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    """containerd gives up where no head comes within 30 s, and its bytes may be far ahead in a slow fill."""
    monkeypatch.setattr("transfers.follow.FIRST_BYTES", 0.01)
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        gate.wait()
        connection.send_body(BODY)

    origin = dduct.origin(handler)
    request = f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n{fields}\r\n".encode()
    start = 150_000 if fields else 0
    for client in (dduct.intercepted(origin), dduct.intercepted(origin)):  # a leader, and a follower
        client.send(request)
        assert f"Content-Length: {len(BODY) - start}".encode() in client.read_until(b"\r\n\r\n")
    gate.open()
    assert dduct.fetch(origin, "/x.deb").body == BODY


def test_clients_that_hang_up_do_not_stop_the_fill(dduct: RunningDduct) -> None:
    gate = Gate()
    origin = dduct.origin(halves(gate))
    client = dduct.intercepted(origin)
    client.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    client.read_until(b"\r\n\r\n")
    client.sock.close()
    gate.reached()
    follower = dduct.intercepted(origin)
    follower.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    follower.read_until(b"\r\n\r\n")
    gate.open()
    assert follower._exactly(len(BODY)) == BODY
    assert is_hit(dduct.fetch(origin, "/x.deb"))
    assert origin.count("/x.deb") == 1


def test_a_client_that_reads_nothing_holds_up_neither_fill_nor_others(dduct: RunningDduct) -> None:
    body = os.urandom(8 << 20)
    origin = dduct.origin(Files({"/big.deb": body}))
    lazy = dduct.intercepted(origin)
    lazy.send(f"GET /big.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n\r\n".encode())
    assert dduct.fetch(origin, "/big.deb").body == body
    assert is_hit(dduct.fetch(origin, "/big.deb"))
    assert origin.count("/big.deb") == 1
    assert lazy.read().body == body


def test_a_hanging_origin_does_not_hold_up_other_requests(dduct: RunningDduct) -> None:
    gate = Gate()
    hanging = dduct.origin(halves(gate))
    stuck = dduct.intercepted(hanging)
    stuck.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{hanging.port}\r\n\r\n".encode())
    gate.reached()
    other = dduct.origin(Files({"/y.deb": b"quick"}))
    assert dduct.fetch(other, "/y.deb").body == b"quick"
    gate.open()
    assert stuck.read().body == BODY


def test_a_response_that_is_not_stored_is_fetched_for_each_client(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({}))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: dduct.fetch(origin, "/missing.deb"), range(8)))
    assert {answer.status for answer in answers} == {404}
    assert dduct.stored() == []


def race(dduct: RunningDduct, origin: Origin, rounds: int, body_of: Callable[[int], bytes]) -> None:
    """16 clients ask for the same cold object at the same instant, over and over."""
    start = threading.Barrier(16)
    wrong: List[Tuple[int, Answer]] = []

    def client_of(_: int) -> None:
        with dduct.intercepted(origin) as client:
            for number in range(rounds):
                start.wait(60)
                answer = client.get(f"/{number}.deb", f"{HOST}:{origin.port}")
                if not answer.complete or answer.status != 200 or answer.body != body_of(number):
                    wrong.append((number, answer))

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(client_of, n) for n in range(16)]:
            done.result()
    assert wrong == []
    assert len(origin.requests) == rounds
    assert len(dduct.stored()) == rounds


def test_sixteen_clients_race_for_a_small_object_a_thousand_times(dduct: RunningDduct) -> None:
    small = {f"/{n}.deb": b"%d:" % n + BODY[: n * 7] for n in range(1000)}
    origin = dduct.origin(Files(small))
    race(dduct, origin, 1000, lambda n: small[f"/{n}.deb"])


def test_sixteen_clients_race_for_a_large_object_a_hundred_times(dduct: RunningDduct) -> None:
    large = os.urandom(1 << 20)
    origin = dduct.origin(Files({f"/{n}.deb": b"%04d" % n + large for n in range(100)}))
    race(dduct, origin, 100, lambda n: b"%04d" % n + large)


def test_two_hundred_tunnels_and_two_hundred_downloads_at_once(dduct: RunningDduct) -> None:
    gate = Gate()
    origin = dduct.origin(Files({"/x.deb": BODY}))
    listener = socket.create_server((HOST, 0), backlog=512)
    listener.settimeout(20)
    peers = []

    def tunnel_of(_: int) -> Client:
        client = Client(dduct.tcp_port)
        assert client.connect(f"localhost:{listener.getsockname()[1]}").status == 200
        return client

    with ThreadPoolExecutor(50) as pool:
        tunnels = list(pool.map(tunnel_of, range(200)))
        peers = [listener.accept()[0] for _ in tunnels]
        inside = list(pool.map(lambda _: dduct.intercepted(origin), range(200)))
        answers = list(pool.map(lambda client: client.get("/x.deb", f"{HOST}:{origin.port}"), inside))
    assert {answer.body for answer in answers} == {BODY}
    assert origin.count("/x.deb") == 1
    for peer in peers:
        peer.settimeout(20)
        peer.sendall(b"ping")
    assert {client._exactly(4) for client in tunnels} == {b"ping"}
    for end in [*peers, *(client.sock for client in tunnels), listener]:
        end.close()
    gate.open()


# --- redirects ----------------------------------------------------------------------------------


class Hops:
    """`/hop/N.deb` redirects N times; how is `where(number)`."""

    def __init__(self, where: Callable[[int], str]) -> None:
        self._where = where

    def __call__(self, asked: Asked, connection: Connection) -> None:
        number = int(asked.target.split("/")[-1].split(".")[0])
        if number == 0:
            connection.respond(200, [], BODY)
        else:
            location = ("Location", self._where(number - 1))
            connection.respond(302, [location, ("Cache-Control", "max-age=1000")], b"moved")


@pytest.mark.parametrize("form", ["absolute", "path", "relative", "scheme-relative"])
def test_redirects_are_followed_and_the_object_is_stored_under_the_first_url(dduct: RunningDduct, form: str) -> None:
    forms: Dict[str, Callable[[int], str]] = {
        "absolute": lambda n: f"https://{HOST}:{origin.port}/hop/{n}.deb",
        "path": lambda n: f"/hop/{n}.deb#part",
        "relative": lambda n: f"{n}.deb",
        "scheme-relative": lambda n: f"//{HOST}:{origin.port}/hop/{n}.deb",
    }
    origin = dduct.origin(Hops(forms[form]))
    answer = dduct.fetch(origin, "/hop/10.deb")
    assert (answer.status, answer.body) == (200, BODY)
    assert dduct.stored() == [stored_name(origin, "/hop/10.deb")]
    assert is_hit(dduct.fetch(origin, "/hop/10.deb"))
    assert len(origin.requests) == 11


def test_after_ten_redirects_the_client_gets_the_redirect(dduct: RunningDduct) -> None:
    origin = dduct.origin(Hops(lambda n: f"/hop/{n}.deb"))
    answer = dduct.fetch(origin, "/hop/11.deb")
    assert (answer.status, answer.get("location")) == (302, "/hop/10.deb")
    assert dduct.stored() == []
    assert dduct.fetch(origin, "/hop/10.deb").body == BODY


LOOPS: Dict[str, Callable[[str], str]] = {
    "to itself": lambda target: target,
    "to and fro": lambda target: "/b.deb" if target == "/a.deb" else "/a.deb",
    "to itself, later": lambda target: "/b.deb",
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fields", [(), ("Range: bytes=0-1",), ("Authorization: x",)], ids=["plain", "range", "known"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_redirect_loop_is_passed_on_to_the_client(
    dduct: RunningDduct, loop: str, fields: List[str], method: str
) -> None:
    where = LOOPS[loop]
    origin = dduct.origin(lambda asked, to: to.respond(302, [("Location", where(asked.target)), ("X", asked.target)]))
    with dduct.intercepted(origin) as client:
        answer = client.get("/a.deb", f"{HOST}:{origin.port}", *fields, method=method)
    assert (answer.status, answer.get("location"), answer.get("x")) == (302, where("/a.deb"), "/a.deb")
    assert len(origin.requests) <= 3 and dduct.stored() == []


class Wall:
    """An origin that accepts clients with its cookie, which a redirect sets; others get a page."""

    def __init__(self, *fields: Tuple[str, str], place: str = "/page/x.zip") -> None:
        self.fields = [("Set-Cookie", "wall=1; Path=/"), *fields]
        self.place = place
        self.open = False

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if self.open or "wall=1" in (asked.get("cookie") or ""):
            kind = ("Content-Type", "application/zip")
            if asked.get("if-none-match") == '"z"':
                connection.head(304, [("ETag", '"z"')])
            else:
                connection.respond(200, [("ETag", '"z"'), ("Cache-Control", "max-age=0"), kind], BODY)
        elif asked.target == "/page/x.zip":
            connection.respond(200, [("Content-Type", "text/plain")], b"no cookie")
        elif asked.target == "/first/x.zip":
            connection.respond(302, [("Location", "/x.zip")])
        else:
            connection.respond(302, [("Location", self.place), *self.fields])


@pytest.mark.parametrize("place", ["/page/x.zip", "/x.zip"], ids=["to a page", "to itself"])
@pytest.mark.parametrize("fields", [(), (("Cache-Control", "max-age=1000"),)], ids=["plain", "fresh"])
def test_a_redirect_that_sets_a_cookie_is_passed_on_to_the_client(
    dduct: RunningDduct, place: str, fields: Tuple[Tuple[str, str], ...]
) -> None:
    origin = dduct.origin(Wall(*fields, place=place))
    for _ in range(2):
        answer = dduct.fetch(origin, "/x.zip")
        assert (answer.status, answer.get("set-cookie"), answer.get("location")) == (302, "wall=1; Path=/", place)
        assert dduct.stored() == []
        assert dduct.fetch(origin, "/first/x.zip").get("location") == "/x.zip"
        assert dduct.stored() == []
    # What a cookie has brought is opened by the origin alone, and that sends others away to get theirs.
    assert dduct.fetch(origin, "/x.zip", "Cookie: wall=1").body == BODY
    assert dduct.fetch(origin, "/x.zip").get("set-cookie") == "wall=1; Path=/"
    assert dduct.fetch(origin, "/x.zip", "Cookie: wall=1").body == BODY


def test_a_validation_redirected_with_a_cookie_is_passed_on_to_the_client(dduct: RunningDduct) -> None:
    wall = Wall()
    wall.open = True
    origin = dduct.origin(wall)
    assert dduct.fetch(origin, "/x.zip").body == BODY
    wall.open = False
    answer = dduct.fetch(origin, "/x.zip")
    assert (answer.status, answer.get("set-cookie")) == (302, "wall=1; Path=/")
    wall.open = True
    assert dduct.fetch(origin, "/x.zip").body == BODY and dduct.stored() == [stored_name(origin, "/x.zip")]


def test_credentials_are_only_sent_to_their_own_host(dduct: RunningDduct) -> None:
    storage = dduct.origin(Files({"/blob.deb": BODY}), host="127.0.0.2")

    def registry(asked: Asked, connection: Connection) -> None:
        connection.respond(307, [("Location", f"https://127.0.0.2:{storage.port}/blob.deb")])

    origin = dduct.origin(registry)
    answer = dduct.fetch(origin, "/x.deb", "Authorization: Bearer secret", "Cookie: secret")
    assert answer.body == BODY
    assert origin.requests[0].get("authorization") == "Bearer secret"
    assert storage.requests[0].get("authorization") is None and storage.requests[0].get("cookie") is None


def test_a_redirect_from_https_to_http_is_passed_on_to_the_client(dduct: RunningDduct) -> None:
    plain = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    target = f"http://{HOST}:{plain.port}/x.deb"
    origin = dduct.origin(lambda asked, connection: connection.respond(302, [("Location", target)]))
    answer = dduct.fetch(origin, "/x.deb")
    assert (answer.status, answer.get("location")) == (302, target)
    assert plain.requests == []


def test_redirects_of_relayed_requests_are_relayed(dduct: RunningDduct) -> None:
    origin = dduct.origin(Hops(lambda n: f"/hop/{n}"))
    assert dduct.fetch(origin, "/hop/1").status == 302


# --- relaying -----------------------------------------------------------------------------------


def echo(asked: Asked, connection: Connection) -> None:
    connection.respond(201, [("X-Method", asked.method)], hashlib.sha256(asked.body).hexdigest().encode())


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("framing", ["length", "chunked", "expect"])
def test_any_method_and_any_body_is_relayed(dduct: RunningDduct, method: str, framing: str) -> None:
    origin = dduct.origin(echo)
    client = dduct.intercepted(origin)
    head = f"{method} /v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\n"
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:1], BODY[1:70_000], BODY[70_000:]))
        client.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n")
    elif framing == "length":
        client.send(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    else:
        client.send(f"{head}Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.read().status == 100
        client.send(BODY)
    answer = client.read()
    assert (answer.status, answer.get("x-method")) == (201, method)
    assert answer.body == hashlib.sha256(BODY).hexdigest().encode()
    assert client.get("/v2/again", f"{HOST}:{origin.port}").status == 201
    assert dduct.stored() == []


def test_head_is_relayed_with_its_length_and_answered_from_a_stored_get(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    client = dduct.intercepted(origin)
    host = f"{HOST}:{origin.port}"
    assert client.get("/x.deb", host, method="HEAD").get("content-length") == str(len(BODY))
    assert client.get("/x.deb", host).body == BODY
    answer = client.get("/x.deb", host, method="HEAD")
    assert answer.get("content-length") == str(len(BODY)) and is_hit(answer)
    assert [asked.method for asked in origin.requests] == ["HEAD", "GET"]


def test_end_to_end_fields_pass_and_hop_by_hop_ones_do_not(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        fields = [("X-Kept", "1"), ("X-Named", "1"), ("Connection", "X-Named"), ("Keep-Alive", "timeout=5")]
        connection.respond(401, [*fields, ("WWW-Authenticate", 'Bearer realm="x"'), ("www-authenticate", "Basic")])

    origin = dduct.origin(handler)
    answer = dduct.fetch(
        origin, "/v2/", "X-Mine: 1", "X-Hop: 1", "Connection: x-hop", "Proxy-Authorization: Basic eA==", "TE: trailers"
    )
    assert answer.status == 401
    assert [value for name, value in answer.headers if name == "WWW-Authenticate"] == ['Bearer realm="x"', "Basic"]
    assert answer.get("x-kept") == "1" and answer.get("x-named") is None and answer.get("keep-alive") is None
    asked = origin.requests[0]
    assert asked.get("x-mine") == "1"
    assert [asked.get(name) for name in ("x-hop", "proxy-authorization")] == [None] * 2
    assert [asked.get(name) for name in ("te", "connection")] == ["trailers", "TE"]
    assert (asked.get("via") or "").startswith("1.1 dduct-")


def test_responses_without_a_length_reach_http_1_0_and_1_1_clients(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Connection", "close")])
        connection.send_body(BODY)
        connection.close_notify()

    origin = dduct.origin(handler, tls=False)
    new = dduct.client()
    answer = new.get(f"http://{HOST}:{origin.port}/page", "x")
    assert (answer.get("transfer-encoding"), answer.body, answer.complete) == ("chunked", BODY, True)
    old = dduct.client()
    old.send(f"GET http://{HOST}:{origin.port}/page HTTP/1.0\r\n\r\n".encode())
    answer = old.read()
    assert answer.get("transfer-encoding") is None
    assert (answer.get("connection"), answer.body) == ("close", BODY)


def test_a_chunked_object_is_stored_completely(dduct: RunningDduct) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Transfer-Encoding", "chunked")])
        for at in range(0, len(BODY), 50_000):
            part = BODY[at : at + 50_000]
            connection.send_body(b"%x;ext=1\r\n%s\r\n" % (len(part), part))
        connection.send_body(b"0\r\nX-Trailer: 1\r\n\r\n")

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.deb").body == BODY
    second = dduct.fetch(origin, "/x.deb")
    assert (second.body, second.get("content-length")) == (BODY, str(len(BODY)))
    assert len(origin.requests) == 1


def test_ranges_of_cold_and_warm_objects_are_served(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}))
    cold = dduct.fetch(origin, "/x.deb", "Range: bytes=100-")
    assert (cold.status, cold.body) == (206, BODY[100:])
    assert cold.get("content-range") == f"bytes 100-{len(BODY) - 1}/{len(BODY)}"
    warm = dduct.fetch(origin, "/x.deb", "Range: bytes=-5")
    assert (warm.status, warm.body) == (206, BODY[-5:])
    beyond = dduct.fetch(origin, "/x.deb", f"Range: bytes={len(BODY)}-")
    assert (beyond.status, beyond.get("content-range")) == (416, f"bytes */{len(BODY)}")
    unchanged = dduct.fetch(origin, "/x.deb", f'If-None-Match: "{len(BODY)}"')
    assert unchanged.status == 304
    assert origin.body_sent == len(BODY) and len(origin.requests) == 1


# --- verification upstream ----------------------------------------------------------------------


def test_an_origin_with_an_unknown_authority_is_502_and_names_the_key(
    start_dduct: Build, origin_authority: CertificateAuthority
) -> None:
    dduct = start_dduct(upstream_ca=None)
    answer = dduct.fetch(dduct.origin(Files({"/x.deb": BODY})), "/x.deb")
    assert answer.status == 502
    assert b"proxy.upstream_ca" in answer.body and answer.body.count(b"\n") == 1
    assert dduct.stored() == []


def test_a_host_that_is_named_insecure_is_not_verified(start_dduct: Build) -> None:
    dduct = start_dduct(upstream_ca=None, upstream_insecure=(HOST,))
    assert dduct.fetch(dduct.origin(Files({"/x.deb": BODY})), "/x.deb").body == BODY


def test_an_origin_that_shows_another_hosts_certificate_is_502(
    dduct: RunningDduct, origin_authority: CertificateAuthority
) -> None:
    from tls.leaf_certificates import LeafCertificateCache, LeafSettings

    with Origin(
        Files({"/x.deb": BODY}), LeafCertificateCache(origin_authority, LeafSettings(9)).context("other.test")
    ) as origin:
        answer = dduct.fetch(origin, "/x.deb")
    assert answer.status == 502 and b"mismatch" in answer.body


# --- broken transfers ---------------------------------------------------------------------------

ENDS: Dict[str, Callable[[Connection], None]] = {
    "fin": Connection.fin,
    "close_notify": Connection.close_notify,
    "reset": Connection.reset,
}


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("path", ["/x.deb", "/page"], ids=["kept", "relayed"])
def test_a_broken_transfer_is_not_stored_and_the_client_notices(
    dduct: RunningDduct, tls: bool, end: str, framing: str, path: str
) -> None:
    fields = {
        "length": [("Content-Length", str(len(BODY)))],
        "chunked": [("Transfer-Encoding", "chunked")],
        "close": [("Connection", "close")],
    }
    healthy = threading.Event()

    def handler(asked: Asked, connection: Connection) -> None:
        if healthy.is_set():
            connection.respond(200, [], BODY)
            return
        connection.head(200, fields[framing])
        connection.send(b"%x\r\n" % len(BODY) if framing == "chunked" else b"")
        connection.send_body(BODY[:200_000])
        ENDS[end](connection)

    origin = dduct.origin(handler, tls)

    def ask() -> Answer:
        if tls:
            return dduct.fetch(origin, path)
        with dduct.client() as client:
            return client.get(f"http://{HOST}:{origin.port}{path}", "x")

    try:
        answer = ask()
        # A close-delimited body that was cut off by an orderly close looks complete.
        undetectable = framing == "close" and (end == "close_notify" or (end == "fin" and not tls))
        assert answer.whole is undetectable
        assert answer.status == 502 or BODY.startswith(answer.body)
    except ConnectionError:
        pass  # a reset can overtake the head
    assert dduct.stored() == []
    healthy.set()
    assert ask().body == BODY


def test_a_stalled_origin_times_out(start_dduct: Build) -> None:
    dduct = start_dduct(upstream_timeout=0.2)
    gate = Gate()
    origin = dduct.origin(halves(gate))
    answer = dduct.fetch(origin, "/x.deb")
    assert not answer.whole
    gate.open()
    assert dduct.stored() == []


def test_an_origin_that_never_answers_is_504(start_dduct: Build) -> None:
    dduct = start_dduct(upstream_timeout=0.2, relay_timeout=0.2)
    gate = Gate()
    origin = dduct.origin(lambda asked, connection: gate.wait())
    assert dduct.fetch(origin, "/x.deb").status == 504
    assert dduct.fetch(origin, "/page").status == 504
    gate.open()


MALFORMED = {
    "no colon": b"HTTP/1.1 200 OK\r\nContent-Length 5\r\n\r\nhello",
    "bare CR": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "no status": b"hello\r\n\r\n",
    "unasked upgrade": b"HTTP/1.1 101 Switching\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_response_is_502_and_not_stored(dduct: RunningDduct, raw: bytes) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.send(raw)
        connection.close_notify()

    origin = dduct.origin(handler)
    assert dduct.fetch(origin, "/x.deb").status == 502
    assert dduct.stored() == []


@pytest.mark.parametrize("line", [b"0x5\r\n", b" 5\r\n", b"+5\r\n", b"5_0\r\n", b"5\n", b"\r\n"])
def test_a_bad_chunk_size_breaks_the_transfer(dduct: RunningDduct, line: bytes) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Transfer-Encoding", "chunked")])
        connection.send_body(b"5\r\nhello\r\n" + line + b"hello\r\n0\r\n\r\n")

    origin = dduct.origin(handler)
    assert not dduct.fetch(origin, "/x.deb").whole
    assert dduct.stored() == []


# --- the cache gives no access ------------------------------------------------------------------


class Guarded:
    """Serves one object to clients with the right credentials, and counts bodies."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.word = "Bearer good"

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if asked.get("authorization") != self.word:
            connection.respond(401, [("WWW-Authenticate", "Bearer")], b"who are you?")
            return
        if asked.get("if-none-match") == '"1"':
            connection.head(304, [("ETag", '"1"')])
            return
        connection.head(200, [("Content-Length", str(len(BODY))), ("ETag", '"1"')])
        connection.send_body(BODY[:100])
        self.gate.wait()
        connection.send_body(BODY[100:])


def test_an_object_that_needed_credentials_needs_them_on_every_hit(start_dduct: Build) -> None:
    dduct = start_dduct(auth_grace=0.0)
    gate = Gate()
    gate.open()
    guard = Guarded(gate)
    origin = dduct.origin(guard)
    good = "Authorization: Bearer good"
    assert dduct.fetch(origin, "/x.deb", good).body == BODY
    for fields in ([], ["Authorization: Bearer bad"]):
        refused = dduct.fetch(origin, "/x.deb", *fields)
        assert (refused.status, refused.body, refused.get("www-authenticate")) == (401, b"who are you?", "Bearer")
    let_in = dduct.fetch(origin, "/x.deb", good)
    assert let_in.body == BODY and is_hit(let_in)
    assert origin.body_sent == len(BODY) + 2 * len(b"who are you?")
    guard.word = "revoked"
    assert dduct.fetch(origin, "/x.deb", good).status == 401


def test_a_fill_with_credentials_is_followed_by_authorized_clients_only(dduct: RunningDduct) -> None:
    gate = Gate()
    origin = dduct.origin(Guarded(gate))
    leader = dduct.intercepted(origin)
    leader.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nAuthorization: Bearer good\r\n\r\n".encode())
    gate.reached()
    assert dduct.fetch(origin, "/x.deb").status == 401
    follower = dduct.intercepted(origin)
    follower.send(f"GET /x.deb HTTP/1.1\r\nHost: {HOST}:{origin.port}\r\nAuthorization: Bearer good\r\n\r\n".encode())
    gate.open()
    assert leader.read().body == BODY and follower.read().body == BODY


@pytest.mark.parametrize("said", ["no-store", "private, no-store"])
def test_no_store_is_obeyed(dduct: RunningDduct, said: str) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY}, [("Cache-Control", said)]))
    assert dduct.fetch(origin, "/x.deb").body == BODY
    assert dduct.stored() == []


# --- digests ------------------------------------------------------------------------------------


def blob_path(repository: str, body: bytes = BODY) -> str:
    return f"/v2/{repository}/blobs/sha256:{hashlib.sha256(body).hexdigest()}"


def test_a_layer_is_stored_by_digest_and_shared_between_repositories(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({blob_path("one"): BODY, blob_path("two"): BODY}))
    assert dduct.fetch(origin, blob_path("one")).body == BODY
    assert dduct.fetch(origin, blob_path("two")).body == BODY
    assert is_hit(dduct.fetch(origin, blob_path("two")))
    digest = hashlib.sha256(BODY).hexdigest()
    assert (dduct.files / "sha256" / digest[:2] / digest).read_bytes() == BODY
    assert [asked.target for asked in origin.requests] == [blob_path("one"), blob_path("two")]


def test_a_known_digest_does_not_open_a_repository_that_refuses(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({blob_path("one"): BODY}))
    assert dduct.fetch(origin, blob_path("one")).body == BODY
    assert dduct.fetch(origin, blob_path("two")).status == 404


def test_a_layer_with_a_wrong_digest_is_never_complete_and_never_stored(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({blob_path("one"): BODY[:-1] + bytes([BODY[-1] ^ 1])}))
    answer = dduct.fetch(origin, blob_path("one"))
    assert not answer.whole and len(answer.body) <= len(BODY) - 65536
    assert dduct.stored() == []


# --- loops and odd paths ------------------------------------------------------------------------


def test_a_request_to_dduct_itself_is_508(dduct: RunningDduct) -> None:
    own = f"{HOST}:{dduct.tcp_port}"
    assert dduct.client().get(f"http://{own}/x.deb", own).status == 508
    assert dduct.client().get(f"http://localhost:{dduct.tcp_port}/x.deb", own).status == 508
    assert dduct.client().connect(f"localhost:{dduct.tls_port}").status == 508
    client = dduct.client()
    assert client.connect(f"{HOST}:{dduct.tls_port}").status == 200
    client.start_tls(dduct.trust, HOST)
    assert client.get("/x.deb", f"{HOST}:{dduct.tls_port}").status == 508
    assert dduct.stored() == []


def test_a_request_whose_via_names_dduct_is_508(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/page": b"x"}), tls=False)
    client = dduct.client()
    target = f"http://{HOST}:{origin.port}/page"
    via = client.get(target, "x").get("via") or ""
    assert client.get(target, "x", f"Via: 1.0 other, {via}").status == 508
    assert client.get(target, "x", "Via: 1.1 dduct-00000000").status == 200


ODD_PATHS = [
    "/../../etc/passwd",
    "/../../etc/passwd.deb",
    "//etc/passwd",
    "//etc/passwd.deb",
    "/a/../../../../etc/passwd.deb",
    "/%2e%2e/%2e%2e/etc/passwd.deb",
    "/..%2f..%2fetc%2fpasswd.deb",
    "/%2fetc/passwd.deb",
    "/./x.deb",
    "/a/%00.deb",
    "/..\\..\\x.deb",
    "/a//b.deb",
    "/x.deb?/../../../etc/passwd",
    "/x.dduct/y.deb",
    "/" + "n" * 300 + ".deb",
    "/" + "d/" * 3000 + "x.deb",
]


@pytest.mark.parametrize("path", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_an_odd_path_never_leaves_the_cache(dduct: RunningDduct, path: str, tmp_path: Path) -> None:
    before = {entry for entry in tmp_path.rglob("*") if dduct.files not in entry.parents}
    secure = dduct.origin(Files({path: b"from the origin"}))
    plain = dduct.origin(Files({path: b"from the origin"}), tls=False)
    for _ in range(2):
        assert dduct.fetch(secure, path).body == b"from the origin"
        with dduct.client() as client:
            assert client.get(f"http://{HOST}:{plain.port}{path}", "x").body == b"from the origin"
    for client in (dduct.client(), over_tls(dduct)):
        answer = client.get(path, f"{HOST}:{dduct.tcp_port}")
        assert answer.status in (400, 404) and b"root:" not in answer.body
    assert {entry for entry in tmp_path.rglob("*") if dduct.files not in entry.parents} == before
    for entry in dduct.files.rglob("*"):
        assert dduct.files in entry.resolve().parents


def test_the_same_path_on_two_hosts_never_mixes(dduct: RunningDduct) -> None:
    one = dduct.origin(Files({"/x.deb": b"one!"}))
    two = dduct.origin(Files({"/x.deb": b"two!"}), host="127.0.0.2")
    for _ in range(2):
        assert dduct.fetch(one, "/x.deb").body == b"one!"
        client = dduct.intercepted(two, "127.0.0.2")
        assert client.get("/x.deb", f"127.0.0.2:{two.port}").body == b"two!"


# --- bad requests -------------------------------------------------------------------------------

BAD = {
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "bare LF": (b"GET /healthz HTTP/1.1\nHost: x\n\n", 400),
    "two framings": (
        b"POST http://x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "obs-fold": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "ftp": (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "no port": (b"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "long line": (b"GET /" + b"x" * 17000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "long head": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: %s\r\n" % (b"x" * 70000) + b"\r\n", 431),
    "many fields": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 300 + b"\r\n", 431),
    "expectation": (b"PUT http://x/ HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 0\r\n\r\n", 417),
}


@pytest.mark.parametrize(("raw", "status"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_a_one_line_error_and_a_close(dduct: RunningDduct, raw: bytes, status: int) -> None:
    client = dduct.client()
    client.send(raw)
    answer = client.read()
    assert answer.status == status and answer.complete
    assert answer.body.startswith(b"dduct: ") and answer.body.count(b"\n") == 1


def test_a_request_inside_connect_must_name_the_host_of_the_connect(dduct: RunningDduct) -> None:
    origin = dduct.origin(Files({"/page": b"x"}))
    client = dduct.intercepted(origin)
    assert client.get("/page", "other.test").status == 421
    assert client.get(f"https://other.test:{origin.port}/page", f"{HOST}:{origin.port}").status == 421
    assert client.get(f"https://{HOST}:{origin.port}/page", f"{HOST}:{origin.port}").body == b"x"
    assert [asked.target for asked in origin.requests] == ["/page"]
