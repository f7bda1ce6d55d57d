"""Which clients may connect, and what they may reach."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set

import pytest
from support.client import Answer, wait_until
from support.origin import Asked, Connection, Files, Gate
from support.running import HOST, RunningDduct

from monitoring.metrics import Counter
from net import addresses
from net.addresses import Networks
from proxy import access
from proxy.access import AccessError, Users, hash_password
from proxy.password_queue import TooManyPasswords
from server import wiring

ROOT = Path(__file__).resolve().parents[2]
Build = Callable[..., RunningDduct]
BODY = os.urandom(50_000)
TIMEOUT = 20.0


# --- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
        ("fd20:ce::254", True),
        ("168.63.129.16", True),
        ("127.1", True),
        ("2130706433", True),
        ("0x7f.1", True),
        ("0177.0.0.1", True),
        ("0xa9fea9fe", True),
        ("0", True),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::169.254.169.254", True),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", True),
        ("2002:a00:1::1", False),
        ("::127.0.0.1", True),
        ("10.1", False),
        ("1.2.3.4.5", False),
        ("localhost", True),
        ("a.localhost", True),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("some.thing", False),
        ("notlocalhost", False),
    ],
)
def test_some_addresses_are_local_only(address: str, private: bool) -> None:
    assert addresses.is_local_only(address) is private


def test_a_network_contains_its_addresses() -> None:
    networks = Networks(["10.0.0.0/8", "::1", "2001:db8::/32"])
    assert all(address in networks for address in ("10.1.2.3", "::ffff:10.1.2.3", "::1", "2001:db8::5"))
    assert not any(address in networks for address in ("11.0.0.1", "::2", "some.thing", ""))
    assert 5 not in networks


# --- users ------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.fixture(scope="module")
def file_of_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users"
    path.write_text(
        f"# our users\n\n{hash_password('lab', 'p@ss:word')}\n{hash_password('zoë', 'ü')}\n", encoding="utf-8"
    )
    return path


def test_only_the_right_password_authenticates_a_user(file_of_users: Path) -> None:
    users = Users(file_of_users)
    for _ in ("hashed", "remembered"):
        assert users.check(basic("lab", "p@ss:word")) == "lab"
        assert users.check(basic("zoë", "ü")) == "zoë"
    wrong = [basic("lab", "x"), basic("nobody", "x"), basic("lab", ""), b"Basic !", b"Basic ", b"Bearer x", b"", None]
    wrong += [b"Basic " + base64.b64encode(raw) for raw in (b"lab", b"\xff:x", b":")]
    assert [users.check(field) for field in wrong] == [None] * len(wrong)


def test_a_password_is_hashed_once_for_known_and_unknown_users(
    file_of_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = Users(file_of_users)
    hashed: List[bytes] = []
    real = access._scrypt

    def scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
        hashed.append(password)
        return real(password, cost, salt)

    monkeypatch.setattr(access, "_scrypt", scrypt)
    for _ in range(3):
        users.check(basic("lab", "p@ss:word"))
        users.check(basic("nobody", "guess"))
    assert hashed == [b"p@ss:word", b"guess", b"guess", b"guess"]


def test_an_unknown_user_costs_as_much_time_as_a_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the time would tell which users exist, if their hashes have another cost than ours."""
    path = tmp_path / "users"
    path.write_text("one:$scrypt$ln=10$AAAA$AAAA\ntwo:$scrypt$ln=12$AAAA$AAAA\n")
    users = Users(path)
    costs: Dict[str, Set[int]] = {}
    name = ""

    def scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
        costs.setdefault(name, set()).add(cost)
        return b""

    monkeypatch.setattr(access, "_scrypt", scrypt)
    for number in range(40):
        name = f"user{number}"
        assert users.check(basic(name, "x")) is None and users.check(basic(name, "y")) is None
    assert all(len(found) == 1 for found in costs.values())
    assert set.union(*costs.values()) == {10, 12}


def test_a_request_that_waits_for_a_refused_password_check_is_refused_too(
    file_of_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets no "wrong password": the password was not checked."""
    users = Users(file_of_users)
    reached, go_on = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def full(*_: object) -> Iterator[None]:
        reached.set()
        assert go_on.wait(TIMEOUT)
        raise TooManyPasswords
        yield

    monkeypatch.setattr(users._queue, "admission", full)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(users.check, basic("lab", "p@ss:word"))
        assert reached.wait(TIMEOUT)
        second = pool.submit(users.check, basic("lab", "p@ss:word"))
        go_on.set()
        for one in (first, second):
            with pytest.raises(TooManyPasswords):
                one.result(TIMEOUT)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lab:password", "line 2: expected user:hash"),
        ("lab:$scrypt$ln=14$!$x", "line 2: expected user:hash"),
        ("lab:$scrypt$ln=14$abc$abc", "line 2: expected base64"),
        ("lab:$scrypt$ln=20$AAAA$AAAA", "line 2: expected a cost"),
        ("lab:$scrypt$ln=9$AAAA$AAAA", "line 2: expected a cost"),
        ("one:$scrypt$ln=14$AAAA$AAAA", "line 2: one is there twice"),
    ],
)
def test_a_bad_line_of_the_users_file_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "users"
    path.write_text(f"one:$scrypt$ln=14$AAAA$AAAA\n{line}\n")
    with pytest.raises(AccessError, match=said.replace("$", r"\$")):
        Users(path)


def test_a_user_name_is_checked() -> None:
    with pytest.raises(AccessError):
        hash_password("a:b", "x")


def test_the_command_line_adds_a_user(tmp_path: Path) -> None:
    def passwd(*arguments: str, given: str = "secret\n") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "dduct.py"), "passwd", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)

    made = passwd("lab")
    assert made.returncode == 0
    (tmp_path / "users").write_text(made.stdout)
    assert Users(tmp_path / "users").check(basic("lab", "secret")) == "lab"
    for bad in (passwd(), passwd("a b"), passwd("lab", given="\n")):
        assert bad.returncode == 2 and bad.stderr.count("\n") == 1


# --- at the door ------------------------------------------------------------------------------------


def get(dduct: RunningDduct, url: str, *fields: str) -> Answer:
    with dduct.client() as client:
        return client.get(url, "x", *fields)


def test_a_client_outside_allowed_networks_is_refused(start_dduct: Build) -> None:
    dduct = start_dduct(allow_clients=("10.0.0.0/8",))
    origin = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    for target in (f"http://{HOST}:{origin.port}/x.deb", "/ca.crt"):
        answer = get(dduct, target)
        assert answer.status == 403 and b"proxy.allow_clients" in answer.body
    with dduct.client() as client:
        assert client.connect(f"{HOST}:{origin.port}").status == 403
    assert origin.requests == []


def test_a_password_is_required_and_the_right_one_accepted(start_dduct: Build, file_of_users: Path) -> None:
    dduct = start_dduct(auth_file=file_of_users)
    origin = dduct.origin(Files({"/x.deb": BODY}))
    plain = dduct.origin(Files({"/x.deb": BODY}), tls=False)
    authority = f"{HOST}:{origin.port}"
    good, bad = (f"Proxy-Authorization: {basic('lab', word).decode()}" for word in ("p@ss:word", "guess"))
    with dduct.client() as client:
        for fields in ([], [bad]):
            lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", *fields, "", ""]
            client.send("\r\n".join(lines).encode())
            refused = client.read()
            assert refused.status == 407
            assert (refused.get("proxy-authenticate") or "").startswith('Basic realm="dduct"')
        client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{good}\r\n\r\n".encode())
        assert client.read(method="CONNECT").status == 200
        client.start_tls(dduct.trust, HOST)
        assert client.get("/x.deb", authority).body == BODY
    url = f"http://{HOST}:{plain.port}/x.deb"
    assert get(dduct, url).status == 407
    assert get(dduct, url, good).body == BODY
    assert plain.requests[0].get("proxy-authorization") is None
    assert get(dduct, "/ca.crt").status == 200  # /ca.crt is public
    with dduct.client() as client:
        assert client.get("/x.deb", "origin.test").status == 403


def test_the_most_expensive_accepted_hash_can_be_checked(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("one:$scrypt$ln=19$AAAA$AAAA\n")
    assert Users(tmp_path / "users").check(basic("one", "guess")) is None


def test_passwords_are_never_hashed_in_the_pollers_thread(
    start_dduct: Build, file_of_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guesser would block all connections. Known users take no thread either."""
    dduct = start_dduct(auth_file=file_of_users)
    authority = f"{HOST}:{dduct.origin(Files({})).port}"
    hashed: List[str] = []
    real = access._scrypt

    def scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
        hashed.append(threading.current_thread().name)
        return real(password, cost, salt)

    monkeypatch.setattr(access, "_scrypt", scrypt)
    for word, status in (("guess", 407), ("p@ss:word", 200), ("p@ss:word", 200)):
        field = f"Proxy-Authorization: {basic('lab', word).decode()}"
        with dduct.client() as client:
            client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{field}\r\n\r\n".encode())
            assert client.read(method="CONNECT").status == status
    assert hashed == ["session", "session"]


def test_password_guesses_do_not_delay_users_with_known_passwords(
    start_dduct: Build, file_of_users: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Known passwords do not wait. Beyond a few guesses an address gets 429 at once, and the log names it."""
    dduct = start_dduct(auth_file=file_of_users)
    url = f"http://{HOST}:{dduct.origin(Files({'/x.deb': BODY}), tls=False).port}/x.deb"
    good = f"Proxy-Authorization: {basic('lab', 'p@ss:word').decode()}"
    assert get(dduct, url, good).body == BODY
    gate, real = threading.Event(), access._scrypt

    def scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
        assert gate.wait(20)
        return real(password, cost, salt)

    monkeypatch.setattr(access, "_scrypt", scrypt)
    with caplog.at_level("INFO"), ThreadPoolExecutor(10) as pool:
        try:
            guesses = [
                pool.submit(get, dduct, url, f"Proxy-Authorization: {basic('lab', f'guess{number}').decode()}")
                for number in range(10)
            ]
            dduct.counted(Counter.PASSWORDS_PUT_OFF, 5)
            assert get(dduct, url, good).body == BODY
        finally:
            gate.set()
        statuses = sorted(guess.result(30).status for guess in guesses)
    assert statuses == [407] * 5 + [429] * 5
    assert dduct.counted(Counter.WRONG_PASSWORDS, 5) == 5
    lines = [record.getMessage() for record in caplog.records if "wrong password" in record.getMessage()]
    warnings = {line for line in lines if " GET " not in line}  # requests have lines of their own, which say it, too
    assert warnings == {f"{HOST}: wrong password for lab (proxy.auth_file)"}
    assert "guess" not in caplog.text


def test_the_same_credentials_are_hashed_once_however_many_come_at_once(
    file_of_users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, gate, real = Users(file_of_users), threading.Event(), access._scrypt
    hashed: List[bytes] = []

    def scrypt(password: bytes, cost: int, salt: bytes) -> bytes:
        hashed.append(password)
        assert gate.wait(20)
        return real(password, cost, salt)

    monkeypatch.setattr(access, "_scrypt", scrypt)
    with ThreadPoolExecutor(10) as pool:
        checks = [pool.submit(users.check, basic("lab", "p@ss:word"), "a") for _ in range(10)]
        wait_until(lambda: bool(hashed))
        gate.set()
        assert [check.result(30) for check in checks] == ["lab"] * 10
    assert hashed == [b"p@ss:word"] and not users._hashing


def test_many_users_behind_one_address_authenticate_at_once(tmp_path: Path) -> None:
    path, team = tmp_path / "users", [f"user{number}" for number in range(10)]
    path.write_text("\n".join(access.hash_password(user, "secret") for user in team))
    users = Users(path)
    with ThreadPoolExecutor(10) as pool:
        checks = [pool.submit(users.check, basic(user, "secret"), "nat") for user in team]
        assert [check.result(30) for check in checks] == team


def test_a_users_file_that_is_wrong_stops_the_start(tmp_path: Path, start_dduct: Build) -> None:
    path = tmp_path / "users"
    path.write_text("lab:plain\n")
    with pytest.raises(wiring.StartError, match="line 1"):
        start_dduct(auth_file=path)


def test_the_tls_port_may_require_a_client_certificate(start_dduct: Build) -> None:
    dduct = start_dduct(require_client_cert=True)
    certs = dduct.config.misc.cert_dir
    origin = dduct.origin(Files({"/x.deb": BODY}))
    for name in (HOST, "origin.test"):  # dduct's own certificate, and a leaf that SNI has chosen
        context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        with dduct.client(dduct.tls_port) as client, pytest.raises((OSError, ConnectionError)):
            client.start_tls(context, name)
            client.get("/healthz", "localhost")
        context.load_cert_chain(certs / "client.crt", certs / "client.key")
        with dduct.client(dduct.tls_port) as client:
            client.start_tls(context, name)
            assert client.get("/healthz", "localhost" if name == HOST else HOST).status in (200, 404)
    assert dduct.fetch(origin, "/x.deb").body == BODY  # the plain port requires no certificate


@pytest.mark.one_process
@pytest.mark.parametrize("name", [HOST, "origin.test"])  # dduct's own certificate, and a leaf that SNI has chosen
def test_a_session_ticket_does_not_replace_a_client_certificate(start_dduct: Build, name: str) -> None:
    """A session without a certificate (begun in a tunnel, or before a reload) is not resumed where one is required."""
    dduct = start_dduct(require_client_cert=False)
    certs = dduct.config.misc.cert_dir
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))

    def visit(port: int, session: Optional[ssl.SSLSession] = None) -> ssl.SSLSession:
        with dduct.client(port) as client:
            if port == dduct.tcp_port:
                assert client.connect(f"{name}:443").status == 200
            client.start_tls(context, name, session)
            client.get("/healthz", "localhost")  # with whose answer comes a ticket
            assert client.tls.session_reused is (session is not None)
            assert client.tls.session is not None
            return client.tls.session

    tunnelled, anonymous = (visit(port, visit(port)) for port in (dduct.tcp_port, dduct.tls_port))
    dduct.server.reload(replace(dduct.config, proxy=replace(dduct.config.proxy, require_client_cert=True)))
    for session in (tunnelled, anonymous, None):
        with pytest.raises(OSError):
            visit(dduct.tls_port, session)
    visit(dduct.tcp_port, tunnelled)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [HOST, "origin.test"])
def test_each_connection_shows_a_certificate_where_one_is_required(
    start_dduct: Build, name: str, version: ssl.TLSVersion
) -> None:
    """It may have ended since the last."""
    dduct = start_dduct(require_client_cert=True)
    certs = dduct.config.misc.cert_dir
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    context.maximum_version = version
    session: Optional[ssl.SSLSession] = None
    for _ in range(3):
        with dduct.client(dduct.tls_port) as client:
            client.start_tls(context, name, session)
            # In good order: OpenSSL forgets the sessions of TLS 1.2 that do not end so.
            client.get("/healthz", "localhost", "Connection: close")
            assert not client.tls.session_reused
            session = client.tls.session
            client.at_end()


@pytest.mark.one_process  # several count for themselves
def test_connections_beyond_the_limit_get_an_error(start_dduct: Build) -> None:
    dduct = start_dduct(max_connections=2)
    held = [dduct.client() for _ in range(2)]
    for client in held:
        assert client.get("/healthz", "localhost").status == 200
    with dduct.client() as late:
        answer = late.read()
        assert (answer.status, answer.get("retry-after"), answer.get("connection")) == (503, "5", "close")
    held[0].sock.close()
    for _ in range(100):  # until its thread has noticed
        with dduct.client() as again:
            again.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if again.read().status == 200:
                break
    else:
        raise AssertionError("the place was not given back")


# --- where they may go ------------------------------------------------------------------------------


@pytest.fixture
def from_afar(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make dduct believe that its clients are on another machine, or not."""
    afar = [False]
    real = addresses.is_loopback
    monkeypatch.setattr("net.addresses.is_loopback", lambda client: real(client) and not afar[0])

    def pretend(value: bool = True) -> None:
        afar[0] = value

    return pretend


@pytest.mark.parametrize("host", [HOST, "localhost", "127.0.0.2", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
def test_a_remote_client_does_not_reach_this_machine(
    dduct: RunningDduct, from_afar: Callable[[bool], None], host: str
) -> None:
    origin = dduct.origin(Files({"/x.deb": BODY, "/page": BODY}), tls=False)
    from_afar(True)
    for path in ("/x.deb", "/page"):
        assert get(dduct, f"http://{host}:{origin.port}{path}").status == 403
    with dduct.client() as client:
        answer = client.connect(f"{host}:{origin.port}")
        if answer.status == 200:  # intercepted: the address is dialled for a request
            client.start_tls(dduct.trust, host.strip("[]"))
            answer = client.get("/page", f"{host}:{origin.port}")
        assert answer.status == 403
    assert origin.requests == []


def test_a_name_that_resolves_to_this_machine_is_refused(
    dduct: RunningDduct, from_afar: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that is dialled is judged, every time."""
    origin = dduct.origin(Files({"/x.deb": BODY, "/page": b"secret"}), tls=False)
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        return real(HOST if host == "rebound.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://rebound.test:{origin.port}"
    assert get(dduct, f"{url}/page").body == b"secret"
    assert get(dduct, f"{url}/x.deb").body == BODY
    from_afar(True)
    assert get(dduct, f"{url}/page").status == 403  # not over the connection that is kept for others
    assert get(dduct, f"{url}/x.deb").status == 403  # and not from the cache
    assert get(dduct, f"{url}/x.deb", "Range: bytes=0-1").status == 403
    with dduct.client() as client:
        assert client.get(f"{url}/x.deb", "x", method="HEAD").status == 403
    from_afar(False)
    assert get(dduct, f"{url}/x.deb").body == BODY


def test_a_redirect_to_this_machine_is_refused(
    dduct: RunningDduct, from_afar: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = dduct.origin(Files({"/y.deb": BODY}), tls=False)

    def away(asked: Asked, connection: Connection) -> None:
        connection.respond(302, [("Location", f"http://{HOST}:{inner.port}/y.deb")], b"")

    outer = dduct.origin(away, tls=False, host="127.0.0.3")
    # One address of this machine plays one of the world outside.
    real = addresses.is_local_only
    monkeypatch.setattr("net.addresses.is_local_only", lambda host: host != "127.0.0.3" and real(host))
    from_afar(True)
    assert get(dduct, f"http://127.0.0.3:{outer.port}/x.deb").status == 403
    assert len(outer.requests) == 1 and inner.requests == []


def test_an_object_reached_through_this_machine_is_for_local_clients_only(
    dduct: RunningDduct, from_afar: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service of this machine redirects to the object; a client that may not reach the service may not have it."""
    outer = dduct.origin(Files({"/y.deb": BODY}), tls=False, host="127.0.0.3")

    def away(asked: Asked, connection: Connection) -> None:
        connection.respond(307, [("Location", f"http://127.0.0.3:{outer.port}/y.deb")], b"")

    inner = dduct.origin(away, tls=False)
    real = addresses.is_local_only
    monkeypatch.setattr("net.addresses.is_local_only", lambda host: host != "127.0.0.3" and real(host))
    url = f"http://{HOST}:{inner.port}/x.deb"
    assert get(dduct, url).body == BODY
    from_afar(True)
    assert get(dduct, url).status == 403


def test_an_equal_digest_does_not_expose_an_object_of_this_machine(
    dduct: RunningDduct, from_afar: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"
    inner = dduct.origin(Files({path: BODY}), tls=False)
    outer = dduct.origin(Files({path: b"!" * len(BODY)}), tls=False, host="127.0.0.3")
    real = addresses.is_local_only
    monkeypatch.setattr("net.addresses.is_local_only", lambda host: host != "127.0.0.3" and real(host))
    assert get(dduct, f"http://{HOST}:{inner.port}{path}").body == BODY
    for afar in (False, True):  # a local request for it does not open it to remote clients
        from_afar(afar)
        assert get(dduct, f"http://127.0.0.3:{outer.port}{path}").body == b"!" * len(BODY)


def test_a_remote_client_does_not_follow_a_fill_from_this_machine(
    dduct: RunningDduct, from_afar: Callable[[bool], None]
) -> None:
    gate = Gate()

    def handler(asked: Asked, connection: Connection) -> None:
        connection.head(200, [("Content-Length", str(len(BODY)))])
        connection.send_body(BODY[:100])
        gate.wait()
        connection.send_body(BODY[100:])

    origin = dduct.origin(handler, tls=False)
    url = f"http://{HOST}:{origin.port}/x.deb"
    near = dduct.client()
    near.send(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    gate.reached()
    from_afar(True)
    assert get(dduct, url).status == 403
    gate.open()
    assert near.read().body == BODY
