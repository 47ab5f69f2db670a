"""Small JSON values in the rendezvous store, under one prefix; every call comes back in bounded time."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

_CALL_S = 5.0  # one store call takes < 1 ms; a store whose host is stopped never answers
_STOP_S = 0.25  # `stop` asks the store too, and a file store is one lock for all ranks
_POLL_S = (0.005, 0.05)  # first pause between two looks, and the longest


class StoreGone(RuntimeError):
    """The store does not answer: its host has ended, or is stopped."""


class Board:
    """A notice board: each rank pins JSON values under its own keys, everybody reads them.

    Args:
        store: a `torch.distributed` store.
        prefix: goes before every key.
        call_s: bound of one call; after a call that did not answer, the next ones fail at once.
    """

    def __init__(self, store: Any, prefix: str, call_s: float = _CALL_S) -> None:
        self._store, self.prefix, self._call_s = store, prefix, call_s
        self._gone = False

    def put(self, key: str, value: Any) -> None:
        """Pin `value` under `key`.

        Raises:
            StoreGone: the store does not answer.
        """
        text = json.dumps(value)
        self._ask(lambda: self._store.set(f"{self.prefix}/{key}", text))

    def read(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values that are there now; keys without one are left out."""
        return self._ask(lambda: {key: self._get(key) for key in keys if self._has(key)})

    def wait(self, keys: Iterable[str], deadline: float, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Read `keys` until all are there, `deadline` (`time.monotonic`) has passed or `stop()`; the absent are left out."""
        wanted, found, pause = list(keys), {}, _POLL_S[0]
        ask_stop = time.monotonic() + _STOP_S
        while True:
            found |= self.read(key for key in wanted if key not in found)
            now = time.monotonic()
            if len(found) == len(wanted) or now >= deadline:
                return found
            if now >= ask_stop:
                if stop():  # what was pinned just before is still told
                    return found | self.read(key for key in wanted if key not in found)
                ask_stop = now + _STOP_S
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])

    def count(self, key: str) -> int:
        """Add one to the number under `key` and return it."""
        return self._ask(lambda: self._store.add(f"{self.prefix}/{key}", 1))

    def _ask(self, call: Callable[[], Any]) -> Any:
        if self._gone:
            raise StoreGone("the rendezvous store has failed before")
        try:
            return _bounded(call, self._call_s)
        except StoreGone:
            self._gone = True
            raise

    def _has(self, key: str) -> bool:
        return self._store.check([f"{self.prefix}/{key}"])

    def _get(self, key: str) -> Any:
        return json.loads(self._store.get(f"{self.prefix}/{key}"))


def _bounded(call: Callable[[], Any], seconds: float) -> Any:
    """Run `call` beside this thread and wait `seconds` for it: a store client has no deadline of its own."""
    box: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((True, call()))
        except Exception as error:
            box.put((False, error))

    threading.Thread(target=run, daemon=True, name="janus-store").start()
    try:
        done, value = box.get(timeout=seconds)
    except queue.Empty:
        raise StoreGone(f"the rendezvous store has not answered for {seconds} s") from None
    if done:
        return value
    if isinstance(value, (RuntimeError, OSError)):  # torch.distributed's own errors are RuntimeErrors
        raise StoreGone(f"the rendezvous store failed: {value}") from value
    raise value
