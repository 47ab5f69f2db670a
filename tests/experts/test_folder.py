"""What is refused before anything of a model folder is opened; every rank and the command line ask the same function."""

import json

import pytest

from janus import JanusError
from janus.experts.folder import check_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_folder_with_config_and_weights_passes(folder):
    assert check_folder(folder) == {"model_type": "mixtral"}
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    assert check_folder(folder)


@pytest.mark.parametrize(
    ("break_it", "code", "words"),
    [
        (lambda m: (m / "config.json").unlink(), "checkpoint.config", "config.json"),
        (lambda m: (m / "config.json").write_text("{"), "checkpoint.config", "as JSON"),
        (lambda m: (m / "config.json").write_text("[]"), "checkpoint.config", "JSON object, got list"),
        (lambda m: (m / "config.json").write_bytes(b"\xff"), "checkpoint.config", "as JSON"),
        (lambda m: (m / "model.safetensors").unlink(), "checkpoint.missing", "model.safetensors"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "checkpoint.pickle", "pytorch_model.bin"),
    ],
)
def test_a_folder_that_is_no_model(folder, break_it, code, words):
    break_it(folder)
    with pytest.raises(JanusError) as caught:
        check_folder(folder)
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_file_is_no_folder(folder):
    with pytest.raises(JanusError, match="is not a folder"):
        check_folder(folder / "config.json")


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}


def _config(quantization, nested):
    quantized = {"quantization_config": quantization}
    return json.dumps({"text_config": quantized} if nested else quantized)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq' is not one this version reads; dequantize it"),
        ({"quant_method": "mxfp4"}, "Mxfp4Config(dequantize=True), then give the model itself"),
        ({"quant_method": "fp8"}, "weight_block_size [128, 128] alone, this one has None"),
        (FP8 | {"weight_block_size": None}, "this one has None"),
        (FP8 | {"weight_block_size": [64, 128]}, "this one has [64, 128]"),
        (FP8 | {"fmt": "e5m2"}, "with fmt 'e4m3' alone, this one has 'e5m2'"),
        (FP8 | {"expert_dtype": "fp4"}, "with expert_dtype 'fp8' alone, this one has 'fp4'"),
        ("awq", "'awq'"),
        ({"bits": 4}, "None is not one"),
    ],
)
def test_weights_quantized_in_a_way_that_is_not_read_are_refused_with_a_remedy(folder, quantization, words, nested):
    (folder / "config.json").write_text(_config(quantization, nested))
    with pytest.raises(JanusError) as caught:
        check_folder(folder)
    assert caught.value.code == "checkpoint.quantized"
    assert words in caught.value.message
    assert "bfloat16" in caught.value.message


@pytest.mark.parametrize("nested", [False, True])
def test_block_scaled_fp8_passes(folder, nested):
    (folder / "config.json").write_text(_config(FP8, nested))
    assert check_folder(folder)
