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


@pytest.mark.parametrize("nested", [False, True])
def test_quantized_weights_are_refused_since_their_scales_would_be_lost(folder, nested):
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps({"text_config": quantized} if nested else quantized))
    with pytest.raises(JanusError, match="'fp8'") as caught:
        check_folder(folder)
    assert caught.value.code == "checkpoint.quantized"
