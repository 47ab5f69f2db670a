"""A model's folder that looks right from outside; nothing in it can be loaded."""

import json

import pytest


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 100}))
    (model / "model.safetensors").write_bytes(b"")
    return model
