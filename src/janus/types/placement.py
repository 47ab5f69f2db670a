"""Which expert sits in which physical slot of which expert instance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError

IntArray = npt.NDArray[np.int32]


class Placement:
    """A map from physical slots to logical experts; immutable, checked when it is made.

    Physical id r = g * C + c. Layers count MoE layers only; `layer_ids` maps them to the model's numbering.

    Args:
        slots: integers [L, G, C] (or [G, C]: the same map for every layer); logical expert or -1 for an empty slot.
        num_experts: E.
        layer_ids: the model's layer number of each l; default 0..L-1. One map for every layer has none.

    Raises:
        JanusError: ``placement.shape``, ``placement.range`` (id outside -1..E-1), ``placement.missing`` (an expert
            without a slot), ``placement.duplicate`` (an expert twice on one instance), ``placement.file``.

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
        raw = np.asarray(slots)
        _check_shape(raw, num_experts)
        self._uniform = raw.ndim == 2
        self.slots: IntArray = np.ascontiguousarray(raw.reshape((-1, *raw.shape[-2:])), dtype=np.int32)
        self.slots.flags.writeable = False
        self.num_experts = int(num_experts)
        self.layer_ids = _checked_layer_ids(layer_ids, self.num_layers)
        self.eplb_duplicates = int(eplb_duplicates)
        _check_range(self.slots, self.num_experts)
        _check_duplicates(self.slots)
        _check_missing(self.logcnt)

    @classmethod
    def contiguous(cls, num_experts: int, num_instances: int, slots_per_instance: int | None = None) -> Placement:
        """Experts in order, one replica each, spread evenly; spare slots stay empty.

        Example:
            >>> Placement.contiguous(5, 2).slots[0].tolist()
            [[0, 1, 2], [3, 4, -1]]
        """
        if num_instances < 1:
            raise JanusError("placement.shape", f"num_instances must be >= 1, got {num_instances}")
        sizes = [len(part) for part in np.array_split(np.arange(num_experts), num_instances)]
        width = slots_per_instance or max(sizes)
        if width < max(sizes):
            need = f"{num_experts} experts on {num_instances} instances need {max(sizes)} slots each"
            raise JanusError("placement.shape", f"slots_per_instance is {width}; {need}")
        slots, first = np.full((num_instances, width), -1), 0
        for g, size in enumerate(sizes):
            slots[g, :size] = np.arange(first, first + size)
            first += size
        return cls(slots, num_experts)

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
        if self._uniform:
            return 0
        if not 0 <= layer < self.num_layers:
            raise JanusError("placement.layer", f"layer must lie in 0..{self.num_layers - 1} (MoE layers), got {layer}")
        return layer

    @cached_property
    def phy2log(self) -> IntArray:
        """int32 [L, R]: logical expert of each physical id, -1 for an empty slot."""
        return self.slots.reshape(self.num_layers, -1)

    @cached_property
    def logcnt(self) -> IntArray:
        """int32 [L, E]: number of replicas of each expert."""
        counts = [np.bincount(row[row >= 0], minlength=self.num_experts) for row in self.phy2log]
        return np.stack(counts).astype(np.int32)

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
        return out

    def hosts(self, e: int, layer: int = 0) -> tuple[int, ...]:
        """Instances that hold a replica of expert `e`, in ascending order."""
        if not 0 <= e < self.num_experts:
            raise JanusError("placement.range", f"expert must lie in 0..{self.num_experts - 1}, got {e}")
        phys = self.log2phy[self.layer(layer), e]
        return tuple(int(r) // self.slots_per_instance for r in phys if r >= 0)

    @classmethod
    def from_eplb(cls, phy2log: npt.ArrayLike, num_instances: int, *, num_experts: int | None = None) -> Placement:
        """Take over EPLB's `phy2log` [L, R] (or [R]); a duplicate on one instance becomes -1 and is counted.

        EPLB may put two replicas of one expert on one GPU, where the second can never lower a_max;
        `.eplb_duplicates` says how many were dropped.

        Example:
            >>> p = Placement.from_eplb([0, 0, 1, 2], num_instances=2)
            >>> p.slots.tolist(), p.eplb_duplicates
            ([[[0, -1], [1, 2]]], 1)
        """
        raw = np.array(phy2log)
        if (
            raw.ndim not in (1, 2)
            or not np.issubdtype(raw.dtype, np.integer)
            or num_instances < 1
            or raw.shape[-1] % num_instances
        ):
            rule = "phy2log must be integers [L, R] or [R] with R divisible by num_instances"
            raise JanusError(
                "placement.shape", f"{rule}; got shape {raw.shape}, {raw.dtype}, {num_instances} instances"
            )
        slots = raw.reshape(-1, num_instances, raw.shape[-1] // num_instances)
        dropped = _drop_duplicates(slots)
        experts = int(raw.max(initial=-1)) + 1 if num_experts is None else num_experts
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
        slots = self.slots[0] if self._uniform else self.slots
        return {
            "num_experts": self.num_experts,
            "slots": slots.tolist(),
            "layer_ids": self.layer_ids and list(self.layer_ids),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Placement:
        """Inverse of `to_dict`."""
        try:
            return cls(np.array(data["slots"]), data["num_experts"], layer_ids=data.get("layer_ids"))
        except (KeyError, TypeError, AttributeError) as error:
            raise JanusError("placement.file", f"a placement holds num_experts and slots; {error!r}") from error
        except ValueError as error:
            if isinstance(error, JanusError):
                raise
            raise JanusError("placement.file", f"slots must be a full [L, G, C] or [G, C] array; {error}") from error

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps({"format": "janus.placement/1", **self.to_dict()}))

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """Read what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise JanusError("placement.file", f"cannot read a placement from {path}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != "janus.placement/1":
            raise JanusError("placement.file", f"{path} is not a placement written by Placement.save")
        return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.slots.tobytes(), self.slots.shape, self.num_experts))

    def __repr__(self) -> str:
        layers = "every layer" if self._uniform else f"L={self.num_layers}"
        return f"Placement({layers}, G={self.num_instances}, C={self.slots_per_instance}, E={self.num_experts})"


def _check_shape(raw: npt.NDArray[Any], num_experts: int) -> None:
    if raw.ndim not in (2, 3) or not np.issubdtype(raw.dtype, np.integer) or 0 in raw.shape:
        raise JanusError(
            "placement.shape", f"slots must be integers [L, G, C] or [G, C], none empty; got {raw.dtype} {raw.shape}"
        )
    if isinstance(num_experts, bool) or not hasattr(num_experts, "__index__") or num_experts < 1:
        raise JanusError("placement.shape", f"num_experts must be an integer >= 1, got {num_experts!r}")


def _checked_layer_ids(layer_ids: Sequence[int] | None, num_layers: int) -> tuple[int, ...] | None:
    if layer_ids is None:
        return None
    ids = tuple(int(i) for i in layer_ids)
    if len(ids) != num_layers or list(ids) != sorted(set(ids)):
        raise JanusError(
            "placement.layer", f"layer_ids must be {num_layers} ascending numbers, one per layer, got {ids}"
        )
    return ids


def _check_range(slots: IntArray, num_experts: int) -> None:
    bad = np.argwhere((slots < -1) | (slots >= num_experts))
    if len(bad):
        layer, g, c = bad[0]
        value = slots[layer, g, c]
        raise JanusError(
            "placement.range",
            f"slots hold -1 or an expert in 0..{num_experts - 1}; layer {layer}, instance {g}, slot {c} holds {value}",
        )


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
