"""The two lanes of an exchange, out and home: work that is done at once, or beside the caller and waited for later."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from janus.errors import JanusError

T = TypeVar("T")


class Pending(Generic[T]):
    """What an ``*_async`` call returns: the call goes on by itself, `wait` ends it.

    Example:
        >>> lane = Lane("out")
        >>> pending = lane.submit(lambda: 3)
        >>> pending.wait(), pending.done
        (3, True)
        >>> lane.close()
    """

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def wait(self) -> T:
        """The result of the call; raises what the call raised. Bounded by the deadline of the call's phase."""
        return self._future.result()

    @property
    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._future.done()


class Lane:
    """Runs calls one after another: in the caller's thread when nothing is under way, else in a thread of its own.

    The thread is a daemon: a program that ends does not wait for a call that waits for a peer.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._last: Future | None = None

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, after everything submitted before."""
        if self._last is None or self._last.done():
            return call()
        return self.submit(call).wait()

    def submit(self, call: Callable[[], T]) -> Pending[T]:
        """Start `call` after everything submitted before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name=f"janus-{self._name}")
            self._thread.start()
        future: Future[T] = Future()
        self._last = future
        self._calls.put((future, call))
        return Pending(future)

    def finish(self, seconds: float) -> None:
        """Wait for what was submitted, for `seconds`; how it ended its caller is told."""
        if self._last is not None:
            wait([self._last], seconds)

    def close(self, seconds: float = 1.0) -> None:
        """End the thread within `seconds`, and refuse what has not begun; what waits on a broken connection ends by itself."""
        if self._thread is None:
            return
        while not self._calls.empty():
            entry = self._calls.get()
            if entry is not None:
                entry[0].set_exception(JanusError("comm.closed", "the exchange was closed before this call began"))
        self._calls.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
