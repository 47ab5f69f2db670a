"""The trained model of examples/tiny_moe: what its README promises about the checkpoint, the trace and the prompts.

Layers: plain numbers, and forwards on one CPU process. Everything here ran without a GPU.
"""

import importlib
import json
import math
import re
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from janus.types import RoutingTrace

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")
pytest.importorskip("typer")
pytest.importorskip("rich")

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_moe"
CHECKPOINT = EXAMPLE / "checkpoint"
LAYERS, EXPERTS, TOP_K = 4, 64, 4
PARAMETERS = 3_442_048

# Held-out text (act 4 of The Taming of the Shrew; heapq.py of Python 3.11), so that the test needs no download.
EXCERPT = {
    "prose": """\
Tailor:
This is true that I say: an I had thee
in place where, thou shouldst know it.

GRUMIO:
I am for thee straight: take thou the
bill, give me thy mete-yard, and spare not me.

HORTENSIO:
God-a-mercy, Grumio! then he shall have no odds.

PETRUCHIO:
Well, sir, in brief, the gown is not for me.

GRUMIO:
You are i' the right, sir: 'tis for my mistress.
""",
    "code": '''\
def heappush(heap, item):
    """Push item onto heap, maintaining the heap invariant."""
    heap.append(item)
    _siftdown(heap, 0, len(heap)-1)

def heappop(heap):
    """Pop the smallest item off the heap, maintaining the heap invariant."""
    lastelt = heap.pop()    # raises appropriate IndexError if heap is empty
    if heap:
        returnitem = heap[0]
        heap[0] = lastelt
        _siftup(heap, 0)
''',
}


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as its own scripts import each other, and forgotten afterwards."""
    names = ("corpus", "scoring", "routing", "train", "record", "prompts", "evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def model():
    """The checkpoint through the plainest call there is, in one thread: on a busy machine two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()
    torch.set_num_threads(threads)


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def readme_row(name: str) -> dict[str, float]:
    """The row `name` of the README's table of bits per byte."""
    row = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    return dict(zip(("prose", "code", "both"), map(float, row[1].split("|")), strict=True))


# The checkpoint


def test_stored_in_bf16_with_the_names_transformers_writes_in_at_most_8_MB():
    projections = [f"{p}_proj.weight" for p in ("gate", "up", "down")]
    experts = {
        f"model.layers.{n}.mlp.experts.{e}.{p}" for n in range(LAYERS) for e in range(EXPERTS) for p in projections
    }
    with safetensors.safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert {name for name in names if ".experts." in name} == experts
    assert {f"model.layers.{n}.mlp.gate.weight" for n in range(LAYERS)} <= names
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) <= 8_000_000


def test_loads_as_a_float32_model_of_the_stated_size(model):
    assert type(model) is transformers.Qwen3MoeForCausalLM
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.num_parameters() == PARAMETERS
    assert f"{PARAMETERS:,}" in (EXAMPLE / "README.md").read_text()


@pytest.mark.parametrize("kind", EXCERPT)
def test_beats_the_counting_models_on_held_out_text(model, example, kind):
    # The README's numbers are over 110,000 bytes with 256 bytes of context; the excerpt gives less of it, so that the
    # model's own number is higher here. Uniform, unigram and bigram use no context and have none to lose.
    bits = example.scoring.model_bits(model, as_bytes(EXCERPT[kind])).mean()
    rows = [readme_row(name)[kind] for name in ("bigram, told the kind", "bigram", "unigram", "uniform")]
    assert rows == sorted(rows)
    assert bits < rows[0]


def test_the_trained_formulation_and_the_default_one_agree(model):
    ids = torch.tensor([list(EXCERPT["code"].encode()[:256])])
    loss = {}
    for implementation in ("eager", "grouped_mm"):
        model.set_experts_implementation(implementation)
        loss[implementation] = model(input_ids=ids, labels=ids).loss.item()
    # Same float32 products summed in another order; 1e-4 nats leaves room for a tie at the router to fall elsewhere.
    assert loss["eager"] == pytest.approx(loss["grouped_mm"], abs=1e-4)


def test_greedy_generation_runs_to_full_length_and_repeats(model):
    ids = torch.tensor([list(b"ROMEO:\n")])
    runs = [
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False) for _ in range(2)
    ]
    assert runs[0].shape == (1, 7 + 24)
    assert torch.equal(*runs)
    assert all(chr(byte).isprintable() or byte == ord("\n") for byte in runs[0][0].tolist())


# The routing trace and the prompts


@pytest.fixture(scope="module")
def trace():
    return RoutingTrace.load(EXAMPLE / "routing.npz")


def test_the_trace_is_recorded_small_and_complete(trace):
    assert (trace.num_tokens, trace.num_layers, trace.top_k, trace.num_experts) == (4096, LAYERS, TOP_K, EXPERTS)
    assert not trace.synthetic
    assert trace.source.startswith("recorded: examples/tiny_moe")
    assert (EXAMPLE / "routing.npz").stat().st_size < 300_000
    ordered = np.sort(trace.ids, axis=-1)
    assert (ordered[..., 1:] > ordered[..., :-1]).all(), "a token chooses distinct experts"
    assert (trace.counts() > 0).all(), "no expert died in training"


def test_prose_and_code_choose_different_experts(trace, example):
    prose, code = (example.routing.usage(half, EXPERTS) for half in np.split(trace.ids, 2))
    apart = example.routing.total_variation(prose, code)
    within = np.mean(
        [
            example.routing.total_variation(*(example.routing.usage(part, EXPERTS) for part in np.split(half, 2)))
            for half in np.split(trace.ids, 2)
        ],
        axis=0,
    )
    # Tokens dealt at random to two halves are 0.05 apart; the kinds, measured, 0.21 to 0.43. The two halves of one kind
    # are 0.12 apart on average, since their subject differs; the kinds must differ by clearly more than subjects do.
    assert (apart > 0.15).all()
    assert (apart > 1.5 * within).all()


def test_the_hooks_read_what_the_routers_chose(model, example):
    ids = torch.tensor([list(EXCERPT[kind].encode()[:64]) for kind in EXCERPT])
    hooks = [len(layer.mlp.gate._forward_hooks) for layer in model.model.layers]
    chosen = example.routing.chosen_experts(model, ids)
    assert [len(layer.mlp.gate._forward_hooks) for layer in model.model.layers] == hooks
    logits = model(input_ids=ids, output_router_logits=True).router_logits
    expected = torch.stack([layer.topk(TOP_K).indices for layer in logits], dim=1).view(2, 64, LAYERS, TOP_K)
    assert chosen.dtype == np.int16
    assert chosen.tolist() == expected.tolist()


def test_the_committed_prompts_are_real_text_of_both_kinds():
    prompts = json.loads((EXAMPLE / "prompts.json").read_text())
    assert 16 <= len(prompts) <= 24
    assert [p["kind"] for p in prompts] == ["prose", "code"] * (len(prompts) // 2)
    assert all(bytes(p["ids"]).decode("latin-1") == p["text"] for p in prompts)
    lengths = [len(p["ids"]) for p in prompts]
    assert (min(lengths), max(lengths)) == (1, 200)


# The example's own code


@lru_cache
@torch.no_grad()
def window_log2(model, window: bytes) -> np.ndarray:
    """log2 of the probabilities [T, 256] that the model gives after each byte of `window`."""
    return (model(input_ids=torch.tensor([list(window)])).logits[0].log_softmax(-1) / math.log(2)).numpy()


def test_counting_models_on_hand_counted_text(example):
    train, data = [as_bytes("aab")], as_bytes("ab")
    assert example.scoring.unigram_bits(train, data).tolist() == [pytest.approx(math.log2(259 / 2))]
    assert example.scoring.bigram_bits(train, data).tolist() == [pytest.approx(math.log2(258 / 2))]


@pytest.mark.parametrize("length", [2, 256, 513, 514, 769, 900])
def test_every_byte_is_scored_once_and_in_place(model, example, length):
    # Lengths at, before and after the edges of the windows of 512 that move by 256. The expectation takes the bytes one
    # by one: which window has it, and the logits of its place there.
    data = as_bytes((EXCERPT["prose"] + EXCERPT["code"]) * 2)[:length]
    last, expected = length - 1, []
    for at in range(1, length, 37):
        start = max(0, math.ceil((at - 512) / 256) * 256)
        start = start if start + 512 <= last else max(0, last - 512)
        expected.append(-window_log2(model, data[start : start + 512].tobytes())[at - 1 - start, data[at]])
    bits = example.scoring.model_bits(model, data)
    assert bits.shape == (last,)
    # The same float32 sums in batches of another shape; bits lie between 0 and 20.
    assert bits[::37] == pytest.approx(expected, abs=1e-3)


def test_total_variation_on_hand_counted_usage(example):
    ids = np.array([[[0, 1]], [[0, 2]]])
    usage = example.routing.usage(ids, 4)
    assert usage.tolist() == [[0.5, 0.25, 0.25, 0.0]]
    assert example.routing.total_variation(usage, np.array([[0.0, 0.25, 0.25, 0.5]])).tolist() == [0.5]


def test_balance_loss_is_one_when_even_and_more_when_one_expert_is_hot(example):
    even = torch.eye(4) * 9
    hot = even.clone()
    hot[:, 0] = 20
    assert example.train.balance_loss(even, top_k=1).item() == pytest.approx(1.0)
    assert example.train.balance_loss(hot, top_k=1).item() == pytest.approx(4.0, rel=1e-3)


def test_batches_hold_equal_rows_of_both_kinds_and_grow_longer(example):
    parts = [np.full(2000, 1, np.uint8), np.full(2000, 2, np.uint8)]
    shapes = []
    for ids_BT in example.train.batches(parts, steps=4, seed=0):
        shapes.append(tuple(ids_BT.shape))
        assert ids_BT[:, 0].bincount().tolist() == [0, len(ids_BT) // 2, len(ids_BT) // 2]
    assert shapes == [(8, 257)] * 3 + [(4, 513)]


def test_two_steps_of_training_learn_and_save_what_was_committed(example, tmp_path):
    parts = {kind: example.corpus.Corpus(*[np.tile(as_bytes(text), 4)] * 2) for kind, text in EXCERPT.items()}
    torch.manual_seed(0)
    fresh = transformers.AutoModelForCausalLM.from_config(example.train.config(), experts_implementation="grouped_mm")
    before = example.scoring.model_bits(fresh, parts["prose"].heldout).mean()
    example.train.fit(fresh, parts, steps=2, lr=0.1, seed=0)
    assert example.scoring.model_bits(fresh, parts["prose"].heldout).mean() < before
    example.train.save(fresh, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((CHECKPOINT / "config.json").read_text())


@pytest.mark.parametrize("script", ["train", "evaluate", "record", "prompts"])
def test_missing_text_is_refused_with_the_remedy(example, script, tmp_path):
    typer, testing = importlib.import_module("typer"), importlib.import_module("typer.testing")
    app = typer.Typer()
    app.command()(getattr(example, script).main)
    result = testing.CliRunner().invoke(app, ["--text", str(tmp_path / "absent.txt")])
    assert result.exit_code == 2
    assert "char-rnn" in result.output
    assert "--text PATH" in " ".join(result.output.replace("│", " ").split())
