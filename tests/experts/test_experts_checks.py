"""Every kind of wrong call is refused by its code before anything runs, and what only looks odd works."""

import pytest
import torch
from torch import nn

from janus import JanusError
from janus.experts.checks import check_call
from janus.experts.layout import ExpertLayout
from janus.experts.slots import ExpertSlots

E, H, F, T, K = 4, 6, 5, 3, 2


class Experts(nn.Module):
    """Four experts in the usual layout."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_experts, self.act_fn = E, torch.nn.functional.silu
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * F, H).to(dtype))
        self.down_proj = nn.Parameter(torch.randn(E, H, F).to(dtype))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise NotImplementedError


def _slots(dtype: torch.dtype = torch.float32) -> ExpertSlots:
    return ExpertSlots.from_module(Experts(dtype), range(E), compute="eager")


SLOTS = _slots()
X, IDS, WEIGHTS = torch.randn(T, H), torch.tensor([[0, 1], [2, 3], [3, 0]]), torch.rand(T, K)


class Tagged(torch.Tensor):
    """A subclass that changes nothing."""


def tagged(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(Tagged)


def _refused(*call, slots: ExpertSlots = SLOTS) -> str:
    with pytest.raises(JanusError) as error:
        check_call(slots, E, *call)
    return error.value.code


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("layer.shape", (X[None], IDS, WEIGHTS)),
        ("layer.shape", (X[0], IDS, WEIGHTS)),
        ("layer.shape", (X[:2], IDS, WEIGHTS)),
        ("layer.shape", (X[:, :5], IDS, WEIGHTS)),
        ("layer.shape", (X, IDS[:2], WEIGHTS)),
        ("layer.shape", (X, IDS, WEIGHTS[:, :1])),
        ("layer.shape", (X, IDS[:, 0], WEIGHTS[:, 0])),
        ("layer.shape", (X, IDS[..., None], WEIGHTS[..., None])),
        ("layer.shape", (X, torch.zeros(T, E + 1).long(), torch.zeros(T, E + 1))),
        ("layer.shape", (X.tolist(), IDS, WEIGHTS)),
        ("layer.shape", (X, IDS.numpy(), WEIGHTS)),
        ("layer.shape", (X, IDS, None)),
        ("layer.tensor", (tagged(X), IDS, WEIGHTS)),
        ("layer.tensor", (X, tagged(IDS), WEIGHTS)),
        ("layer.tensor", (X, IDS.to_sparse(), WEIGHTS)),
        ("layer.tensor", (X, IDS, WEIGHTS.to_mkldnn())),
        ("layer.dtype", (X.double(), IDS, WEIGHTS)),
        ("layer.dtype", (X.bfloat16(), IDS, WEIGHTS)),
        ("layer.dtype", (X.long(), IDS, WEIGHTS)),
        ("layer.dtype", (X, IDS.float(), WEIGHTS)),
        ("layer.dtype", (X, IDS.bool(), WEIGHTS)),
        ("layer.dtype", (X, IDS.to(torch.uint64), WEIGHTS)),
        ("layer.dtype", (X, IDS, WEIGHTS.long())),
        ("layer.dtype", (X, IDS, WEIGHTS.to(torch.complex64))),
        ("layer.device", (X.to("meta"), IDS, WEIGHTS)),
        ("layer.device", (X, IDS.to("meta"), WEIGHTS)),
        ("layer.device", (X, IDS, WEIGHTS.to("meta"))),
        ("layer.device", (X.to("meta"), IDS.to("meta"), WEIGHTS.to("meta"))),
    ],
)
def test_a_wrong_call_is_refused_by_its_code(code, call):
    assert _refused(*call) == code


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors"
)  # torch says so of each; refusing them stays right
def test_nested_tensors_are_refused_before_they_are_asked_for_a_shape():
    assert _refused(X, IDS, torch.nested.nested_tensor([WEIGHTS[0], WEIGHTS[1, :1]])) == "layer.tensor"


def test_what_only_looks_odd_is_taken():
    check_call(SLOTS, E, X, IDS, WEIGHTS)
    check_call(SLOTS, E, nn.Parameter(X), IDS, nn.Parameter(WEIGHTS))
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        check_call(SLOTS, E, X, IDS.to(dtype), WEIGHTS.bfloat16())
    check_call(SLOTS, E, X.t().contiguous().t(), IDS.t().contiguous().t(), WEIGHTS[:1].expand(T, K))
    check_call(SLOTS, E, X[:0], IDS[:0], WEIGHTS[:0])
    check_call(SLOTS, E, X, IDS[:, :0], WEIGHTS[:, :0])


def test_a_refusal_says_rule_values_and_remedy():
    with pytest.raises(JanusError, match=r"hidden \[T, H = 6\].*\(3, 5\), \(3, 2\), \(3, 2\); reshape"):
        check_call(SLOTS, E, X[:, :5], IDS, WEIGHTS)
    with pytest.raises(JanusError, match=r"torch\.float32, got torch\.bfloat16; cast"):
        check_call(SLOTS, E, X.bfloat16(), IDS, WEIGHTS)
    with pytest.raises(JanusError, match=r"among 4 experts, got K = 5"):
        check_call(SLOTS, E, X, torch.zeros(T, 5).long(), torch.zeros(T, 5))
    with pytest.raises(JanusError, match=r"topk_ids must be a plain dense torch.Tensor, got the subclass Tagged"):
        check_call(SLOTS, E, X, tagged(IDS), WEIGHTS)
    with pytest.raises(JanusError, match=r"topk_ids on meta.*move them"):
        check_call(SLOTS, E, X, IDS.to("meta"), WEIGHTS)


def test_experts_without_data_are_refused():
    slots = _slots().to("meta")
    assert _refused(X.to("meta"), IDS.to("meta"), WEIGHTS.to("meta"), slots=slots) == "layer.device"
    assert _refused(X, IDS, WEIGHTS, slots=slots) == "layer.device"


def test_weights_in_eight_bits_need_their_scales():
    class Stored(ExpertSlots):
        dtype = torch.float32  # pyright: ignore[reportAssignmentType]

    slots = Stored(ExpertLayout.of(Experts()), range(E), dtype=torch.int8, compute="eager")
    assert _refused(X, IDS, WEIGHTS, slots=slots) == "layer.scales"
    slots.register_parameter("down_proj_scale", nn.Parameter(torch.ones(E, H, 1), requires_grad=False))
    check_call(slots, E, X, IDS, WEIGHTS)


def test_autocast_joins_half_and_single_but_never_double():
    half = _slots(torch.bfloat16)
    assert _refused(X, IDS, WEIGHTS, slots=half) == "layer.dtype"
    with torch.autocast("cpu", torch.bfloat16):
        check_call(half, E, X, IDS, WEIGHTS)
        check_call(SLOTS, E, X.bfloat16(), IDS, WEIGHTS)
        assert _refused(X.double(), IDS, WEIGHTS, slots=half) == "layer.dtype"
        assert _refused(X.long(), IDS, WEIGHTS, slots=half) == "layer.dtype"


def test_the_eager_way_is_left_to_autocast_and_fused_ways_get_the_dtype_of_the_weights():
    half, seen = ExpertSlots(ExpertLayout.of(Experts()), range(E), dtype=torch.bfloat16), []
    now, half._chosen = (half.device, half.dtype), {(half.device, half.dtype): "fused"}
    for way in ("eager", "fused"):
        half._engines[way, *now] = lambda x, ids, weights, way=way: seen.append((way, x.dtype, x.is_contiguous())) or x
    strided = torch.randn(T, 2 * H)[:, ::2]
    assert half(strided, IDS, WEIGHTS).dtype == torch.float32
    assert half(strided.requires_grad_(), IDS, WEIGHTS).dtype == torch.float32
    assert seen == [("fused", torch.bfloat16, True), ("eager", torch.float32, True)]
