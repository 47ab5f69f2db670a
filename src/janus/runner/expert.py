"""The expert side: hold the slots of one instance, serve steps until the attention side closes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from janus.comm import Exchange
from janus.experts.layout import ExpertLayout
from janus.experts.live import ExpertSource
from janus.experts.loading import read_for
from janus.experts.seam import MoEBlock
from janus.experts.slots import ExpertSlots
from janus.runner.clock import Clock
from janus.sched import Balancer
from janus.types import Placement


class ExpertServer:
    """Slots of one instance for every MoE layer, with the routers where the gate is on this side.

    Args:
        source: of the weights; only this instance's experts are read.
        placement: of all instances.
        instance: g of this rank.
        balancer: shared by all layers; None with the attention-side gate, where ids arrive balanced.
        record: keep the logical ids of every batch (expert-side gate only).
        clock: where the time went.
        compute: how the chosen experts are run, as in `JanusMoELayer`.
        quantize: keep the matrices of the slots in 8 bits, as in `JanusMoELayer`.

    Raises:
        JanusError: ``experts.compute`` for a way that cannot run here, before a weight is read; ``experts.quantize`` for
            weights that are not finite, ``checkpoint.*``, ``model.mismatch``.
    """

    def __init__(
        self,
        source: ExpertSource,
        placement: Placement,
        instance: int,
        balancer: Balancer | None,
        record: bool,
        clock: Clock,
        *,
        compute: str = "auto",
        quantize: str | None = None,
    ) -> None:
        self.placement, self.instance, self.balancer, self.record, self.clock = (
            placement,
            instance,
            balancer,
            record,
            clock,
        )
        self.blocks = source.blocks
        kind = {"dtype": source.dtype, "compute": compute, "quantize": quantize}
        self.slots = [self._load(source, layer, block, kind) for layer, block in enumerate(source.blocks)]
        self.routers: list[nn.Module] = (
            [source.router(block) for block in source.blocks] if balancer is not None else []
        )
        self.recorded: list[list[npt.NDArray[np.int16]]] = [[] for _ in source.blocks]

    def _load(self, source: ExpertSource, layer: int, block: MoEBlock, kind: dict[str, Any]) -> ExpertSlots:
        experts = self.placement.slots[self.placement.layer(layer), self.instance].tolist()
        slots = ExpertSlots(ExpertLayout.of(block.experts), experts, **kind)
        _ = slots.compute  # a way that cannot run is refused before weights are read
        for slot, e in enumerate(experts):
            if e >= 0:
                slots.fill(slot, read_for(slots.format, source, block, e))
        slots.verify()
        return slots

    @torch.inference_mode()
    def serve(self, ex: Exchange) -> None:
        """Answer steps until the attention side closes."""
        while True:
            with self.clock.phase("idle"):
                step = ex.begin()
            if step.closed:
                return
            for layer in range(len(self.slots) if step.total else 0):
                self._layer(ex, layer)

    def _layer(self, ex: Exchange, layer: int) -> None:
        with self.clock.phase("receive"):
            x_TH, handle = ex.receive()
        if self.balancer is None:
            physical_TK, weights_TK = handle.physical_ids, handle.weights
        else:
            physical_TK, weights_TK = self._choose(layer, x_TH, self.balancer)
        with self.clock.phase("experts"):
            y_TH = self.slots[layer](x_TH, self._local(physical_TK), weights_TK)
        with self.clock.phase("reply"):
            ex.reply(y_TH, handle)

    def _choose(self, layer: int, x_TH: torch.Tensor, balancer: Balancer) -> tuple[torch.Tensor, torch.Tensor]:
        """The expert-side gate: route the whole batch, pick replicas; the same on every expert rank."""
        with self.clock.phase("route"):
            ids_TK, weights_TK = self.route(layer, x_TH)
        with self.clock.phase("balance"):
            physical_TK = balancer(ids_TK, layer)
        if self.record:
            self.recorded[layer].append(ids_TK.numpy().astype(np.int16))
        return physical_TK, weights_TK

    def route(self, layer: int, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask the layer's router: [T, H] -> ids [T, K], weights [T, K]."""
        seam, block = self.blocks[layer].need_router(), self.blocks[layer]
        if not len(x_TH):
            return torch.empty(0, block.top_k, dtype=torch.long), torch.empty(0, block.top_k, dtype=block.weights_dtype)
        out = self.routers[layer](x_TH[None] if seam.batched else x_TH)
        return out[seam.ids_at].reshape(-1, block.top_k), out[seam.weights_at].reshape(-1, block.top_k)

    def _local(self, physical_TK: Any) -> torch.Tensor:
        first = self.instance * self.placement.slots_per_instance
        local = physical_TK - first
        return torch.where((local >= 0) & (local < self.placement.slots_per_instance), local, -1)
