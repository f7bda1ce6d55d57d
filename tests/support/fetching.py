"""Everything around `fetching/` without a network: a real cache, origins that follow a script, clients in memory.

The real `Exchange`, `BodyReader` and `Reply` run on streams in memory. A filler runs in the thread that starts it, so a
test sees what it has done.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, Union, cast

from cache import Cache, Claim, Hit, Lead
from fetching.authorization import Authorization
from fetching.cacheable_request import CacheableRequest
from fetching.far_ranges import FarRanges
from fetching.filler import Services
from fetching.grants import Grants, Kind
from fetching.naming import Name
from fetching.negative import NegativeAnswers
from fetching.negative_answer import NegativeAnswer
from fetching.origin_query import OriginQuery
from fetching.origin_relay import OriginRelay
from fetching.recent import Background, Deliveries, SharedTimes
from fetching.recovery import Recovery
from fetching.repositories import Repositories
from fetching.shared_answers import SharedAnswers
from fetching.stored_answer import StoredAnswer
from monitoring.metrics import Counter, Counters
from net.addresses import Reach, Scope
from net.body import BodyReader
from net.response import Reply
from net.stream import Stream
from protocol import http1
from protocol.freshness import FreshnessRules
from protocol.headers import Field, Headers
from protocol.http1 import Authority, RequestHead, ResponseHead, Target
from protocol.request_fields import DEFAULT
from storage.record import Digest, Metadata
from storage.shared_table import SharedNumbers, SharedTable
from storage.store import Key
from transfers.fill import Fill
from upstream.dialling import NoAnswer, UpstreamError
from upstream.exchange import Exchange, Hop
from upstream.origin_connection import Origin, OriginConnection, OriginResponse
from upstream.public_tokens import PublicTokens
from upstream.rate_limits import RateLimits
from upstream.request import Request

HOST = "some.thing"
PATH = "/pool/x.deb"
URL = f"https://{HOST}{PATH}"
NAME = f"https/{HOST}{PATH}"
CLIENT = ("192.0.2.1", "")
TOKEN = (b"Authorization", b"Bearer t")
MINUTE = 60.0
_MANY = 16  # slots of shared times


@dataclass(frozen=True)
class Answer:
    """What an origin answers: the body's `length` is announced, or nothing is; the connection ends after the body."""

    status: int = 200
    fields: Tuple[Field, ...] = ()
    body: bytes = b""
    length: Optional[int] = -1  # -1: that of the body; None: the end of the connection ends it
    scope: Scope = Scope.ALL

    def head(self) -> ResponseHead:
        """Its head, with Content-Length where that is announced."""
        length = len(self.body) if self.length == -1 else self.length
        announced = [] if length is None or self.status == 304 else [(b"Content-Length", b"%d" % length)]
        return ResponseHead(self.status, b"", 1, Headers([*self.fields, *announced]))


def ok(body: bytes, *fields: Field) -> Answer:
    """A 200 with this body."""
    return Answer(200, fields, body)


def rest_of(body: bytes, offset: int, *fields: Field) -> Answer:
    """The 206 to a request for the bytes from `offset` on."""
    span = (b"Content-Range", b"bytes %d-%d/%d" % (offset, len(body) - 1, len(body)))
    return Answer(206, (span, *fields), body[offset:])


class _FromOrigin:
    """An origin's end of a connection: its bytes, then its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.timeout = MINUTE

    def readinto(self, view: memoryview) -> int:
        """The next bytes; 0 at the end."""
        piece, self._data = self._data[: len(view)], self._data[len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    read_much = readinto

    @property
    def buffered(self) -> int:
        """All of it has come."""
        return len(self._data)

    def start_of_buffer(self, count: int) -> bytes:
        """The next bytes; they stay."""
        return self._data[:count]

    def fill(self, _: float) -> bool:
        """No more comes."""
        return False


class FakeOrigins:
    """Answers each request with the next of `answers`, or raises it; `asked` are the requests."""

    def __init__(self, *answers: Union[Answer, UpstreamError]) -> None:
        self.answers = list(answers)
        self.asked: List[Request] = []
        self.kept: List[bool] = []  # of each exchange that has ended, whether its connection may be kept
        self.does_not_answer: Optional[NoAnswer] = None

    def exchange(self, request: Request) -> Exchange:
        """See Origins.exchange."""
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, UpstreamError):
            raise answer
        head = answer.head()
        stream = _FromOrigin(answer.body)
        body = BodyReader(
            cast(Stream, stream), http1.response_framing(request.method, head), sender=http1.Sender.ORIGIN
        )
        response = _Response(head, body)
        connection = _Connection(
            stream, answer.scope, Origin(request.target.scheme, request.target.authority, request.reach)
        )
        return Exchange(
            cast(OriginConnection, connection),
            cast(OriginResponse, response),
            request,
            MINUTE,
            lambda _, reusable: self.kept.append(reusable),
        )

    def follow(self, request: Request, begun: Optional[Exchange] = None) -> Exchange:
        """See Origins.follow; without loops."""
        hops: Tuple[Hop, ...] = ()
        while True:
            exchange, begun = begun or self.exchange(request), None
            exchange.hops = hops
            target = exchange.redirect()
            if target is None:
                return exchange
            exchange.close()
            hops = (*hops, Hop(exchange.head, target, exchange.scope))
            request = request.redirected(target)

    def away(self, target: Target) -> Optional[NoAnswer]:
        """See Origins.away."""
        return self.does_not_answer

    def opens(self, target: Target) -> bool:
        """Nothing is open to everybody."""
        return False

    def fields(self, *names: bytes) -> List[Tuple[Optional[bytes], ...]]:
        """These fields of each request."""
        return [tuple(request.headers.get(name) for name in names) for request in self.asked]


@dataclass
class _Response:
    head: ResponseHead
    body: BodyReader

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _Connection:
    stream: _FromOrigin
    scope: Scope
    origin: Origin
    request_incomplete: bool = False


class FakeClient:
    """A client's end of a connection. `reply` answers its request."""

    def __init__(self, head: RequestHead) -> None:
        self._sent = b""
        self.takes_files = False  # whether the kernel may send files, and nothing encrypts
        self.cut = False  # the connection was closed so that the client notices
        self.reply = Reply(cast(Stream, self), head, b"1.1 dduct")

    def send(self, data: Union[bytes, memoryview]) -> None:
        """Take what is sent."""
        self._sent += bytes(data)

    def close_abruptly(self) -> None:
        """See Stream.close_abruptly."""
        self.cut = True

    reset = close_abruptly

    @property
    def head(self) -> ResponseHead:
        """The head that was sent."""
        return http1.parse_response(self._sent.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")

    @property
    def body(self) -> bytes:
        """What was sent after the head, framing included."""
        return self._sent.partition(b"\r\n\r\n")[2]

    def got(self, name: bytes) -> Optional[bytes]:
        """A field of the response."""
        return self.head.headers.get(name)

    @property
    def cache_status(self) -> str:
        """Cache-Status, without dduct's name."""
        return (self.got(b"cache-status") or b"").decode().partition("; ")[2]


class Around:
    """One cache and the origins of its objects."""

    def __init__(self, directory: Path, *answers: Union[Answer, UpstreamError]) -> None:
        self.cache = Cache(directory / "files", timeout=lambda: 20.0)
        self.origins = FakeOrigins(*answers)
        self.counters = Counters()
        self.grown: List[int] = []
        times, self.ending = SharedTimes(_MANY), threading.Event()
        shared = SharedTable(_MANY)
        self.services = Services(
            cache=self.cache,
            origins=cast(Any, self.origins),
            freshness=FreshnessRules(),
            grants=Grants(MINUTE, shared, Kind.OBJECT),
            known=Grants(MINUTE, shared, Kind.NAME),
            names=DEFAULT,
            public_tokens=PublicTokens(shared),
            repositories=Repositories(shared),
            rate_limits=RateLimits(SharedNumbers(4), 0),
            ask_anonymously=True,
            counters=self.counters,
            via=b"1.1 dduct",
            spawn=_run_at_once,
            deliveries=Deliveries(times, MINUTE),
            background=Background(times, _run_at_once, self.ending),
            negatives=NegativeAnswers(SharedAnswers(short=1, long=1, marks=_MANY), MINUTE),
            grown=self.grown.append,
        )

    def request(
        self,
        *fields: Field,
        method: bytes = b"GET",
        digest: Optional[Digest] = None,
        host: str = HOST,
        reach: Reach = Reach.NOTHING,
        query: Optional[str] = None,
        signature: str = "",
    ) -> CacheableRequest:
        """A client's request."""
        target = Target("https", Authority(host, 443), PATH, query)
        head = RequestHead(method, PATH.encode(), 1, Headers(fields))
        return CacheableRequest(self.services, head, target, Name(f"https/{host}{PATH}", digest, signature), reach)

    def claim(self, request: CacheableRequest) -> Claim:
        """What the cache has for it."""
        return self.cache.claim(request.key)

    def lead(self, request: CacheableRequest) -> Fill:
        """The fill that this request leads."""
        claim = self.claim(request)
        assert isinstance(claim, Lead), claim
        return claim.fill

    def hit(self, request: CacheableRequest) -> Hit:
        """What is stored; the caller closes its entry."""
        hit = self.cache.lookup(request.key)
        assert hit is not None
        return hit

    def put(self, body: bytes, metadata: Metadata, key: Key) -> None:
        """Store an object."""
        claim = self.cache.claim(key)
        assert isinstance(claim, Lead), claim
        try:
            claim.fill.start(metadata, len(body))
            claim.fill.write(memoryview(body))
            assert claim.fill.publish()
            claim.fill.make_durable()
        finally:
            claim.fill.close()

    def stored(self, key: Key) -> Optional[bytes]:
        """The bytes of an object; None where it is not stored."""
        hit = self.cache.lookup(key)
        if hit is None:
            return None
        try:
            view = memoryview(bytearray((hit.entry.length or 0) + 1))
            return bytes(view[: hit.entry.read_at(view, 0)])
        finally:
            hit.entry.close()

    def count(self, counter: Counter) -> int:
        """The value of a counter."""
        return self.counters.value(counter)


class Answering:
    """The parts that answer one request, and its client."""

    def __init__(self, around: Around, request: CacheableRequest) -> None:
        services = around.services
        self.request = request
        self.client = FakeClient(request.head)
        self.reply = self.client.reply
        self.query = OriginQuery(services, request, self.reply.interim)
        self.relay = OriginRelay(services, self.reply, request, self.query)
        self.authorization = Authorization(services, request, self.query, self.relay)
        self.recovery = Recovery(services, request, self.query, self.authorization.grant)
        self.far = FarRanges(services, request, self.query)
        self.answer = StoredAnswer(services, self.reply, request, self.relay, self.recovery, self.far, CLIENT)
        self.negative = NegativeAnswer(services, self.reply, request, time.time())


def meta(*fields: Tuple[str, str], url: str = URL, age: float = 0.0, **more: Any) -> Metadata:
    """Of an object that was fetched at the epoch's second 1000."""
    return replace(Metadata(url, fields, 1000.0, age=age), **more)


def sha256_of(body: bytes) -> Digest:
    """The digest of these bytes."""
    return Digest("sha256", hashlib.sha256(body).hexdigest())


def _run_at_once(_: str, work: Callable[[], None]) -> None:
    work()
