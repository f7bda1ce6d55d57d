"""The client of one connection: its address, its certificate and its user, and whether it may go on."""

from __future__ import annotations

import logging
from typing import Optional

from fetching.recent import Client
from monitoring.log import PerAddress
from monitoring.log_text import one_line
from monitoring.metrics import Counter
from net.arrival import Where
from protocol.http1 import RequestHead
from proxy import routing
from proxy.access import Access, UserLine, claimed_user
from proxy.password_queue import TooManyPasswords
from proxy.routing import Fetch, Intercept, Tunnel
from proxy.runtime import Household


class SessionClient:
    """`certified`: it has shown a certificate of ours. `who` is how the log calls it: its address, behind its user."""

    def __init__(self, address: str, certified: bool) -> None:
        self.address = self.who = address
        self.user: Optional[UserLine] = None  # who has asked last, where that takes a password
        self.why_barred: Optional[str] = None
        self._certified = certified
        self._judged_by: Optional[Household] = None  # what `why_barred` is about

    @property
    def asker(self) -> Client:
        """Address and user: what tells clients apart that are given objects."""
        return self.address, "" if self.user is None else self.user.name

    def is_user(self, line: Optional[UserLine]) -> None:
        """A user has shown a password."""
        if line is not self.user:
            self.user = line
            self.who = self.address if line is None else f"{one_line(line.name.encode())}@{self.address}"

    def barred(self, access: Access, where: Where, tunnelling: bool) -> Optional[str]:
        """Why it may not go on with what it has begun; None where it may."""
        if self.address not in access.clients:
            return f"{self.address} is not in proxy.allow_clients"
        if access.certificates and where.encrypted and not self._certified:
            return "it has shown no certificate (proxy.require_client_cert)"
        if access.users is None:
            return None
        if self.user is not None:
            name = one_line(self.user.name.encode())
            return None if access.users.holds(self.user) else f"user {name} is not the same in proxy.auth_file"
        if where.inside is not None or tunnelling:
            return "no user has asked for it (proxy.auth_file)"
        return None  # the next request will be asked for a password

    def is_barred(self, house: Household, where: Where) -> bool:
        """Whether `house` does not allow this connection; looked at once for each house."""
        if self._judged_by is not house:
            self._judged_by, self.why_barred = house, self.barred(house.access, where, tunnelling=False)
        return self.why_barred is not None

    def authenticated(
        self, head: RequestHead, decision: routing.Decision, house: Household, where: Where
    ) -> routing.Decision:
        """The decision, unless it takes a password that is not there. Inside CONNECT, that one was for all."""
        users = house.access.users
        if users is None or where.inside is not None or not isinstance(decision, (Tunnel, Intercept, Fetch)):
            return decision
        if head.method != b"CONNECT" and head.target.startswith(b"/"):
            return routing.Refuse(403, "proxy.auth_file asks for a password, which only a proxy's client can send")
        field = head.headers.get(b"proxy-authorization")
        try:
            user = users.check(field, self.address)
        except TooManyPasswords:
            house.services.counters.add(Counter.PASSWORDS_PUT_OFF)
            return routing.Refuse(429, f"too many passwords from {self.address} at a time (proxy.auth_file)")
        if user is None:
            if field is None:
                return routing.Refuse(407, "user and password, please (proxy.auth_file)")
            house.services.counters.add(Counter.WRONG_PASSWORDS)
            name = one_line(claimed_user(field))
            self.tell(house.repeated, "password", "wrong password for %s (proxy.auth_file)", name)
            return routing.Refuse(407, f"wrong password for {name} (proxy.auth_file)")
        self.is_user(users.line_of(user))
        return decision

    def tell(self, repeated: PerAddress, kind: str, message: str, *arguments: object) -> None:
        """Log what a client may cause as often as it likes; of one kind and address there is a line now and then."""
        repeated.write(logging.INFO, f"{kind} {self.address}", f"%s: {message}", self.address, *arguments)
