"""What one rank gives to an all-to-all and asks of it; every mistake that one rank can see is refused here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch

from janus.comm.layout import offsets
from janus.comm.ports import IntArray
from janus.comm.roster import Roster
from janus.errors import JanusError
from janus.types.checks import integer, shown


@dataclass(frozen=True)
class Order:
    """Checked arguments.

    Args:
        input: the rows as bytes, flat.
        output: where they go, as bytes, flat.
        sent: rows for each rank.
        expected: rows from each rank.
        row_bytes: bytes of a row.
        dtype: of the rows.
    """

    input: torch.Tensor
    output: torch.Tensor
    sent: tuple[int, ...]
    expected: tuple[int, ...]
    row_bytes: int
    dtype: torch.dtype

    def outgoing(self, target: int) -> torch.Tensor:
        """The bytes for one rank."""
        return self.input[self._sent_at[target] : self._sent_at[target + 1]]

    def incoming(self, first: int, stop: int) -> torch.Tensor:
        """Where the bytes from consecutive ranks go."""
        return self.output[self._expected_at[first] : self._expected_at[stop]]

    def sizes(self, me: int) -> IntArray:
        """[W, W]: rows of every piece that this rank knows by itself, else 0."""
        found = np.zeros((len(self.sent),) * 2, dtype=np.int64)
        found[me], found[:, me] = self.sent, self.expected
        return found

    @cached_property
    def _sent_at(self) -> list[int]:
        return offsets(n * self.row_bytes for n in self.sent)

    @cached_property
    def _expected_at(self) -> list[int]:
        return offsets(n * self.row_bytes for n in self.expected)


def order_of(output: Any, input: Any, output_split_sizes: Any, input_split_sizes: Any, roster: Roster) -> Order:
    """Check everything that one rank can see.

    Raises:
        JanusError: ``alltoall.tensor``, ``.grad``, ``.dtype``, ``.shape``, ``.overlap``, ``.device``, ``.splits``.
    """
    for name, tensor in (("output", output), ("input", input)):
        _check_tensor(name, tensor)
    _check_pair(output, input)
    _check_device(input, roster)
    a, b = output.data_ptr(), input.data_ptr()
    if a < b + input.nbytes and b < a + output.nbytes:
        refuse("overlap", "output and input must not share memory; give an output of its own")
    sent = _splits("input", input_split_sizes, len(input), roster)
    expected = _splits("output", output_split_sizes, len(output), roster)
    own = roster.me
    if sent[own] != expected[own]:
        rank = roster.rank(own)
        refuse("splits", contradicted(rank, rank, sent[own], expected[own]))
    row_bytes = math.prod(input.shape[1:]) * input.element_size()
    return Order(_bytes(input), _bytes(output), sent, expected, row_bytes, input.dtype)


def contradicted(source: int, target: int, sent: int, expected: int) -> str:
    """The sentence for two ranks that disagree about the rows between them."""
    rule = "what one rank sends another must be what that one expects"
    remedy = "exchange the splits before the rows"
    return f"{rule}; rank {source} sends rank {target} {sent} rows, rank {target} expects {expected}; {remedy}"


def refuse(code: str, message: str) -> NoReturn:
    """Raise ``alltoall.<code>``."""
    raise JanusError(f"alltoall.{code}", message)


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        refuse("tensor", f"{name} must be a torch tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dim() < 1 or not tensor.is_contiguous():
        got = f"{tensor.layout} {list(tensor.shape)}" + (f" with strides {tensor.stride()}" if tensor.layout == torch.strided else "")  # fmt: skip
        refuse(
            "tensor", f"{name} must be a dense contiguous tensor with rows along dim 0, got {got}; call .contiguous()"
        )
    if tensor.is_conj() or tensor.is_neg():
        refuse("tensor", f"{name} is a lazy conjugate or negative view; call .resolve_conj() and .resolve_neg()")
    if tensor.requires_grad:
        refuse("grad", f"all_to_all has no backward, but {name} requires grad; pass {name}.detach()")


def _check_pair(output: torch.Tensor, input: torch.Tensor) -> None:
    if output.dtype != input.dtype:
        refuse("dtype", f"output and input must have one dtype, got {output.dtype} and {input.dtype}; convert one")
    if output.shape[1:] != input.shape[1:]:
        got = f"{list(output.shape)} and {list(input.shape)}"
        refuse("shape", f"output and input must be alike in all dimensions but the first, got {got}")
    if output.device != input.device:
        refuse("device", f"output and input must be on one device, got {output.device} and {input.device}")


def _check_device(input: torch.Tensor, roster: Roster) -> None:
    try:
        backend = roster.group._get_backend(input.device).name()
    except RuntimeError:
        backend = "none"
    if backend not in ("gloo", "nccl"):
        remedy = "initialise the group with gloo for CPU tensors, NCCL for CUDA tensors"
        refuse(
            "device",
            f"all_to_all runs over gloo or NCCL, the group's backend for {input.device} is {backend}; {remedy}",
        )


def _splits(name: str, given: Any, rows: int, roster: Roster) -> tuple[int, ...]:
    world = roster.world
    if given is None or (isinstance(given, Sequence) and not given):  # torch takes an empty list for None
        if rows % world:
            refuse(
                "splits",
                f"without splits {name} must divide among {world} ranks, got {rows} rows; give {name}_split_sizes",
            )
        return (rows // world,) * world
    given = getattr(given, "tolist", lambda: given)()  # of an array or a tensor
    rule = (
        f"{name}_split_sizes must hold {world} numbers of rows, one per rank, that add up to the {rows} rows of {name}"
    )
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != world:
        refuse("splits", f"{rule}; got {shown(given)}")
    found = tuple(integer(n, f"each of {name}_split_sizes", "alltoall.splits") for n in given)
    if sum(found) != rows:
        refuse("splits", f"{rule}; got {shown(found)}, which add up to {sum(found)}")
    return found


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    return rows.detach().view(-1).view(torch.uint8)
