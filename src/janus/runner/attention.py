"""The attention side: the user's model with stand-ins where its routed experts (and routers) were."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from janus.comm import Exchange
from janus.errors import JanusError
from janus.experts.seam import PROBE_TOKENS, MoEBlock, RouterSeam
from janus.runner.clock import Clock
from janus.sched import Balancer


class ExpertLink:
    """The one way from an attention rank to the experts: opens steps and carries rows out and back.

    Args:
        ex: the exchange of this rank.
        blocks: the MoE layers; a step ends with the last one.
        balancer: picks replicas for the attention-side gate; None with the expert-side gate.
        scope: ``"batch"`` balances over the tokens of all attention ranks, ``"rank"`` over this rank's alone.
        clock: where the time went.
        dtype: of the hidden states.

    Attributes:
        rows: int64 indices of the rows of the current forward that are real tokens, or None for all; the others are
            padding, are not sent, and get zeros.
    """

    def __init__(
        self,
        ex: Exchange,
        blocks: tuple[MoEBlock, ...],
        balancer: Balancer | None,
        scope: str,
        clock: Clock,
        dtype: torch.dtype,
    ) -> None:
        self.ex, self.num_layers, self.balancer, self.scope, self.clock = ex, len(blocks), balancer, scope, clock
        ids = torch.empty(0, blocks[0].top_k, dtype=torch.long)
        self._nothing = (torch.empty(0, blocks[0].hidden_size, dtype=dtype), ids, ids.to(blocks[0].weights_dtype))
        self.rows: torch.Tensor | None = None
        self._total, self._next = 0, 0  # tokens of the step under way, and the layer it goes on with; 0: none is

    def begin(self, b: int) -> int:
        """Open a step with `b` tokens from this rank; returns the tokens of all attention ranks together."""
        with self.clock.phase("begin"):
            step = self.ex.begin(b)
        if step.closed:
            raise JanusError("runner.closed", "another attention rank has closed the runner; no more steps can run")
        self._total = step.total
        return step.total

    def idle_step(self) -> bool:
        """Take part in one step of the others without tokens; False if nobody had any."""
        self._expect(0)
        if not self.begin(0):
            return False
        self.pass_layers()
        return True

    def pass_layers(self) -> None:
        """Go through the layers of the open step with no rows of our own."""
        for layer in range(self.num_layers):
            self._out_and_back(layer, *self._nothing)

    def carry(self, layer: int, x_TH: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Send the real rows of `x_TH` to the experts of `layer`; returns [T, H], zeros in the padding rows."""
        if self.rows is None:
            return self._in_order(layer, x_TH, ids, weights)
        real = self._in_order(layer, x_TH[self.rows], ids[self.rows], weights[self.rows])
        y_TH = torch.zeros_like(x_TH)
        y_TH[self.rows] = real
        return y_TH

    def _in_order(self, layer: int, x_TH: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self._expect(layer)
        if layer == 0:
            self.begin(len(x_TH))
        self._next = (layer + 1) % self.num_layers
        if not self._total:
            return torch.zeros_like(x_TH)  # no attention rank has a token in this step
        return self._out_and_back(layer, x_TH, ids, weights)

    def _expect(self, layer: int) -> None:
        if layer != self._next:
            raise JanusError(
                "runner.step",
                f"a forward runs all {self.num_layers} MoE layers in order; expected layer {self._next}, got {layer}. Was the "
                "last forward ended by an exception? The other ranks wait in its middle: close the runner and make a new one",
            )

    def _out_and_back(self, layer: int, x_TH: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with self.clock.phase("exchange"):
            if self.balancer is None:
                handle = self.ex.dispatch(x_TH.contiguous(), layer=layer)
            else:
                physical = self._balance(layer, ids)
                handle = self.ex.dispatch(x_TH.contiguous(), layer=layer, physical_ids=physical, weights=weights)
            return self.ex.combine(handle)

    def _balance(self, layer: int, ids_bK: torch.Tensor) -> torch.Tensor:
        assert self.balancer is not None
        if self.scope == "rank":
            return self.balancer(ids_bK, layer).clone()
        ids_BK, first = self.ex.gather_topk(ids_bK)
        return self.balancer(ids_BK, layer)[first : first + len(ids_bK)].clone()


class RemoteExperts(nn.Module):
    """Stands where the routed experts were; has no weights.

    Args:
        link: to the experts, or None for a dry run that returns zeros.
        layer: MoE layer, counted from 0.
    """

    def __init__(self, link: ExpertLink | None, layer: int) -> None:
        super().__init__()
        self._link = [link]  # in a list, so that the module holds no reference nn.Module would walk
        self.layer = layer

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Same contract as the module replaced: [T, H], [T, K], [T, K] -> [T, H]."""
        link = self._link[0]
        if link is None:
            return torch.zeros_like(hidden)
        return link.carry(self.layer, hidden.flatten(0, -2), ids, weights).view_as(hidden)


class RemoteRouter(nn.Module):
    """Stands where a router was that now runs beside the experts; its outputs are placeholders.

    Ids and weights have the right shape and are never looked at; any other output is None, so that code that
    needs it fails at once instead of computing with invented numbers.
    """

    def __init__(self, seam: RouterSeam, top_k: int, weights_dtype: torch.dtype) -> None:
        super().__init__()
        self.seam, self.top_k, self.weights_dtype = seam, top_k, weights_dtype

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """[.., H] -> the router's tuple with placeholders."""
        shape = (hidden.numel() // hidden.shape[-1], self.top_k)
        out: list[torch.Tensor | None] = [None] * self.seam.num_outputs
        out[self.seam.ids_at] = torch.zeros(shape, dtype=torch.long, device=hidden.device)
        out[self.seam.weights_at] = torch.zeros(shape, dtype=self.weights_dtype, device=hidden.device)
        return tuple(out)


def disaggregate(model: nn.Module, blocks: tuple[MoEBlock, ...], link: ExpertLink, gate: str) -> nn.Module:
    """Replace experts (and, with gate="experts", routers) of `model` by stand-ins, in place.

    Raises:
        JanusError: ``model.router`` if a block uses more of its router than ids and weights.
    """
    for layer, block in enumerate(blocks):
        here = _on_model(model, block)
        if gate == "experts":
            here.replace(here.need_router().attr, RemoteRouter(here.need_router(), here.top_k, here.weights_dtype))
        here.replace(here.experts_attr, RemoteExperts(None, layer))
        _dry_run(model, here, gate)
        here.replace(here.experts_attr, RemoteExperts(link, layer))
    return model


def _on_model(model: nn.Module, block: MoEBlock) -> MoEBlock:
    # The blocks of a checkpoint are those of its skeleton; the loaded model has the same paths.
    return dataclasses.replace(block, block=model.get_submodule(block.name))


def _dry_run(model: nn.Module, block: MoEBlock, gate: str) -> None:
    like = next((p for p in block.block.parameters()), None)
    dtype = like.dtype if like is not None else torch.float32
    config: Any = model.config
    width = config.get_text_config().hidden_size  # the experts' own H is another where they work on a projection
    try:
        with torch.no_grad():
            block.block(torch.zeros(1, PROBE_TOKENS, width, dtype=dtype))
    except Exception as error:
        remedy = "; use gate='attention'" if gate == "experts" else "; this family is not supported"
        raise JanusError(
            "model.router", f"{block.name} ({type(block.block).__name__}) cannot run with stand-ins: {error!r}{remedy}"
        ) from error
