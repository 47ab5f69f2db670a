"""What it takes to go from some pools to others: weights over the network, and starting what is added."""

from __future__ import annotations

import math
from dataclasses import dataclass

from janus.scale.hardware import Cluster
from janus.scale.model import ModelSpec
from janus.types import Placement


@dataclass(frozen=True)
class Pools:
    """Instances that serve, and what the expert instances hold.

    Args:
        n_attention: attention instances.
        n_experts: expert instances.
        placement: of the experts on them.
    """

    n_attention: int
    n_experts: int
    placement: Placement

    @property
    def gpus(self) -> int:
        """Of both pools."""
        return self.n_attention + self.n_experts


@dataclass(frozen=True)
class Migration:
    """The price of a change of pools.

    Args:
        moved_bytes: weights to load, both sides.
        added: instances to start.
        transfer_s: until the last weight has arrived, seconds.
        startup_s: until added instances can take weights, seconds; 0 when none is added.
        gpu_s: GPU-seconds that serve nobody: `startup_s` of the added, `transfer_s` of all that then serve (as if they
            stood still while weights move, which is on the safe side).

    Example:
        >>> Migration(moved_bytes=10, added=1, transfer_s=2.0, startup_s=60.0, gpu_s=70.0).seconds
        62.0
    """

    moved_bytes: int
    added: int
    transfer_s: float
    startup_s: float
    gpu_s: float

    @property
    def seconds(self) -> float:
        """Until the new pools serve."""
        return self.startup_s + self.transfer_s

    @classmethod
    def between(cls, model: ModelSpec, cluster: Cluster, old: Pools | None, new: Pools, startup_s: float) -> Migration:
        """From `old` (None: nothing serves yet, weights come from storage at the speed of the network card) to `new`.

        An expert slot that holds another expert than before is loaded, and so are the attention-side weights of an
        attention instance that is added; instances with the highest numbers go first. Every card receives and sends at
        its own rate, so a transfer takes the larger of the most that one card receives and of what the old instances
        of that pool have to send, evenly; the two pools load at the same time. Requests of an attention instance that
        goes are finished there: their KV cache is not moved.
        """
        layers = model.moe_layers if new.placement.uniform and (old is None or old.placement.uniform) else 1
        if old is None:
            slots = (new.placement.slots >= 0).sum(axis=2) * layers
            senders, added_attention, added = None, new.n_attention, new.gpus
        else:
            slots = new.placement.moves(old.placement).slots * layers
            senders, added_attention = old, max(0, new.n_attention - old.n_attention)
            added = added_attention + max(0, new.n_experts - old.n_experts)
        experts = float(slots.sum()) * model.expert_bytes
        attention = added_attention * model.attention_side_bytes
        largest = [float(slots.sum(axis=0).max()) * model.expert_bytes]
        largest += [model.attention_side_bytes] if added_attention else []
        if senders is not None:
            largest += [experts / senders.n_experts, attention / senders.n_attention]
        transfer_s = max(largest) / cluster.inter_node_bytes_per_s
        start = startup_s if added else 0.0
        return cls(math.ceil(experts + attention), added, transfer_s, start, added * start + new.gpus * transfer_s)
