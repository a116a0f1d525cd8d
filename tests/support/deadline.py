"""A limit on the time that a test gives a command, so that one that hangs fails with the name of its case."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hangs(BaseException):
    """No reader catches it, as one would a TimeoutError, which is an OSError."""


@contextmanager
def deadline(seconds: int = 20) -> Iterator[None]:
    """Raise `Hangs` in a block that takes so many seconds of processor time, or six times as many by the clock."""

    def stop(*_: object) -> None:
        raise Hangs

    timers = {signal.SIGVTALRM: (signal.ITIMER_VIRTUAL, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 6 * seconds)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
