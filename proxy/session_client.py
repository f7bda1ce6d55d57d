"""The client of one connection: its address, certificate, user and permission to go on."""

from __future__ import annotations

import logging
from typing import Optional

from fetching.recent import Client
from monitoring.log import PerAddress
from monitoring.log_text import one_line
from monitoring.metrics import Counter
from net.arrival import Arrival
from protocol.http1 import RequestHead
from proxy import routing
from proxy.access import Access, UserLine, claimed_user
from proxy.password_queue import TooManyPasswords
from proxy.routing import Fetch, Intercept, MirrorToken, Tunnel
from proxy.runtime import Runtime

_FOR_USERS = (Tunnel, Intercept, Fetch, MirrorToken)  # decisions on what takes a password, where there are users


class SessionClient:
    """`certified`: the client has shown a certificate of our authority. `who` is its name in the log: user@address."""

    def __init__(self, address: str, certified: bool) -> None:
        self.address = self.who = address
        self.user: Optional[UserLine] = None  # the last authenticated user, where passwords are required
        self.why_barred: Optional[str] = None
        self._certified = certified
        self._judged_by: Optional[Runtime] = None  # the runtime that `why_barred` refers to

    @property
    def asker(self) -> Client:
        """Address and user name: the client identity of `Deliveries`."""
        return self.address, "" if self.user is None else self.user.name

    def is_user(self, line: Optional[UserLine]) -> None:
        """Set the authenticated user."""
        if line is not self.user:
            self.user = line
            self.who = self.address if line is None else f"{one_line(line.name.encode())}@{self.address}"

    def barred(self, access: Access, arrival: Arrival, tunnelling: bool) -> Optional[str]:
        """Why the client may not go on; None if it may. `tunnelling`: the connection carries a tunnel."""
        if self.address not in access.clients:
            return f"{self.address} is not in proxy.allow_clients"
        if access.certificates and arrival.encrypted and not self._certified:
            return "it has shown no certificate (proxy.require_client_cert)"
        if access.users is None:
            return None
        if self.user is not None:
            name = one_line(self.user.name.encode())
            return None if access.users.holds(self.user) else f"user {name} is not the same in proxy.auth_file"
        if arrival.connect_target is not None or tunnelling:
            return "no user has asked for it (proxy.auth_file)"
        return None  # the next request needs a password

    def is_barred(self, runtime: Runtime, arrival: Arrival) -> bool:
        """Whether `runtime` bars this connection; evaluated once per runtime."""
        if self._judged_by is not runtime:
            self._judged_by, self.why_barred = runtime, self.barred(runtime.access, arrival, tunnelling=False)
        return self.why_barred is not None

    def authenticated(
        self, head: RequestHead, decision: routing.Decision, runtime: Runtime, arrival: Arrival
    ) -> routing.Decision:
        """The decision, or a refusal where the password is missing. Inside CONNECT, the CONNECT's password holds."""
        users = runtime.access.users
        if users is None or arrival.connect_target is not None or not isinstance(decision, _FOR_USERS):
            return decision
        if head.method != b"CONNECT" and head.target.startswith(b"/"):
            return routing.Refuse(403, "proxy.auth_file asks for a password, which only a proxy's client can send")
        field = head.headers.get(b"proxy-authorization")
        try:
            user = users.check(field, self.address)
        except TooManyPasswords:
            runtime.services.counters.add(Counter.PASSWORDS_PUT_OFF)
            return routing.Refuse(429, f"too many passwords from {self.address} at a time (proxy.auth_file)")
        if user is None:
            if field is None:
                return routing.Refuse(407, "user and password, please (proxy.auth_file)")
            runtime.services.counters.add(Counter.WRONG_PASSWORDS)
            name = one_line(claimed_user(field))
            self.log_repeated(runtime.repeated, "password", "wrong password for %s (proxy.auth_file)", name)
            return routing.Refuse(407, f"wrong password for {name} (proxy.auth_file)")
        self.is_user(users.line_of(user))
        return decision

    def log_repeated(self, repeated: PerAddress, kind: str, message: str, *arguments: object) -> None:
        """Log an event that clients can cause at will; rate-limited by kind and address."""
        repeated.write(logging.INFO, f"{kind} {self.address}", f"%s: {message}", self.address, *arguments)
