"""The requests sent to the origin for one fill: the leader's and, after a long wait, one follower's.

An origin may be slow to answer one particular request, or hang up on it. So one follower whose request differs may ask
as well. The first of the two to get an answer owns the fill: it starts, declines or renews it. The other one follows.
"""

from __future__ import annotations

import threading
from typing import Callable, Hashable, List, Optional

from monitoring.details import Detail

Question = Hashable  # all parts of a request that are sent to the origin


_MAX_RETRIES = 2  # of all followers together, after their leader has failed


class Retries:
    """The number of requests that the followers of a failed leader may still send, all together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards `_left`
        self._left = _MAX_RETRIES

    def take(self) -> bool:
        """Use up one retry; whether one was left."""
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def exhausted(self) -> bool:
        """Whether no retry is left: another claim would only fail again."""
        with self._lock:
            return self._left <= 0


class Asking:
    """The requests sent for one fill: one or two."""

    def __init__(self) -> None:
        self.retries = Retries()  # set by the leader only, before it asks
        self.declined_for = Detail.BUSY  # why the fill was declined
        self._lock = threading.Lock()  # guards the three attributes below
        self._questions: List[Question] = []
        self._waiting = 0  # requests without an answer yet
        self._answered = False

    def lead(self, question: Question, fail: Callable[[object], None], close: Callable[[], None]) -> Asker:
        """Register the leader's request. `fail` and `close` are the fill's; its owner or the last asker calls them."""
        with self._lock:
            self._questions.append(question)
            self._waiting += 1
        return Asker(self, fail, close)

    def join(self, question: Question, fail: Callable[[object], None], close: Callable[[], None]) -> Optional[Asker]:
        """Register a follower's request; None where it would be the same request, too late, or the third."""
        with self._lock:
            if not self._waiting or self._answered or len(self._questions) > 1 or question in self._questions:
                return None
            self._questions.append(question)
            self._waiting += 1
        return Asker(self, fail, close)

    def differs(self, question: Question) -> bool:
        """Whether no asker has sent this request yet."""
        with self._lock:
            return question not in self._questions

    def win(self) -> bool:
        """Record an answer; whether it is the first. Only an Asker calls this."""
        with self._lock:
            first, self._answered = not self._answered, True
            return first

    def leave(self) -> bool:
        """Record that one asker has finished; whether no asker has or awaits an answer. Only an Asker calls this."""
        with self._lock:
            self._waiting -= 1
            return not self._waiting and not self._answered


class Asker:
    """One of the askers; `close` must be called on every path."""

    def __init__(self, asking: Asking, fail: Callable[[object], None], close: Callable[[], None]) -> None:
        self._asking = asking
        self._fail = fail
        self._close = close
        self._has_finished = False
        self._has_won = False

    def answered(self) -> bool:
        """Record this asker's answer; whether this asker now owns the fill, like a leader."""
        self._has_won = self._asking.win()
        return self._has_won

    def fail(self, cause: object) -> bool:
        """Report a failure; the fill fails unless the other asker has or awaits an answer. Whether it has failed."""
        if not self._leave():
            return False
        self._fail(cause)
        self._close()
        return True

    def hand_on(self, end: Callable[[], None]) -> None:
        """Report that the client has gone: followers claim again, unless the other asker has or awaits an answer."""
        if self._leave():
            end()
            self._close()

    def close(self) -> None:
        """Finish, and close the fill if this asker owns it or is the last one. Idempotent."""
        if self._leave():
            self._close()

    def _leave(self) -> bool:
        if self._has_finished:
            return False
        self._has_finished = True
        return self._asking.leave() or self._has_won
