"""Reading one role's part of a folder: right bytes, nothing else, and every defect named before serving."""

import json
import pickle

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from janus import JanusError
from janus.experts.checkpoint import Checkpoint
from janus.experts.slots import slice_expert


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return tiny.save(request.param, folder), tiny.build(request.param)


def test_every_expert_and_router_is_read_bit_for_bit(saved):
    folder, model = saved
    with Checkpoint(folder) as checkpoint:
        checkpoint.check_experts()
        for block in checkpoint.blocks:
            live = model.get_submodule(f"{block.name}.{block.experts_attr}")
            for e in (0, 7, 15):
                got, want = checkpoint.expert(block, e), slice_expert(live, e)
                assert got.keys() == want.keys()
                assert all(torch.equal(got[name], want[name]) for name in want)
            router = checkpoint.router(block)
            x = torch.randn(1, 9, 64)
            mine, theirs = router(x), model.get_submodule(f"{block.name}.gate")(x)
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_attention_side_has_all_other_weights_and_no_expert(saved):
    folder, model = saved
    with Checkpoint(folder) as checkpoint:
        loaded = checkpoint.load_attention_side()
    want = {k: v for k, v in model.state_dict().items() if ".experts." not in k}
    got = loaded.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


KEPT_IN_FLOAT32 = {
    "Ernie4_5_MoeConfig": dict(
        moe_num_experts=8, moe_k=2, moe_intermediate_size=32, moe_layer_start_index=0
    ),  # by pattern
    "HunYuanMoEV1Config": dict(num_experts=8, moe_topk=2, head_dim=16),  # by the module
}


@pytest.mark.parametrize("name", KEPT_IN_FLOAT32)
def test_a_router_has_the_dtypes_the_undivided_model_gives_it(name, tmp_path):
    config = getattr(transformers, name)(**(tiny.BASE | KEPT_IN_FLOAT32[name] | {"num_hidden_layers": 2}))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with Checkpoint(tmp_path, dtype=torch.bfloat16) as checkpoint:
        block = checkpoint.blocks[-1]
        got = checkpoint.router(block).state_dict()
    want = model.get_submodule(f"{block.name}.{block.need_router().attr}").state_dict()
    assert torch.float32 in {t.dtype for t in want.values()}
    assert {k: t.dtype for k, t in got.items()} == {k: t.dtype for k, t in want.items()}
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.fixture
def folder(tmp_path):
    return tiny.save("mixtral", tmp_path / "model")


def _load_all(folder) -> None:
    with Checkpoint(folder) as checkpoint:
        checkpoint.check_experts()
        checkpoint.load_attention_side()


def _code(folder) -> str:
    with pytest.raises(JanusError) as error:
        _load_all(folder)
    assert str(folder) in str(error.value)
    return error.value.code


def test_no_folder(tmp_path):
    assert _code(tmp_path / "nowhere") == "checkpoint.folder"


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert _code(folder) == "checkpoint.config"


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    assert _code(folder) == "checkpoint.config"


def test_config_of_something_else(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert _code(folder) == "checkpoint.config"


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert _code(folder) == "checkpoint.missing"


def test_weights_as_pickle_are_refused_unread(folder):
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert _code(folder) == "checkpoint.pickle"


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert _code(folder) == "checkpoint.corrupt"


def test_missing_shard(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    names[next(iter(names))] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert _code(folder) == "checkpoint.missing"


def test_index_that_leads_out_of_the_folder(folder):
    names = {"lm_head.weight": "../elsewhere.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert _code(folder) == "checkpoint.corrupt"


def _first_expert(folder) -> None:
    with Checkpoint(folder) as checkpoint:
        checkpoint.check_experts()
        checkpoint.expert(checkpoint.blocks[0], 0)


EXPERTS = "model.layers.0.block_sparse_moe.experts."


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (
            lambda k, t: {k.replace(".experts.7.", ".experts.99."): t},
            "checkpoint.missing",
        ),  # would shift 8 experts by one
        (lambda k, t: {} if ".w3." in k else {k: t}, "checkpoint.corrupt"),
        (lambda k, t: {k: t[:, :1].contiguous() if ".0.w3." in k else t}, "checkpoint.corrupt"),
        (
            lambda k, t: {k: t[:1].contiguous() if ".w2." in k else t},
            "checkpoint.corrupt",
        ),  # would be spread over all rows
    ],
    ids=["misnumbered", "no up projection", "one shape differs", "all shapes differ"],
)
def test_experts_that_do_not_fit_the_config(folder, change, code):
    tensors = load_file(folder / "model.safetensors")
    changed = [change(k, t) if k.startswith(EXPERTS) else {k: t} for k, t in tensors.items()]
    save_file({k: t for part in changed for k, t in part.items()}, folder / "model.safetensors")
    with pytest.raises(JanusError) as error:
        _first_expert(folder)
    assert error.value.code == code


def test_a_router_that_does_not_fit_the_config(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(k for k in tensors if k.endswith("layers.0.block_sparse_moe.gate.weight"))
    save_file(tensors | {name: tensors[name][:, :32].contiguous()}, folder / "model.safetensors")
    with pytest.raises(JanusError, match=r"must have the shape \(16, 64\)") as error, Checkpoint(folder) as checkpoint:
        checkpoint.router(checkpoint.blocks[0])
    assert error.value.code == "checkpoint.corrupt"


@pytest.mark.parametrize("lost", ["model.layers.0.block_sparse_moe.experts.3.w1.weight", "lm_head.weight"])
def test_missing_tensor(folder, lost):
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors")
    assert _code(folder) == "checkpoint.missing"
