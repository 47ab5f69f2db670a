"""A user's own expert weights as an experts module: three tensors are enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from janus.errors import JanusError, known
from janus.experts.activation import CURVES

Activate = Callable[[torch.Tensor], torch.Tensor]


class TensorExperts(nn.Module):
    """Experts over given tensors, in the layout that families of transformers use, and their plain forward.

    Args:
        gate_proj: [E, F, H], or None where experts have no gate.
        up_proj: [E, F, H]; [E, 2F, H] where `fused`. The latter, and the former without a gate, is shared, not copied.
        down_proj: [E, H, F]; shared.
        activation: a name of `activation.CURVES`, or what takes [N, F] and gives [N, F]; with a gate its value is
            multiplied by up.
        gate_bias: [E, F], or None.
        up_bias: [E, F] ([E, 2F] where `fused`), or None.
        down_bias: [E, H], or None. Where one bias is given, the others count as zero.
        fused: `up_proj` holds gate, then up.

    Raises:
        JanusError: ``model.tensors`` for what does not fit together, ``model.activation`` for an unknown name, or
            what is no function of [N, F].
    """

    def __init__(
        self,
        gate_proj: torch.Tensor | None,
        up_proj: torch.Tensor,
        down_proj: torch.Tensor,
        *,
        activation: str | Activate = "silu",
        gate_bias: torch.Tensor | None = None,
        up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        given = {"gate_proj": gate_proj, "up_proj": up_proj, "down_proj": down_proj}
        given |= {"gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias}
        tensors = {name: t for name, t in given.items() if t is not None or name in ("up_proj", "down_proj")}
        _check(tensors, fused)
        self.act_fn = _activation(activation, down_proj)
        self.num_experts = len(down_proj)
        self.has_gate, self.has_bias = fused or gate_proj is not None, any("bias" in name for name in tensors)
        self.up = "gate_up_proj" if self.has_gate else "up_proj"
        self._hold(self.up, up_proj if gate_proj is None else torch.cat([gate_proj, up_proj], 1))
        self._hold("down_proj", down_proj)
        if self.has_bias:
            up_bias = _bias_or_zeros(up_bias, up_proj)
            halves = [up_bias] if gate_proj is None else [_bias_or_zeros(gate_bias, gate_proj), up_bias]
            self._hold(f"{self.up}_bias", up_bias if len(halves) == 1 else torch.cat(halves, 1))
            self._hold("down_proj_bias", _bias_or_zeros(down_bias, down_proj))

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        own = isinstance(tensor, nn.Parameter)  # then gradients go to the user's own
        self.register_parameter(name, tensor if own else nn.Parameter(tensor.detach(), tensor.requires_grad))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """One expert after the other: [T, H], ids [T, K], routing weights [T, K] -> [T, H]."""
        out = torch.zeros_like(hidden_states)
        for e in range(self.num_experts):
            tokens, k = torch.where(top_k_index == e)
            hidden = F.linear(hidden_states[tokens], self.get_parameter(self.up)[e], self._bias(self.up, e))
            gate, up = hidden.chunk(2, dim=-1) if self.has_gate else (hidden, None)
            hidden = self.act_fn(gate) if up is None else self.act_fn(gate) * up
            mine = F.linear(hidden, self.get_parameter("down_proj")[e], self._bias("down_proj", e))
            out.index_add_(0, tokens, (mine * top_k_weights[tokens, k, None]).to(out.dtype))
        return out

    def _bias(self, name: str, e: int) -> torch.Tensor | None:
        return self.get_parameter(f"{name}_bias")[e] if self.has_bias else None


def _activation(asked: str | Activate, down_proj: torch.Tensor) -> Activate:
    if not callable(asked):
        return CURVES[known(asked, CURVES, "activation", "model.activation")]
    x = down_proj.new_zeros(2, down_proj.shape[2])
    try:
        with torch.no_grad():
            got = f"[N, {asked(x).shape[-1]}]" if asked(x).shape != x.shape else ""
    except Exception as error:  # whatever the user's own code raises
        got = repr(error)
    if got:
        rule = f"an activation takes [N, F = {x.shape[1]}] of {x.dtype} and gives as many"
        raise JanusError("model.activation", f"{rule}; {asked!r} gave {got}")
    return asked


def _bias_or_zeros(bias: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    return weight.new_zeros(weight.shape[:2]) if bias is None else bias


def _check(tensors: dict[str, Any], fused: bool) -> None:
    """Refuse what does not fit together, with every shape received."""
    if strange := [name for name, t in tensors.items() if not isinstance(t, torch.Tensor)]:
        raise _refused(f"{', '.join(strange)} must be torch tensors", {n: type(t).__name__ for n, t in tensors.items()})
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if fused and {"gate_proj", "gate_bias"} & tensors.keys():
        raise _refused(
            "with fused=True, up_proj and up_bias hold gate and up, so gate_proj and gate_bias are None", shapes
        )
    if len(shapes["down_proj"]) != 3 or 0 in shapes["down_proj"]:
        raise _refused("down_proj is [E, H, F], none of them zero", shapes)
    (E, H, F_), halves = shapes["down_proj"], 1 + fused
    wanted = {"gate_proj": (E, F_, H), "up_proj": (E, halves * F_, H), "down_proj": (E, H, F_)}
    wanted |= {"gate_bias": (E, F_), "up_bias": (E, halves * F_), "down_bias": (E, H)}
    if "gate_bias" in tensors and "gate_proj" not in tensors:
        raise _refused("gate_bias needs gate_proj", shapes)
    if wrong := [name for name, shape in shapes.items() if shape != wanted[name]]:
        needed = ", ".join(f"{name} {wanted[name]}" for name in wrong)
        raise _refused(f"with down_proj [E, H, F] = {shapes['down_proj']}, needed are {needed}", shapes)
    dtypes = {name: t.dtype for name, t in tensors.items()}
    if len(set(dtypes.values())) > 1 or not tensors["down_proj"].is_floating_point():
        raise _refused("all must have one floating dtype", dtypes)
    devices = {name: str(t.device) for name, t in tensors.items()}
    if len(set(devices.values())) > 1:
        raise _refused("all must be on one device", devices)


def _refused(rule: str, got: object) -> JanusError:
    return JanusError("model.tensors", f"{rule}; got {got}; gate and up are [E, F, H], down is [E, H, F]")
