"""Replace experts while the layer serves: copies go to spare slots, the switch is one assignment.

The old placement's slots are never written to. What a switch leaves unused is overwritten only once the last forward
that began before the switch has returned.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from janus.errors import JanusError
from janus.experts.loading import Source
from janus.experts.slots import ExpertSlots
from janus.experts.view import Move, View

Progress = Callable[[int, int], object]  # experts copied, experts to copy
POLL_S = 0.02  # how often a waiting job looks whether it was cancelled


class Replacement:
    """One placement being prepared beside the one in use; made by `begin_replace` of a layer.

    Args:
        slots: of the layer.
        view: of the new placement.
        moves: what is copied, in this order.
        source: of the weights.
        files: closed at the end.
        unused: set once no forward uses a slot that an earlier switch freed.
        progress: called from the copying thread after each expert.

    Attributes:
        moves: as given.
        bytes: copied in all; no memory beyond the spare slots and one expert is taken.
        error: why it failed, or None.
    """

    def __init__(
        self,
        slots: ExpertSlots,
        view: View,
        moves: tuple[Move, ...],
        source: Source,
        files: ExitStack,
        unused: tuple[threading.Event, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        self.slots, self.view, self.moves = slots, view, moves
        self.bytes = len(moves) * sum(p[0].nbytes for p in slots.parameters(recurse=False))
        self.error: BaseException | None = None
        self._source, self._files, self._unused, self._progress = source, files, unused, progress
        self._where = [p.data_ptr() for p in slots.parameters()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janus-replace", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether copies are still being made."""
        return self._thread.is_alive()

    @property
    def done(self) -> bool:
        """Whether the new placement can be switched to: `commit` of the layer will not wait."""
        return not self.running and self.error is None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until all copies are made, or the time is up.

        Returns:
            `done`: False when the time is up; the job goes on, and so does the old placement.

        Raises:
            JanusError: ``layer.replace`` if the job failed or was cancelled; the old placement goes on.
        """
        self._thread.join(timeout_s)
        if self.error is not None:
            raise JanusError(
                "layer.replace", f"the slots could not be replaced, the old placement goes on: {self.error!r}"
            ) from self.error
        return self.done

    def cancel(self, timeout_s: float | None = None) -> bool:
        """Give up, after the expert being copied; the old placement goes on.

        Returns:
            Whether the copying has ended; until then the layer takes no other placement.
        """
        self._stop.set()
        self._thread.join(timeout_s)
        if self.error is None and not self.running:
            self.error = InterruptedError("it was cancelled")
        return not self.running

    def check_ready(self) -> None:
        """Refuse a switch before all copies are made, or after the layer was moved (``layer.replace``)."""
        if not self.wait(0):
            raise JanusError("layer.replace", "copies are still being made; call wait() of the job before commit()")
        if self._where != [p.data_ptr() for p in self.slots.parameters()]:
            self.error = RuntimeError("the layer's weights were moved meanwhile, by .to() or loading")
            self.wait(0)

    def _run(self) -> None:
        try:
            with self._files:
                self._copy()
        except BaseException as error:  # told to whoever waits, whatever it is
            self.error = error

    def _copy(self) -> None:
        device = self.slots.device
        for event in self._unused:
            while not event.wait(POLL_S):
                self._check_stopped()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels of those forwards may still read what is overwritten now
            with torch.cuda.stream(torch.cuda.Stream(device)):  # its copies wait for nothing, and none for them
                self._fill()
                torch.cuda.current_stream(device).synchronize()
        else:
            self._fill()

    def _fill(self) -> None:
        for count, move in enumerate(self.moves, 1):
            self._check_stopped()
            self._source.fill(self.slots, move.slot, move.expert)
            if self._progress is not None:
                self._progress(count, len(self.moves))

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise InterruptedError("it was cancelled")


class Changes:
    """What is going on with a layer's placement, kept off the path of its forwards; a copy of a layer starts afresh."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of who begins and commits; a forward takes none
        self.job: Replacement | None = None
        self.unused: list[tuple[threading.Event, torch.Tensor | None]] = []

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(self), ()

    def begin(self, make: Callable[[tuple[threading.Event, ...]], Replacement]) -> Replacement:
        """Start a job, unless one is going on."""
        with self.lock:
            self.check_idle()
            self.job = make(tuple(event for event, _ in self.unused))
            return self.job

    def check_idle(self) -> None:
        """Refuse what would overwrite slots a job is filling (``layer.busy``)."""
        if self.job is not None and (self.job.running or self.job.error is None):
            raise JanusError(
                "layer.busy", "another placement is being loaded into this layer; commit() or cancel() its job first"
            )

    def retire(self, view: View) -> None:
        """Have the next job wait until no forward holds this view: a forward lets go of it when it returns."""
        gone = threading.Event()
        weakref.finalize(view, gone.set).atexit = False
        # What earlier switches freed the job just committed has waited for. The table outlives the view: kernels that
        # read it may still be queued.
        self.unused = [(gone, view.to_slot_R)]
