"""What may be asked of an exchange: every refusal happens here, before a byte is sent."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.distributed

from janus.comm.cost import CostModel
from janus.comm.terms import Timeouts
from janus.errors import JanusError, known
from janus.types.checks import instance
from janus.types.topology import Role

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GATES = ("experts", "attention")
CAPACITIES = ("exact", "bucket")
CPU = torch.device("cpu")


def dtype_of(dtype: Any) -> torch.dtype:
    """The torch dtype named or given, one of float32, bfloat16, float16.

    Example:
        >>> dtype_of("bfloat16")
        torch.bfloat16
    """
    name = known(str(dtype).removeprefix("torch."), DTYPES, "dtype", "comm.dtype")
    return DTYPES[name]


def device_of(device: Any) -> torch.device:
    """The device: the CPU, where gloo carries the rows, or a CUDA device that is there, where NCCL does."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise JanusError("comm.device", f"device must name a torch device, got {device!r}: {error}") from None
    if found.type not in ("cpu", "cuda"):
        raise JanusError("comm.device", f"rows travel on device 'cpu' (gloo) or 'cuda' (NCCL), got {device!r}")
    if found.type == "cuda" and not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
        raise JanusError(
            "comm.device", f"device {device!r} needs a CUDA device and NCCL, and this torch sees none; use 'cpu'"
        )
    return found


def at_least_one(**sizes: Any) -> None:
    """Refuse a size that is not an integer >= 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise JanusError(f"comm.{name}", f"{name} must be an integer >= 1, got {size!r}")


def check_values(timeouts: Any, contract: Any, cost: Any) -> None:
    """Refuse values of other kinds than `Exchange` names; None stands for the default."""
    remedy = "leave it out for the default"
    if timeouts is not None:
        instance(timeouts, Timeouts, "timeouts must be a janus.comm.Timeouts", "comm.timeouts", remedy)
    if contract is not None:
        instance(contract, dict, "contract must be a dict of JSON values", "comm.contract", remedy)
    if cost is not None:
        instance(cost, CostModel, "cost must be a janus.comm.CostModel", "comm.cost", remedy)


def check_role(role: Role, wanted: Role, rank: int, what: str) -> None:
    """Refuse a call that belongs to the other side."""
    if role != wanted:
        raise JanusError(
            "comm.role", f"{what} is for {wanted} ranks; rank {rank} is {role} in this topology; see Topology.role"
        )


def check_count(b: Any, max_tokens: int) -> None:
    """Refuse a token count outside 0..max_tokens."""
    if isinstance(b, bool) or not isinstance(b, int) or not 0 <= b <= max_tokens:
        raise JanusError(
            "comm.count",
            f"b must be an integer in 0..{max_tokens} (max_tokens, or the fixed capacity), got {b!r}; split the batch or "
            "raise it",
        )


def capacity_of(capacity: Any, max_tokens: int) -> int | str:
    """``"exact"``, ``"bucket"`` or a number of rows in 1..max_tokens."""
    if isinstance(capacity, str):
        return known(capacity, CAPACITIES, "capacity (if no number)", "comm.capacity")
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= max_tokens:
        rule = f"capacity must be 'exact', 'bucket' or an integer in 1..max_tokens={max_tokens}"
        raise JanusError("comm.capacity", f"{rule}, got {capacity!r}")
    return capacity


def check_rows(
    name: str, rows: Any, shape: tuple[int | None, ...], dtype: torch.dtype, device: torch.device = CPU
) -> None:
    """Refuse `rows` unless it is a tensor of `shape` (None: any size), `dtype` and `device`."""
    wanted = "[" + ", ".join("b" if n is None else str(n) for n in shape) + "]"
    if not isinstance(rows, torch.Tensor):
        raise JanusError(f"comm.{name}", f"{name} must be a torch tensor {wanted}, got {type(rows).__name__}")
    fits = rows.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, rows.shape, strict=True))
    if not fits or rows.dtype != dtype or rows.device.type != device.type:
        got = f"{rows.dtype} {list(rows.shape)} on {rows.device}"
        raise JanusError(f"comm.{name}", f"{name} must be {dtype} {wanted} on {device}, got {got}; convert it first")


def check_out(out: Any, rows: int, width: int, dtype: torch.dtype, device: torch.device, gate: str) -> None:
    """Refuse a buffer to receive into that is too small, not contiguous, or useless with this gate."""
    if out is None:
        return
    if gate != "experts":
        raise JanusError("comm.out", 'receive(out=...) is for gate="experts", where the rows need no unpacking')
    check_rows("out", out, (None, width), dtype, device)
    if len(out) < rows or not out.is_contiguous():
        raise JanusError(
            "comm.out", f"out must be contiguous with room for {rows} rows, got {len(out)}; see Step.sizes"
        )


def check_ids(name: str, ids: Any, b: int, top_k: int | None, bound: int | None, device: torch.device = CPU) -> None:
    """Refuse ids unless int32 or int64 [b, K] on `device` and, with a `bound` on the CPU, within -1..bound-1."""
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int32, torch.int64):
        got = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise JanusError(f"comm.{name}", f"{name} must be an int32 or int64 tensor, got {got}")
    check_rows(name, ids, (b, top_k), ids.dtype, device)
    # on a device a look at the values would be a host sync
    if bound is not None and ids.numel() and device.type == "cpu" and (int(ids.min()) < -1 or int(ids.max()) >= bound):
        raise JanusError(
            f"comm.{name}",
            f"{name} must lie in -1..{bound - 1}, got {int(ids.min())}..{int(ids.max())}; "
            "physical id = instance * slots_per_instance + slot",
        )


def check_choices(
    gate: str, physical_ids: Any, weights: Any, b: int, top_k: int, slots: int, like: torch.Tensor
) -> None:
    """Refuse choices with gate "experts", missing or misshapen ones with gate "attention"."""
    if gate == "experts":
        if physical_ids is not None or weights is not None:
            raise JanusError(
                "comm.gate", 'gate="experts" routes on the expert side: leave out physical_ids and weights'
            )
        return
    if physical_ids is None or weights is None:
        raise JanusError("comm.gate", 'gate="attention" needs dispatch(x, physical_ids=[b, K], weights=[b, K])')
    dtype, device = like.dtype, like.device
    check_ids("physical_ids", physical_ids, b, top_k, slots, device)
    kind = weights.dtype if isinstance(weights, torch.Tensor) else dtype
    if kind not in (dtype, torch.float32):
        raise JanusError("comm.weights", f"weights must be float32 or {dtype}, got {kind}")
    check_rows("weights", weights, (b, top_k), kind, device)


def order(message: str) -> NoReturn:
    """Refuse a call that comes at the wrong moment."""
    raise JanusError("comm.order", message)
