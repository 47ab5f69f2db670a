"""Whole paths in real processes: gloo ranks on this machine, small random models of five families.

One launch per topology, everything it must show inside (a process that imports torch costs seconds of CPU).
"""

import functools
import os

import pytest
import tiny
import tiny_fp8
import torch
from safetensors.torch import load_file, save_file
from serve_job import run_job

from janus import Placement, convert

LIMIT = 6
PROMPTS = tiny.prompts(5, longest=60)
# 16 experts on 4 instances with 6 slots: eight replicas for the balancer to choose from.
REPLICAS = Placement(
    [[0, 1, 2, 3, 4, 8], [4, 5, 6, 7, 0, 12], [8, 9, 10, 11, 1, 5], [12, 13, 14, 15, 2, 9]], 16
).to_dict()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    out = {family: str(tiny.save(family, root / family)) for family in tiny.FAMILIES}
    out["wider"] = str(tiny.save("mixtral", root / "wider", hidden_size=96))
    out["other-router"] = str(_with_other_router(root / "other-router"))
    _, plain = tiny_fp8.write(root / "fp8", tiny.build("deepseek_v3"))
    out["fp8"], out["fp8, dequantized"] = str(root / "fp8"), str(tiny.save("deepseek_v3", root / "fp8, dequantized"))
    plain = {name: t.float().contiguous() for name, t in plain.items()}
    save_file(plain, root / "fp8, dequantized" / "model.safetensors")
    out["unsure"] = str(tiny.save("qwen3_moe", root / "unsure", output_router_logits=True))
    out["no-head"] = str(tiny.save("mixtral", root / "no-head"))
    tensors = load_file(root / "no-head" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, root / "no-head" / "model.safetensors")
    return out


def _with_other_router(folder):
    model = tiny.build("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.neg_()
    model.save_pretrained(folder)
    return folder


@functools.cache
def greedy(family: str) -> list[list[int]]:
    """What the undivided model says, prompt by prompt, without padding."""
    model = tiny.build(family)
    out = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False)
            out.append(made[0, len(prompt) :].tolist())
    return out


def _case(**fields):
    return {"prompts": PROMPTS, "max_new_tokens": LIMIT, **fields}


COST = {"balance": "cost", "cost": [0.01, 1.0]}  # tokens set the time
EAGER = {"placement": REPLICAS, "compute": "eager"}
SAMPLED = {"do_sample": True, "temperature": 3.0, "top_k": 20, "top_p": 0.9, "seed": 7}


@pytest.fixture(scope="module")
def wide(folders):
    """2 attention and 4 expert ranks on nodes of 2."""
    mixtral, v3 = folders["mixtral"], folders["deepseek_v3"]
    cases = {
        **{family: _case(folder=folders[family]) for family in tiny.FAMILIES},
        **{
            f"{family}, attention gate": _case(folder=folders[family], options={"gate": "attention"})
            for family in tiny.FAMILIES
        },
        "gather": _case(folder=v3, options={"regime": "gather"}),
        "gather, attention gate": _case(folder=v3, options={"regime": "gather", "gate": "attention"}),
        "replicas": _case(folder=v3, options={"placement": REPLICAS, "record": True}),
        "replicas, attention gate": _case(folder=v3, options={"placement": REPLICAS, "gate": "attention"}),
        "replicas, each rank alone": _case(
            folder=v3, options={"placement": REPLICAS, "gate": "attention", "scope": "rank"}
        ),
        "cost": _case(folder=v3, options={"placement": REPLICAS, **COST}),
        "cost, attention gate": _case(folder=v3, options={"placement": REPLICAS, "gate": "attention", **COST}),
        "cost differs": _case(folder=v3, options=COST, ranks={"3": {"options": {**COST, "cost": [1.0, 2.0]}}}),
        "cost missing": _case(folder=v3, options={"balance": "cost"}),
        "eager": _case(folder=v3, options=EAGER),
        "each its own": _case(
            folder=v3, options={"placement": REPLICAS, "compute": "auto"}, ranks={"3": {"options": EAGER}}
        ),
        "cannot run": _case(folder=v3, options={"compute": "triton"}),
        "int8": _case(family="olmoe", logits=True, options={"quantize": "int8"}),
        "int8, folder": _case(folder=folders["olmoe"], logits=True, options={"quantize": "int8", "compute": "eager"}),
        "quantize differs": _case(folder=v3, options={"quantize": "fp8"}, ranks={"3": {"options": {}}}),
        "torn": _case(folder=folders["fp8"], options={"dtype": "float32", "quantize": "fp8"}),
        "fp8": _case(folder=folders["fp8"], options={"dtype": "float32"}),
        "fp8, dequantized": _case(folder=folders["fp8, dequantized"]),
        "chunks": _case(folder=v3, options={"max_tokens": 16}),
        "live": _case(family="olmoe"),
        "sampled": _case(folder=mixtral, generate=SAMPLED),
        "one prompt": _case(folder=mixtral, prompts=PROMPTS[:1]),
        "no prompt": _case(folder=mixtral, prompts=[]),
        "no new tokens": _case(folder=mixtral, max_new_tokens=0),
        "hidden size": _case(folder=mixtral, ranks={"3": {"folder": folders["wider"]}}),
        "dtype": _case(folder=mixtral, ranks={"0": {"options": {"dtype": "bfloat16"}}}),
        "router": _case(folder=mixtral, ranks={"4": {"folder": folders["other-router"]}}),
        "prompts differ": _case(folder=mixtral, ranks={"1": {"prompts": PROMPTS[:2]}}),
        "router logits": _case(folder=folders["unsure"]),
        "one broken rank": _case(folder=mixtral, ranks={"1": {"folder": folders["no-head"]}}),
        "more prompts than room": _case(folder=mixtral, options={"max_tokens": 2}),
        "bad ids": _case(folder=mixtral, prompts=[[1, 999]]),
        "after all that": _case(folder=mixtral),
    }
    env = _path() | {"TRITON_INTERPRET": "0"}  # so that "triton" cannot run on a CPU
    results = run_job({"topology": "2A4E", "gpus_per_node": 2, "cases": list(cases.values())}, env=env)
    return dict(zip(cases, results, strict=True))


def _path():
    return {"PYTHONPATH": os.pathsep.join(["src", "benchmarks"])}


@pytest.mark.parametrize("gate", ["", ", attention gate"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tokens_are_those_of_the_undivided_model(wide, family, gate):
    assert wide[family + gate]["completions"] == greedy(family)


@pytest.mark.parametrize(
    "case",
    [
        "gather",
        "gather, attention gate",
        "replicas",
        "replicas, attention gate",
        "replicas, each rank alone",
        "chunks",
        "cost",
        "cost, attention gate",
        "eager",
        "each its own",
    ],
)
def test_no_option_changes_the_tokens(wide, case):
    assert wide[case]["completions"] == greedy("deepseek_v3")


@pytest.mark.parametrize(
    ("case", "ways", "quantize"),
    [
        ("eager", ["eager"] * 4, None),
        ("each its own", ["mixed", "eager", "mixed", "mixed"], None),  # rank 3 is the second expert rank
        ("int8", ["mixed"] * 4, "int8"),
    ],
)
def test_expert_ranks_tell_how_they_run_and_keep_their_slots(wide, case, ways, quantize):
    told = [s for s in wide[case]["stats"] if s["role"] == "expert"]
    assert [s["compute"] for s in told] == ways
    assert {s["quantize"] for s in told} == {quantize}


def test_a_folder_in_fp8_serves_as_its_dequantized_weights_do(wide):
    assert wide["fp8"]["completions"] == wide["fp8, dequantized"]["completions"]
    assert wide["fp8"]["completions"] != greedy("deepseek_v3")  # not the weights it was made of


def test_a_live_model_serves_like_a_folder(wide):
    assert wide["live"]["completions"] == greedy("olmoe")


@pytest.mark.parametrize("case", ["int8", "int8, folder"])
def test_experts_in_8_bits_are_those_of_a_converted_model(wide, case):
    logits = torch.tensor(wide[case]["completions"])
    with torch.inference_mode():
        want, plain = (
            torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
            for model in (convert(tiny.build("olmoe"), quantize="int8"), tiny.build("olmoe"))
        )
    largest = want.abs().max()
    assert (logits - want).abs().max() < 1e-5 * largest  # partial sums of four instances, in float32
    assert (logits - plain).abs().max() > 1e-3 * largest


def test_few_or_no_prompts(wide):
    assert wide["one prompt"]["completions"] == greedy("mixtral")[:1]
    assert wide["no prompt"]["completions"] == []
    assert wide["no new tokens"]["completions"] == [[]] * len(PROMPTS)


@pytest.mark.parametrize(
    ("case", "code", "named"),
    [
        ("hidden size", "comm.contract", "hidden_size"),
        ("dtype", "comm.contract", "dtype"),
        ("cost differs", "comm.contract", "token_us=2.0"),
        ("cost missing", "sched.cost", "RooflineCost(read_us=..., token_us=...)"),
        ("cannot run", "experts.compute", "rank 2 (expert): compute='triton' cannot run here"),
        ("quantize differs", "comm.contract", 'rank 0 has "fp8", rank 3 has null'),
        ("torn", "checkpoint.quantized", "do not line up"),
        ("router", "router.disagree", "MoE layer 1"),
        ("router logits", "model.router", "output_router_logits"),
        ("one broken rank", "checkpoint.missing", "rank 1 (attention)"),
    ],
)
def test_what_ranks_disagree_on_is_an_error_on_every_rank(wide, case, code, named):
    result = wide[case]
    assert result["errors"] == [code] * 6
    assert named in result["message"]


def test_wrong_prompts_are_an_error_on_the_attention_ranks_and_the_pools_live_on(wide):
    assert wide["bad ids"]["errors"][:2] == ["generate.prompts"] * 2
    assert wide["more prompts than room"]["errors"][:2] == ["generate.prompts"] * 2  # 3 on rank 0, 2 on rank 1
    assert wide["prompts differ"]["errors"][:2] == ["generate.differ"] * 2
    assert wide["after all that"]["completions"] == greedy("mixtral")


def test_stats_tell_where_time_and_bytes_went(wide):
    stats = wide["replicas"]["stats"]
    assert [s["role"] for s in stats] == ["attention"] * 2 + ["expert"] * 4
    assert all(s["tpot_ms"] > 0 and s["seconds"]["exchange"] > 0 for s in stats[:2])
    assert sum(s["tokens"] for s in stats[:2]) == sum(map(len, wide["replicas"]["completions"]))
    layers = [s["layers"] for s in stats[2:]]
    assert all(part == layers[0] for part in layers)  # every instance saw the same batches and the same choice
    assert all(0 < x["lower_bound"] <= x["a_max"] <= 6 for x in layers[0])
    assert all(0 < x["tokens_mean"] <= x["tokens_max"] for x in layers[0])
    served = sum(map(len, PROMPTS)) + sum(len(c) - 1 for c in wide["replicas"]["completions"])
    top_k = 3
    assert all(
        x["entries"] == top_k * served for x in layers[0]
    )  # no padding, nobody twice: the last token is not fed back


def test_stats_of_the_balancer_are_where_the_gate_is(wide):
    stats = wide["replicas, attention gate"]["stats"]
    assert ["layers" in s for s in stats] == [True] * 2 + [False] * 4
    assert stats[0]["layers"] == stats[1]["layers"]  # both balance the whole batch
    assert all(x["batches"] > 0 for x in stats[0]["layers"])


@pytest.fixture(scope="module")
def uneven(folders):
    """3 attention and 2 expert ranks: the third attention rank is alone on its node; a sixth process has no role."""
    direct, gather = (_case(folder=folders["olmoe"], options={"regime": r}) for r in ("direct", "gather"))
    sampled = _case(folder=folders["mixtral"], generate=SAMPLED)
    loops = [_case(folder=folders["olmoe"], own_loop=True, options={"gate": gate}) for gate in ("experts", "attention")]
    cases = [direct, gather, sampled, *loops]
    return run_job({"topology": "3A2E", "gpus_per_node": 2, "world": 6, "cases": cases}, env=_path())


def test_gather_sends_fewer_messages_between_nodes_than_direct(uneven):
    direct, gather = uneven[:2]
    assert direct["completions"] == gather["completions"] == greedy("olmoe")
    messages = [sum(s["traffic"]["between_nodes"]["messages"] for s in r["stats"][:5]) for r in (direct, gather)]
    assert messages[1] < messages[0]


def test_sampling_depends_on_seed_and_prompt_not_on_the_spread(wide, uneven):
    assert wide["sampled"]["completions"] == uneven[2]["completions"] != greedy("mixtral")


def test_the_users_own_loop_gives_the_same_tokens_with_the_other_ranks_idle(uneven):
    want = [tokens[: tokens.index(2) + 1] if 2 in tokens else tokens for tokens in greedy("olmoe")]
    for result in uneven[3:]:
        got = [tokens[: len(w)] for tokens, w in zip(result["completions"], want, strict=True)]
        assert got == want  # the user's loop does not stop at the end-of-sequence token 2


def test_a_process_that_the_topology_does_not_name_is_idle(uneven):
    assert [r["stats"][5]["role"] for r in uneven] == ["idle"] * 5
