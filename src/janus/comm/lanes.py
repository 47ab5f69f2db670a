"""The two lanes of an exchange, out and home: work that is done at once, or beside the caller and waited for later."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

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

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future | None = None

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, after everything submitted before."""
        if self._last is None or self._last.done():
            return call()
        return self.submit(call).wait()

    def submit(self, call: Callable[[], T]) -> Pending[T]:
        """Start `call` after everything submitted before."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"janus-{self._name}")
        future = self._thread.submit(call)
        self._last = future
        return Pending(future)

    def close(self) -> None:
        """End the thread; what waits on a connection ends when the connections are broken."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
