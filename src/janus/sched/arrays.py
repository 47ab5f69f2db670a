"""Torch or NumPy in, the same kind out, and no import of torch by us."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.errors import JanusError
from janus.sched.backends import Fill
from janus.sched.tables import LayerTables, Workspace
from janus.types.checks import instance
from janus.types.placement import Placement

Ids = npt.NDArray[np.integer]
MAX_ENTRIES = 2**31 - 1  # counted in int32


def is_tensor(value: object) -> bool:
    """True for a torch tensor; who holds one has imported torch already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def check_placement(placement: Any) -> Placement:
    """Refuse what is no `Placement`, with ``sched.placement``."""
    remedy = "make one with Placement(slots, num_experts=E) or place(...)"
    return instance(placement, Placement, "placement must be a janus.Placement", "sched.placement", remedy)


def host_ids(topk_ids: Any, num_slots: int) -> Ids:
    """Check `topk_ids` and return it as a NumPy array [T, K]; no copy for arrays and CPU tensors.

    Raises:
        JanusError: ``sched.input`` (neither kind), ``sched.dtype`` (no integers, or too narrow for physical ids),
            ``sched.shape`` (not 2-D), ``sched.limit`` (more entries than can be counted).
    """
    if is_tensor(topk_ids):
        topk_ids = _on_host(topk_ids)
    elif not isinstance(topk_ids, np.ndarray):
        rule = "topk_ids must be a NumPy array or a torch tensor [T, K]"
        raise JanusError("sched.input", f"{rule}, got {type(topk_ids).__name__}; np.asarray(...) makes one")
    refuse_masked(topk_ids)
    if topk_ids.dtype.kind not in "iu":
        raise _not_integers(topk_ids.dtype)
    if topk_ids.ndim != 2:
        remedy = "reshape to one row per token"
        raise JanusError("sched.shape", f"topk_ids must be [T, K], got shape {topk_ids.shape}; {remedy}")
    if topk_ids.size > MAX_ENTRIES:
        rule = f"a batch has at most {MAX_ENTRIES} entries"
        raise JanusError("sched.limit", f"{rule}, got shape {topk_ids.shape}; split the batch")
    if num_slots - 1 > np.iinfo(topk_ids.dtype).max:
        rule = f"physical ids up to {num_slots - 1} must fit the dtype of topk_ids"
        raise JanusError("sched.dtype", f"{rule}, got {topk_ids.dtype}; widen topk_ids, e.g. to int32")
    return topk_ids


def refuse_masked(topk_ids: Any) -> None:
    """Refuse an array whose mask nobody here would look at."""
    if isinstance(topk_ids, np.ma.MaskedArray):
        raise JanusError("sched.input", "a masked array hides entries that would count; pass topk_ids.filled(-1)")


def _on_host(ids: Any) -> npt.NDArray[Any]:
    """The array of a tensor; one without strides, data or a NumPy dtype has none."""
    if ids.dtype.is_floating_point or ids.dtype.is_complex:
        raise _not_integers(ids.dtype)
    try:
        return ids.cpu().numpy()  # host sync here when the tensor is on an accelerator
    except (NotImplementedError, RuntimeError, TypeError) as error:
        rule = "topk_ids must be a dense tensor of integers with data"
        remedy = "pass plain int32 or int64"
        raise JanusError("sched.input", f"{rule}, got one that has no host copy ({error}); {remedy}") from None


def _not_integers(dtype: object) -> JanusError:
    return JanusError("sched.dtype", f"topk_ids must be integers, got {dtype}; cast to int32 or int64")


def is_native(ids: Ids) -> bool:
    """True for what compiled code takes as it is: int32 or int64, contiguous, aligned, writeable."""
    return ids.flags.carray and ids.dtype in (np.int32, np.int64)


class Room:
    """Output of one dtype and K, and int64 staging for ids that compiled code does not take as they are.

    Args:
        ids: a first batch [T, K]; gives dtype, K and whether staging is needed.
        max_tokens: most tokens of a batch.
        as_tensor: show the output as a torch tensor.

    Attributes:
        shown: [max_tokens, K], what the caller sees; the first T rows are filled.
    """

    def __init__(self, ids: Ids, max_tokens: int, *, as_tensor: bool) -> None:
        shape = (max_tokens, ids.shape[1])
        self._out = np.empty(shape, dtype=ids.dtype.newbyteorder("="))
        self._stage = None if is_native(ids) else np.empty((2, *shape), dtype=np.int64)
        self.shown: Any = _plain_tensor(self._out) if as_tensor else self._out

    def run(self, fill: Fill, method: str, ids: Ids, tables: LayerTables, work: Workspace) -> None:
        """Fill the first T rows, or raise ``sched.range``."""
        out = self._out[: len(ids)]
        if self._stage is None:
            bad = fill(method, ids, out, tables, work)
        else:
            staged, staged_out = self._stage[:, : len(ids)]
            _widen(ids, staged, tables.num_experts)
            bad = fill(method, staged, staged_out, tables, work)
            np.copyto(out, staged_out, casting="unsafe")
        if bad >= 0:
            raise _out_of_range(ids, bad, tables.num_experts)


def _plain_tensor(array: Ids) -> Any:
    torch = sys.modules["torch"]
    with torch.inference_mode(False):  # made inside that mode, it could not be used outside it
        return torch.from_numpy(array)


def _widen(ids: Ids, staged: npt.NDArray[np.int64], num_experts: int) -> None:
    if ids.dtype.kind == "u" and ids.dtype.itemsize == 8:
        ids = np.minimum(ids, ids.dtype.type(num_experts))  # else 2**64 - 1 would pass as -1
    np.copyto(staged, ids, casting="unsafe")


def _out_of_range(ids: Ids, position: int, num_experts: int) -> JanusError:
    t, k = divmod(position, ids.shape[1])
    rule = f"topk_ids hold -1 or an expert in 0..{num_experts - 1}"
    remedy = "was the placement made for this model?"
    return JanusError("sched.range", f"{rule}; token {t}, choice {k} holds {ids[t, k]}; {remedy}")
