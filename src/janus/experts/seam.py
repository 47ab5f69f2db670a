"""Find the routed experts and the router of every MoE layer of a Hugging Face model, by what they do.

Nothing here knows a model family. `janus.experts.sites` finds the experts by their signature; the router is the module
whose outputs reach the experts unchanged. It is found by running the block once, so a model that does not fit is
refused with what differed. Only an expert pool needs this: replacing the experts in place runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.sites import count_experts, find_experts, layer_id, shared_parts

PROBE_TOKENS = 3


@dataclass(frozen=True)
class RouterSeam:
    """How a block asks its router: enough to ask it from another process.

    Attributes:
        attr: path of the router inside the block (``"gate"``).
        num_outputs: length of the tuple the router returns.
        ids_at: position of the expert ids [T, K] in it.
        weights_at: position of the routing weights [T, K] in it.
        batched: the router is given [1, T, H] rather than [T, H].
    """

    attr: str
    num_outputs: int
    ids_at: int
    weights_at: int
    batched: bool


@dataclass(frozen=True, eq=False)
class MoEBlock:
    """One MoE layer of a model: the block, its experts, and what one probing forward told about it.

    Attributes:
        name: path of the block in the model (``"model.layers.3.mlp"``).
        layer_id: the model's own number of the layer; MoE layers are counted from 0 elsewhere.
        block: the module that calls router and experts.
        experts_attr: path of the experts module inside the block.
        num_experts: E.
        hidden_size: H, the width of what the experts receive.
        top_k: K.
        weights_dtype: dtype of the routing weights.
        router: how to ask the router, or None where none was found (see `why_no_router`).
        why_no_router: the reason, for the error message of who needs one.
    """

    name: str
    layer_id: int
    block: nn.Module
    experts_attr: str
    num_experts: int
    hidden_size: int
    top_k: int
    weights_dtype: torch.dtype
    router: RouterSeam | None
    why_no_router: str

    @property
    def experts(self) -> nn.Module:
        """The module that holds the routed experts (or what took its place)."""
        return self.block.get_submodule(self.experts_attr)

    def replace(self, attr: str, module: nn.Module) -> None:
        """Put `module` where the block looks for `attr`."""
        parent, _, child = attr.rpartition(".")
        setattr(self.block.get_submodule(parent), child, module)

    def need_router(self) -> RouterSeam:
        """The router, or a `JanusError` (``model.router``) that says why it cannot be asked from outside."""
        if self.router is None:
            raise JanusError(
                "model.router",
                f"{self.name} ({type(self.block).__name__}): {self.why_no_router}; use gate='attention', which leaves the "
                "router where it is",
            )
        return self.router


def find_blocks(model: nn.Module) -> tuple[MoEBlock, ...]:
    """All MoE blocks of `model`, in order; works on the meta device too.

    Raises:
        JanusError: ``model.module`` if it is no module, ``model.no_experts`` if there are none, ``model.block`` if a
            block cannot be run alone, ``model.experts`` if experts need more than their own matrices.
    """
    sites = find_experts(model)
    for site in sites:
        if parts := shared_parts(site.experts):
            raise JanusError(
                "model.experts",
                f"{type(site.experts).__name__} holds {', '.join(sorted(parts))} beside its experts, which an expert pool "
                "does not carry; janus.convert supports this family on one device",
            )
    return tuple(_probe(model, site.name, site.attr) for site in sites)


class _Recorder(nn.Module):
    """Takes the experts' place during the probe and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        hidden, ids, weights = (*args, *kwargs.values())[:3]
        self.seen = (hidden, ids, weights)
        return torch.zeros_like(hidden)


def _probe(model: nn.Module, block_name: str, attr: str) -> MoEBlock:
    block = model.get_submodule(block_name)
    experts = block.get_submodule(attr)
    recorder, calls, probe = _Recorder(), {}, _probe_input(model, block)
    hooks = [
        module.register_forward_hook(_remember(calls, name), with_kwargs=True)
        for name, module in block.named_modules()
        if name and module is not experts and not name.startswith(f"{attr}.")
    ]
    setattr(block, attr, recorder)
    try:
        with torch.no_grad():
            block(probe)
    except Exception as error:
        raise JanusError(
            "model.block", f"{block_name} ({type(block).__name__}) cannot be run on hidden states alone: {error!r}"
        ) from error
    finally:
        setattr(block, attr, experts)
        for hook in hooks:
            hook.remove()
    if recorder.seen is None:
        raise JanusError("model.block", f"{block_name} ({type(block).__name__}) did not call its experts {attr!r}")
    hidden_TH, ids_TK, weights_TK = recorder.seen
    router, why = _find_router(calls, hidden_TH, ids_TK, weights_TK)
    return MoEBlock(
        block_name, layer_id(block_name), block, attr, count_experts(experts), hidden_TH.shape[-1], ids_TK.shape[-1],
        weights_TK.dtype, router, why,
    )  # fmt: skip


def _probe_input(model: nn.Module, block: nn.Module) -> torch.Tensor:
    like = next(block.parameters())
    config: Any = getattr(model, "config", None)
    hidden_size = config.get_text_config().hidden_size if config is not None else like.shape[-1]
    if like.is_meta:
        return torch.empty(1, PROBE_TOKENS, hidden_size, dtype=like.dtype, device="meta")
    return torch.linspace(-1, 1, PROBE_TOKENS * hidden_size).reshape(1, PROBE_TOKENS, hidden_size).to(like)


def _remember(calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]], name: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[name] = (args, kwargs, output)

    return hook


def _find_router(
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]],
    hidden_TH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
) -> tuple[RouterSeam | None, str]:
    for name, (args, kwargs, output) in calls.items():
        if not isinstance(output, tuple):
            continue
        at = {id(value): i for i, value in enumerate(output)}
        if id(ids_TK) not in at or id(weights_TK) not in at:
            continue
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if len(args) != 1 or kwargs or len(tensors) != 1:
            return None, f"its router {name!r} takes more than the hidden states"
        if not _same_values(tensors[0], hidden_TH):
            return None, f"its router {name!r} is given something else than the experts' input"
        return RouterSeam(name, len(output), at[id(ids_TK)], at[id(weights_TK)], tensors[0].dim() == 3), ""
    return None, "no module returns the expert ids and weights that reach the experts"


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Shapes may differ ([1, T, H] against [T, H]); one storage and one offset mean one set of values, on meta too.
    same_memory = a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.storage_offset() == b.storage_offset()
    return same_memory and a.numel() == b.numel()
