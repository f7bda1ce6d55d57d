"""Small objects in memory, and the answers to plain requests for them: nothing here waits for an origin.

An object is looked up once, and then validated by one stat(2) for each poll iteration. It stays in memory while it is
unchanged, fresh and in use.
"""

from __future__ import annotations

import time
from typing import Callable, Optional, Tuple, TypeVar, Union

from cache import Hit
from fetching import other_hit, small_hit
from fetching.cacheable_request import CacheableRequest
from fetching.filler import Services, key_of
from fetching.negative_answer import answer_plain
from fetching.small_hit import Answer, PlainRequest, SmallHit
from protocol.remembering import Doorkeeper, Generations
from storage.glance import read_without_waiting
from storage.record import Unstorable
from storage.store import Key

_MAX_OBJECTS = 4096  # in each of two generations
_MAX_HELD = 16 * 1024 * 1024  # bytes of bodies, likewise

_Found = TypeVar("_Found")


class MemoryCache:
    """Answers of small objects. The poller's thread and session threads use it at once.

    `iteration` is the start of a poll iteration (`time.monotonic()`), None in a session thread. An object stays valid
    for its whole iteration: all requests of the iteration had begun to arrive before it was validated.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._disk = services.cache.disk
        # Operations on it are atomic; a lost one costs a lookup.
        self._objects: Generations[str, SmallHit] = Generations(_MAX_OBJECTS, _MAX_HELD)
        self._doorkeeper = Doorkeeper(_MAX_OBJECTS)

    def answer(self, request: PlainRequest, iteration: Optional[float] = None) -> Optional[Answer]:
        """The response to a request; None where it takes more than a look at a small object's files.

        In a session thread only objects in memory are used: what has to be looked up is looked up by `CachedFetch`.
        """
        known = self._objects.get(request.name.path)
        if known is not None and not known.suits(request):
            return None
        if iteration is None:
            return None if known is None else self._answer_in_thread(known)
        if known is not None and known.validated_at == iteration:
            return known.last[2]
        if not self._disk.may_poll(iteration):
            return None
        return self._polled(self._answer_from_disk, known, request, iteration)

    def answer_other(self, request: CacheableRequest, iteration: float) -> Optional[Answer]:
        """The response of the poller's thread to a request that is not plain (`fetching.other_hit`), or None."""
        if self._disk.may_poll(iteration):
            return self._polled(self._look_at, request)
        return None

    def _look_at(self, request: CacheableRequest) -> Optional[Answer]:
        try:
            hit = self._services.cache.look(request.key)
        except Unstorable:
            return None
        if hit is None:
            return None
        try:
            return other_hit.answer(self._services, request, hit)
        finally:
            hit.entry.close()

    def snapshot(self) -> Tuple[int, int]:
        """How many objects are in memory, and the bytes of their bodies."""
        return len(self._objects), self._objects.weight

    def _answer_in_thread(self, known: SmallHit) -> Optional[Answer]:
        try:
            with self._disk.operation():
                unchanged = known.unchanged(time.time())
        except Unstorable:
            return None
        now = time.time()  # the disk may have taken its time
        if unchanged and now < known.until:
            return known.answer(now)
        self._objects.drop(known.name.path)
        return None

    def _polled(self, operation: Callable[..., Optional[_Found]], *arguments: object) -> Optional[_Found]:
        """The result of a disk operation of the poller's thread; None if it took long: it may be out of date."""
        try:
            found = self._disk.poll(operation, *arguments)
        except Unstorable:
            return None
        return None if self._disk.is_slow(time.monotonic()) else found

    def _first(self, request: PlainRequest) -> Optional[Answer]:
        """The response to a request for an object that is not worth remembering yet, if a glance at its file suffices.

        Most objects are asked for once: this is the shortest way from a request to its bytes.
        """
        services, now = self._services, time.time()
        try:
            seen = services.cache.glance(key_of(request.name), now, small_hit.SMALL)
        except Unstorable:
            return None
        if seen is None:
            return None
        answer = small_hit.first_answer(seen, request, services.via, services.freshness, now)
        if answer is None or not answer.guessed:
            return answer
        due = seen.summary.fetched_at + services.freshness.recheck
        return answer if services.background.next_one(answer.name, due) > now else None

    def _answer_from_disk(self, known: Optional[SmallHit], request: PlainRequest, iteration: float) -> Optional[Answer]:
        """The response, after a look at the object's files."""
        first = known is None and not self._doorkeeper.knows(request.name.path)
        answer = self._first(request) if first else None
        if answer is not None:
            return answer
        found = known if known is not None and known.unchanged(time.time()) else self._look_up(request, first)
        if found is None or isinstance(found, Answer):
            self._objects.drop(request.name.path)
            return found
        if found is not known and not first:
            self._objects.put(found.name.path, found, found.length)
        found.validated_at = iteration
        return found.answer(time.time())

    def _look_up(self, request: PlainRequest, first: bool) -> Union[SmallHit, Answer, None]:
        """The object; where none is stored, a negative answer, if one is kept."""
        key = key_of(request.name)
        try:
            found = None if first else self._glance(key, request)
            if found is not None:
                return found
            hit = self._services.cache.look(key)
        except Unstorable:
            return None
        if hit is None:
            return answer_plain(self._services, request)
        try:
            return self._read(hit, request)
        finally:
            hit.entry.close()

    def _glance(self, key: Key, request: PlainRequest) -> Optional[SmallHit]:
        """The object, if a glance at its file suffices. Raises Unstorable."""
        services, now = self._services, time.time()
        seen = services.cache.glance(key, now, small_hit.SMALL)
        if seen is None:
            return None
        made = small_hit.made_of(seen, request, services.via, services.freshness, now)
        if made is None or not made.suits(request):
            return None
        if made.guessed:
            due = made.fetched_at + services.freshness.recheck
            made.until = min(made.until, services.background.next_one(request.name.path, due))
        return made if now < made.until else None

    def _read(self, hit: Hit, request: PlainRequest) -> Optional[SmallHit]:
        if hit.metadata is None or not small_hit.may_be_small(hit):
            return None
        body = read_without_waiting(hit.entry.fileno(), hit.entry.record.length)
        if body is None:
            return None
        due = hit.metadata.fetched_at + self._services.freshness.recheck
        looked_at = self._services.background.next_one(request.name.path, due)
        made = small_hit.make(hit, request, body, self._services.via, self._services.freshness, looked_at)
        return made if made is not None and made.suits(request) and time.time() < made.until else None
