"""Who asks the origin on behalf of a fill: its leader and, where that waits for long, one other.

A request may itself be what its origin is slow to, or hangs up on. So one follower whose request differs may ask as
well. The first of the two to be answered has the fill, to begin, decline or renew it. The other follows.
"""

from __future__ import annotations

import threading
from typing import Callable, Hashable, List, Optional

from monitoring.details import Detail

Question = Hashable  # all of a request that its origin gets


_MAX_RETRIES = 2  # after a leader's failure, whoever makes them


class Retries:
    """How often those who followed a leader that failed may still ask, all together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the number left
        self._left = _MAX_RETRIES

    def take(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def exhausted(self) -> bool:
        """Whether nobody may ask any more: to claim again would only fail once more."""
        with self._lock:
            return self._left <= 0


class Asking:
    """The requests that have been sent for one fill: one, or at most two."""

    def __init__(self) -> None:
        self.retries = Retries()  # set by the leader alone, before it asks
        self.declined_for = Detail.BUSY  # why the fill was declined, once it was
        self._lock = threading.Lock()  # guards the three below
        self._questions: List[Question] = []
        self._waiting = 0  # for their answer
        self._answered = False

    def lead(self, question: Question, fail: Callable[[object], None], close: Callable[[], None]) -> Asker:
        """The leader asks. `fail` and `close` are the fill's, and called by whoever of the two is its last."""
        with self._lock:
            self._questions.append(question)
            self._waiting += 1
        return Asker(self, fail, close)

    def join(self, question: Question, fail: Callable[[object], None], close: Callable[[], None]) -> Optional[Asker]:
        """A follower asks, too; None where that would be the same again, is too late, or is one too many."""
        with self._lock:
            if not self._waiting or self._answered or len(self._questions) > 1 or question in self._questions:
                return None
            self._questions.append(question)
            self._waiting += 1
        return Asker(self, fail, close)

    def differs(self, question: Question) -> bool:
        """Whether nobody has asked this yet."""
        with self._lock:
            return question not in self._questions

    def win(self) -> bool:
        """Whether this answer is the first; for an Asker."""
        with self._lock:
            first, self._answered = not self._answered, True
            return first

    def leave(self) -> bool:
        """One of those that asked is through; whether none of them has the fill or will have it. For an Asker."""
        with self._lock:
            self._waiting -= 1
            return not self._waiting and not self._answered


class Asker:
    """One of those who ask; `close` on every path."""

    def __init__(self, asking: Asking, fail: Callable[[object], None], close: Callable[[], None]) -> None:
        self._asking = asking
        self._fail = fail
        self._close = close
        self._has_left = False
        self._has_won = False

    def answered(self) -> bool:
        """There is an answer: whether the fill is this one's now, to do with as a leader does."""
        self._has_won = self._asking.win()
        return self._has_won

    def fail(self, cause: object) -> bool:
        """There is no answer; the fill fails unless the other waits for one, or has it. Whether it has failed."""
        if not self._leave():
            return False
        self._fail(cause)
        self._close()
        return True

    def hand_on(self, end: Callable[[], None]) -> None:
        """Its client has gone: those who follow claim again, unless the other waits for an answer, or has it."""
        if self._leave():
            end()
            self._close()

    def close(self) -> None:
        """Through with it; the fill's last word, where it is this one's. Harmless twice."""
        if self._leave():
            self._close()

    def _leave(self) -> bool:
        if self._has_left:
            return False
        self._has_left = True
        return self._asking.leave() or self._has_won
