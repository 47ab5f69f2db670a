"""Which expert sits in which physical slot of which expert instance."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.types.checks import Frozen, first_outside, instance, integer, integers, shown
from janus.types.eplb import read_maps
from janus.types.files import read_json, reading, write_text

if TYPE_CHECKING:
    from janus.types.moves import Moves

FORMAT = "janus.placement/1"
MAX_SLOTS = 2**24  # of one layer; keeps a mistyped size from filling the memory
IntArray = npt.NDArray[np.int32]


class Placement(Frozen):
    """A map from physical slots to logical experts; immutable, checked when it is made.

    Physical id r = g * C + c. Layers count MoE layers only; `layer_ids` maps them to the model's numbering.

    Args:
        slots: integers [L, G, C] (or [G, C]: the same map for every layer); logical expert or -1 for an empty slot.
        num_experts: E.
        layer_ids: the model's layer number of each l, ascending; None when unknown. One map for every layer has none.
        eplb_duplicates: how many duplicates `from_eplb` dropped; kept for people, ignored by comparison.

    Raises:
        JanusError: ``placement.shape``, ``placement.range`` (id outside -1..E-1), ``placement.missing`` (an expert
            without a slot), ``placement.duplicate`` (an expert twice on one instance), ``placement.layer``,
            ``placement.file``, ``placement.moves``.

    Example:
        >>> p = Placement([[0, 1, 2], [2, 3, 0]], num_experts=4)
        >>> p.hosts(2), p.logcnt[0].tolist(), p.log2phy[0, 0].tolist()
        ((0, 1), [2, 1, 2, 1], [0, 5])
    """

    def __init__(
        self,
        slots: npt.ArrayLike,
        num_experts: int,
        *,
        layer_ids: Sequence[int] | None = None,
        eplb_duplicates: int = 0,
    ) -> None:
        raw = integers(slots, "slots must be integers [L, G, C] or [G, C]", "placement.shape", ndim=(2, 3))
        if 0 in raw.shape:
            raise JanusError("placement.shape", f"no side of slots [L, G, C] or [G, C] may be 0; got {raw.shape}")
        self.num_experts = integer(num_experts, "num_experts", "placement.shape", low=1)
        self._uniform = raw.ndim == 2
        raw = raw.reshape((-1, *raw.shape[-2:]))
        _check_range(raw, self.num_experts)  # before the cast, which would wrap
        _check_room(raw, self.num_experts)
        self.slots: IntArray = raw.astype(np.int32)
        self.layer_ids = _checked_layer_ids(layer_ids, None if self._uniform else len(raw))
        self.eplb_duplicates = integer(eplb_duplicates, "eplb_duplicates", "placement.shape")
        _check_duplicates(self.slots)
        _check_missing(self.logcnt)
        self._freeze()

    @classmethod
    def contiguous(cls, num_experts: int, num_instances: int, slots_per_instance: int | None = None) -> Placement:
        """Experts in order, one replica each, spread evenly; spare slots stay empty.

        Example:
            >>> Placement.contiguous(5, 2).slots[0].tolist()
            [[0, 1, 2], [3, 4, -1]]
        """
        experts = integer(num_experts, "num_experts", "placement.shape", low=1, high=MAX_SLOTS)
        instances = integer(num_instances, "num_instances", "placement.shape", low=1, high=MAX_SLOTS)
        need = -(-experts // instances)
        width = need
        if slots_per_instance is not None:
            width = integer(slots_per_instance, "slots_per_instance", "placement.shape", low=1, high=MAX_SLOTS)
        if width < need or width * instances > MAX_SLOTS:
            rule = f"{experts} experts on {instances} instances need {need} slots each, and at most {MAX_SLOTS} in all"
            raise JanusError("placement.shape", f"{rule}; slots_per_instance is {width}")
        slots, first = np.full((instances, width), -1), 0
        for g in range(instances):
            size = experts // instances + (g < experts % instances)
            slots[g, :size] = np.arange(first, first + size)
            first += size
        return cls(slots, experts)

    @property
    def num_layers(self) -> int:
        """L; 1 when one map serves every layer (see `uniform`)."""
        return self.slots.shape[0]

    @property
    def uniform(self) -> bool:
        """True when one map serves every layer."""
        return self._uniform

    @property
    def num_instances(self) -> int:
        """G."""
        return self.slots.shape[1]

    @property
    def slots_per_instance(self) -> int:
        """C."""
        return self.slots.shape[2]

    def layer(self, layer: int) -> int:
        """The row of `slots` that serves MoE layer `layer`: `layer`, or 0 when one map serves all."""
        row = integer(layer, "layer", "placement.layer")
        if self._uniform:
            return 0
        if row >= self.num_layers:
            raise JanusError("placement.layer", f"layer must lie in 0..{self.num_layers - 1} (MoE layers), got {row}")
        return row

    @cached_property
    def phy2log(self) -> IntArray:
        """int32 [L, R]: logical expert of each physical id, -1 for an empty slot."""
        return self.slots.reshape(self.num_layers, -1)

    @cached_property
    def logcnt(self) -> IntArray:
        """int32 [L, E]: number of replicas of each expert."""
        counts = [np.bincount(row[row >= 0], minlength=self.num_experts) for row in self.phy2log]
        return np.stack(counts).astype(np.int32)  # first read by the constructor, which freezes it

    @cached_property
    def log2phy(self) -> IntArray:
        """int32 [L, E, X]: physical ids of each expert in ascending order, padded with -1; X = most replicas."""
        out = np.full((self.num_layers, self.num_experts, int(self.logcnt.max())), -1, dtype=np.int32)
        for row, phy2log in zip(out, self.phy2log, strict=True):
            order = np.argsort(phy2log, kind="stable")
            order = order[phy2log[order] >= 0]
            experts = phy2log[order]
            first = np.searchsorted(experts, experts)
            row[experts, np.arange(len(order)) - first] = order
        out.flags.writeable = False
        return out

    def hosts(self, e: int, layer: int = 0) -> tuple[int, ...]:
        """Instances that hold a replica of expert `e`, in ascending order."""
        expert = integer(e, "an expert", "placement.range", high=self.num_experts - 1)
        phys = self.log2phy[self.layer(layer), expert]
        return tuple(int(r) // self.slots_per_instance for r in phys if r >= 0)

    @classmethod
    def from_eplb(
        cls,
        phy2log: npt.ArrayLike | None,
        num_instances: int,
        *,
        num_experts: int | None = None,
        log2phy: npt.ArrayLike | None = None,
        logcnt: npt.ArrayLike | None = None,
    ) -> Placement:
        """Take over the map of EPLB, SGLang or vLLM; physical ids stay as they are there.

        A replica beside another of its expert on one GPU, which EPLB may emit, can never lower a_max: the first stays,
        the others become -1, and `.eplb_duplicates` says how many. Torch tensors are taken like arrays; one on a GPU
        is copied to the host. Rows of dense layers are to be cut off.

        Args:
            phy2log: [L, R] or [R], the expert in each physical slot, R divisible by `num_instances`
                (``physical_to_logical_map``). None: taken from `log2phy`, which must then name every slot.
            num_instances: G, the GPUs that share the slots in order, R / G each.
            num_experts: E; None: that of the other maps, else the largest expert + 1.
            log2phy: [L, E, X] or [E, X], physical ids of each expert, padded with -1
                (``logical_to_all_physical_map``, ``logical_to_physical_map``); compared with `phy2log`.
            logcnt: [L, E] or [E], replicas of each expert (``logical_replica_count``); compared with `phy2log`.

        Raises:
            JanusError: as the constructor, and ``placement.eplb`` where two of the maps disagree.

        Example:
            >>> p = Placement.from_eplb([0, 0, 1, 2], num_instances=2)
            >>> p.slots.tolist(), p.eplb_duplicates
            ([[[0, -1], [1, 2]]], 1)
            >>> Placement.from_eplb(None, 2, log2phy=[[0, 3], [1, -1], [2, -1]]).slots.tolist()
            [[[0, 1], [2, 0]]]
        """
        raw, experts = read_maps(phy2log, num_instances, num_experts, log2phy, logcnt)
        slots = raw.reshape(-1, int(num_instances), raw.shape[-1] // int(num_instances))
        _check_range(slots, MAX_SLOTS)
        slots = slots.astype(np.int64)  # a copy: the duplicates are dropped in place
        dropped = _drop_duplicates(slots)
        return cls(slots[0] if raw.ndim == 1 else slots, experts, eplb_duplicates=dropped)

    def to_eplb(self) -> npt.NDArray[np.int64]:
        """`phy2log` int64 [L, R] without -1: an empty slot repeats the expert in its instance's first filled slot.

        An instance with no expert at all repeats expert 0. The repeats are never chosen by our balancer; they keep
        the map loadable by software that wants every slot filled.
        """
        out = self.slots.astype(np.int64)
        for row in out.reshape(-1, self.slots_per_instance):
            filled = row[row >= 0]
            row[row < 0] = filled[0] if len(filled) else 0
        return out.reshape(self.num_layers, -1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Placement.from_dict` reads them back."""
        return {
            "num_experts": self.num_experts,
            "slots": (self.slots[0] if self._uniform else self.slots).tolist(),
            "layer_ids": None if self.layer_ids is None else list(self.layer_ids),
            "eplb_duplicates": self.eplb_duplicates,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Placement:
        """Inverse of `to_dict`; missing fields are ``placement.file``, bad values keep their own code."""
        if not isinstance(data, dict) or not {"num_experts", "slots"} <= set(data):
            raise JanusError("placement.file", f"a placement holds num_experts and slots, got {shown(data)}")
        optional = {name: data[name] for name in ("layer_ids", "eplb_duplicates") if name in data}
        return cls(data["slots"], data["num_experts"], **optional)

    def moves(self, previous: Placement, *, expert_bytes: int | None = None) -> Moves:
        """What has to be loaded when this placement replaces `previous`, whose G and C may differ.

        Slots are compared by their number: `janus.sched.place(previous=...)` keeps an expert that stays on an instance
        in its slot.

        Args:
            previous: of the same model: the same E, and the same L unless one of the two is one map for every layer.
            expert_bytes: weights of one expert of one layer, in bytes.

        Raises:
            JanusError: ``placement.moves``.

        Example:
            >>> new, old = Placement([[0, 1], [2, 0]], 3), Placement([[0, 1], [0, 2]], 3)
            >>> moves = new.moves(old, expert_bytes=10)
            >>> moves.slots.tolist(), moves.total, moves.share, moves.bytes, moves.max_bytes
            ([[0, 2]], 2, 0.5, 20, 20)
        """
        from janus.types.moves import Moves

        remedy = "give the placement that this one replaces"
        old = instance(previous, Placement, "previous must be a janus.Placement", "placement.moves", remedy)
        same_layers = self.uniform or old.uniform or self.num_layers == old.num_layers
        if old.num_experts != self.num_experts or not same_layers:
            raise JanusError("placement.moves", f"both must be of the same model; got {self!r} and {old!r}")
        size = None if expert_bytes is None else integer(expert_bytes, "expert_bytes", "placement.moves")
        return Moves.between(self, old, size)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_text(path, "placement.file", json.dumps({"format": FORMAT, **self.to_dict()}))

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """Read what `save` wrote; whatever is wrong with the file is ``placement.file``."""
        data = read_json(path, "placement.file")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise JanusError("placement.file", f"{path} is not a placement written by Placement.save")
        with reading(path, "placement.file"):
            return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Placement)
            and (self.num_experts, self.layer_ids, self._uniform)
            == (other.num_experts, other.layer_ids, other._uniform)
            and np.array_equal(self.slots, other.slots)
        )

    def __hash__(self) -> int:
        return hash((self.slots.tobytes(), self.slots.shape, self.num_experts))

    def __repr__(self) -> str:
        layers = "every layer" if self._uniform else f"L={self.num_layers}"
        return f"Placement({layers}, G={self.num_instances}, C={self.slots_per_instance}, E={self.num_experts})"


def _checked_layer_ids(layer_ids: Sequence[int] | None, num_layers: int | None) -> tuple[int, ...] | None:
    if layer_ids is None:
        return None
    if num_layers is None:
        raise JanusError("placement.layer", "one map for every layer has no layer_ids; give slots [L, G, C] instead")
    rule = f"layer_ids must be {num_layers} ascending numbers >= 0, one per layer"
    raw = integers(layer_ids, rule, "placement.layer", ndim=(1,))
    ids = tuple(int(i) for i in raw[: num_layers + 1])
    if len(raw) != num_layers or ids[0] < 0 or any(b <= a for a, b in itertools.pairwise(ids)):
        raise JanusError("placement.layer", f"{rule}, got {shown(layer_ids)}")
    return ids


def _check_range(slots: npt.NDArray[Any], num_experts: int) -> None:
    at = first_outside(slots, -1, num_experts - 1)
    if at is not None:
        layer, g, c = at
        raise JanusError(
            "placement.range",
            f"slots hold -1 or an expert in 0..{num_experts - 1}; layer {layer}, instance {g}, slot {c} holds {slots[at]}",
        )


def _check_room(slots: npt.NDArray[Any], num_experts: int) -> None:
    room = slots.shape[1] * slots.shape[2]
    if num_experts > room:  # also bounds what the derived maps may allocate
        raise JanusError("placement.missing", f"every expert needs a slot; {num_experts} experts share {room} slots")


def _check_duplicates(slots: IntArray) -> None:
    ordered = np.sort(slots, axis=-1)
    bad = np.argwhere((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0))
    if len(bad):
        layer, g, c = bad[0]
        raise JanusError(
            "placement.duplicate",
            f"an instance holds an expert at most once; layer {layer}, instance {g} holds expert {ordered[layer, g, c]} "
            "more than once; put -1 in the spare slot, or read an EPLB map with Placement.from_eplb",
        )


def _check_missing(logcnt: IntArray) -> None:
    bad = np.argwhere(logcnt == 0)
    if len(bad):
        layer = bad[0, 0]
        experts = bad[bad[:, 0] == layer, 1].tolist()
        listed = ", ".join(map(str, experts[:8])) + (" ..." if len(experts) > 8 else "")
        raise JanusError("placement.missing", f"every expert needs a slot; layer {layer} has none for expert {listed}")


def _drop_duplicates(slots: npt.NDArray[Any]) -> int:
    dropped = 0
    for row in slots.reshape(-1, slots.shape[-1]):
        seen: set[int] = set()
        for c, e in enumerate(row.tolist()):
            if e >= 0 and e in seen:
                row[c] = -1
                dropped += 1
            seen.add(e)
    return dropped
