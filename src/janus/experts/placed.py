"""A layer's slots under a placement: filled, refilled, and replaced while the layer serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from torch import nn

from janus.errors import JanusError
from janus.experts.loading import OwnExperts, opened
from janus.experts.replacing import Changes, Progress, Replacement
from janus.experts.saving import save_as_module
from janus.experts.slots import ExpertSlots
from janus.experts.view import View, find_moves, wanted
from janus.types import Placement
from janus.types.checks import instance, integer


class PlacedSlots(nn.Module):
    """The slots of one MoE layer, and the placement they are filled for; base of `JanusMoELayer`.

    Args:
        slots: of the layer; they hold the experts of `placement` in order if `filled`.
        placement: first one.
        layer: MoE layer, counted from 0.
        instance: whose slots these are; None for all instances.
        filled: whether the slots hold their weights.
    """

    def __init__(
        self,
        slots: ExpertSlots,
        placement: Placement,
        layer: int,
        instance: int | None,
        *,
        filled: bool,
    ) -> None:
        super().__init__()
        self.slots, self.layer, self.instance = slots, layer, instance
        self.num_experts, self.staging = placement.num_experts, slots.num_slots - self._room(placement)
        self.view: View | None = None  # a forward reads it once; None while the slots hold no whole placement
        self._changes, self._keys = Changes(), [-1] * slots.num_slots
        if filled:
            stored = {number: number for number in self._wanted(placement)}
            self._note(slots, self._wanted(placement), stored)
            self.view = self._view(placement, stored)
        save_as_module(self)

    @property
    def placement(self) -> Placement:
        """In use now."""
        return self.now().placement

    def now(self) -> View:
        """The placement in use and where its slots are stored, as one object that never changes.

        Raises:
            JanusError: ``layer.empty`` while the slots do not hold a whole placement.
        """
        view = self.view
        if view is None:
            raise JanusError("layer.empty", "the slots are not filled, or loading them failed; call load_slots")
        return view

    def check_idle(self) -> None:
        """Refuse (``layer.busy``) while a replacement is under way."""
        self._changes.check_idle()

    def load_slots(
        self,
        placement: Placement,
        source: Any,
        *,
        again: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Fill the slots for a placement, reading only experts whose slot holds another one; no forward may run.

        Nothing is allocated beyond one expert where the slots are the layer's own and suffice; otherwise new ones are
        made, filled, and put in their place: the weights of one layer twice, for that time.

        Args:
            placement: of the same number of experts.
            source: a model folder, an open `Checkpoint`, a live model or experts module, or a function e -> weights by
                name. The layer's number, counted from 0, says which block of a folder or model is read.
            again: read every expert, also where the slot holds it: the source has other weights.
            progress: called with (experts read, experts to read) after each.

        Returns:
            The layer itself.

        Raises:
            JanusError: before a slot is overwritten: ``placement.type``, ``placement.experts``, ``placement.layer``,
                ``placement.instance``, ``layer.busy``, ``source.type``, ``source.layer``, ``source.experts``,
                ``checkpoint.*``; and ``source.weights`` when a function gives a wrong one. After a failure half way the
                layer refuses to run (``layer.empty``) until it is loaded again.
        """
        new, slots = self._wanted(placement), self.slots
        self.check_idle()
        old, held = ({}, {}) if again else self._held()
        found = find_moves(new, old, held, range(slots.num_slots))
        if found is None or (found[1] and slots.shared):  # what belongs to a module too is not overwritten
            slots = slots.like([-1] * (self._room(placement) + self.staging))
            found = find_moves(new, {}, {}, range(slots.num_slots))
        assert found is not None  # the room was made for it
        stored, moves = found
        with opened(source, self.layer, placement.num_experts, slots) as experts:
            experts.check(move.expert for move in moves)
            if slots is self.slots and moves:
                self.view = None
            for count, move in enumerate(moves, 1):
                experts.fill(slots, move.slot, move.expert)
                if progress is not None:
                    progress(count, len(moves))
        self._note(slots, new, stored)
        slots.verify()
        self.slots, self.view = slots, self._view(placement, stored)
        return self

    def begin_replace(
        self,
        placement: Placement,
        source: Any = None,
        *,
        progress: Progress | None = None,
    ) -> Replacement:
        """Start to copy what a placement needs into the spare slots, in a thread, while forwards go on as before.

        `commit` switches to it. The layer needs as many spare slots as there are experts to move: `staging` of the
        constructor. A captured CUDA graph keeps the placement it was captured under: capture it again after a commit.

        Args:
            placement: of the same number of experts.
            source: as in `load_slots`; default the layer's own slots, which are copied bit for bit.
            progress: called from the thread with (experts copied, experts to copy) after each.

        Returns:
            The job: `wait(timeout_s)`, `done`, `cancel()`, `moves`, `bytes`.

        Raises:
            JanusError: as `load_slots`, and ``layer.staging`` if there are too few spare slots. The layer goes on as it
                is.
        """
        new, (old, held) = self._wanted(placement), self._held(self.now())
        self.check_idle()
        free = set(range(self.slots.num_slots)) - set(held.values())
        found = find_moves(new, old, held, free)
        if found is None:
            needed = sum(old.get(number) != e for number, e in new.items())
            raise JanusError(
                "layer.staging",
                f"{needed} experts have to move into spare slots, the layer has {len(free)}; make it with staging={needed}, "
                "take a placement nearer to the one in use (janus.sched.place(previous=...)), or use load_slots",
            )
        stored, moves = found
        files = ExitStack()
        with ExitStack() as on_error:
            on_error.push(files)
            if source is None:
                experts = OwnExperts({e: held[number] for number, e in old.items()})
            else:
                experts = files.enter_context(opened(source, self.layer, placement.num_experts, self.slots))
            experts.check(move.expert for move in moves)
            after = self._view(placement, stored)
            job = self._changes.begin(
                lambda unused: Replacement(self.slots, after, moves, experts, files, unused, progress)
            )
            on_error.pop_all()
        return job

    def commit(self) -> Self:
        """Switch to the placement that `begin_replace` prepared: forwards that begin later see it and nothing else.

        Raises:
            JanusError: ``layer.replace`` if none was begun, copies are still being made, or it failed.
        """
        with self._changes.lock:
            job = self._changes.job
            if job is None:
                raise JanusError("layer.replace", "nothing to commit; begin_replace comes first")
            job.check_ready()
            self._note(self.slots, self._wanted(job.view.placement), job.view.stored)
            self._changes.retire(self.now())
            self.view = job.view  # the switch
            self._changes.job = None
        return self

    @contextmanager
    def replacing(self, placement: Placement, source: Any = None, **options: Any) -> Iterator[Replacement]:
        """`begin_replace`; at the end of the block wait and `commit`, or cancel if the block raised."""
        job = self.begin_replace(placement, source, **options)
        try:
            yield job
            job.wait()
        except BaseException:
            job.cancel()
            raise
        self.commit()

    def _wanted(self, placement: Placement) -> dict[int, int]:
        _check_fit(placement, self.num_experts, type(self).__name__)
        if self.instance is not None:
            integer(self.instance, "instance", "placement.instance", high=placement.num_instances - 1)
        return wanted(placement, self.layer, self.instance)

    def _view(self, placement: Placement, stored: dict[int, int]) -> View:
        return View.of(placement, stored, self.instance, self.slots.device)

    def _held(self, view: View | None = None) -> tuple[dict[int, int], dict[int, int]]:
        """Expert of every physical slot here, and where it is stored."""
        view = view or self.view
        return ({}, {}) if view is None else (self._wanted(view.placement), dict(view.stored))

    def _room(self, placement: Placement) -> int:
        return placement.slots_per_instance * (placement.num_instances if self.instance is None else 1)

    def _note(self, slots: ExpertSlots, new: dict[int, int], stored: Mapping[int, int]) -> None:
        """Tell the slots what they hold; replicas of an expert are run in the order of the placement."""
        experts, keys = list(slots.experts), list(self._keys) if slots is self.slots else [-1] * slots.num_slots
        for number, slot in stored.items():  # the others keep theirs: a forward that began earlier may be running them
            experts[slot], keys[slot] = new[number], number
        slots.hold(experts, keys)
        self._keys = keys

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.view is not None:
            self.view = self.view.to(self.slots.device)
        return self


def check_placement(placement: Placement | None, num_experts: int, who: str, instances: int = 1) -> Placement:
    """The placement, or the default one; refuses one made for another number of experts."""
    if placement is None:
        return Placement.contiguous(num_experts, instances)
    _check_fit(placement, num_experts, who)
    return placement


def _check_fit(placement: Any, num_experts: int, who: str) -> None:
    remedy = "e.g. from janus.sched.place"
    instance(placement, Placement, "placement must be a janus.Placement", "placement.type", remedy)
    if placement.num_experts != num_experts:
        raise JanusError(
            "placement.experts",
            f"{who}: there are {num_experts} experts per layer, the placement is for {placement.num_experts}",
        )
