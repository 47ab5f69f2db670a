"""What the benchmarks share says what is so: model sizes, times and their spread, where it was measured."""

from __future__ import annotations

import dataclasses
import json
import re

import figures
import numpy as np
import pytest
from shapes import MODELS, SHAPES

from janus.scale import ModelSpec


def sizes(spec: ModelSpec):
    return (spec.experts, spec.top_k, spec.hidden, spec.expert_width, spec.moe_layers)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_sizes_are_those_of_the_models_configs(model):
    assert dataclasses.astuple(model)[1:6] == sizes(ModelSpec.from_config(model.name))


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_sizes_are_those_of_the_published_configs(shared, model):
    named = re.compile(rf"--{model.name}(-instruct|-v0.1)?_config.json")
    found = [p for p in (shared / "data" / "model_configs").iterdir() if named.search(p.name.lower())]
    assert len(found) == 1
    assert dataclasses.astuple(model)[1:6] == sizes(ModelSpec.from_config(found[0]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_pool_has_room_for_replicas(shape):
    assert shape.model.experts < shape.slots <= shape.instances * shape.model.experts
    assert SHAPES[shape.name] is shape


def test_the_named_shapes_cover_these_models():
    assert {(m.experts, m.top_k) for m in MODELS.values()} >= {(8, 2), (32, 4), (128, 8), (160, 6), (256, 8), (384, 8)}


def test_a_spread_is_the_10th_50th_and_90th_percentile():
    assert figures.spread(np.arange(101) / 10) == [1.0, 5.0, 9.0]


def test_progress_without_a_terminal_is_plain_lines_on_stderr(capsys):
    with figures.progress("cases", 3) as step:
        for words in "abc":
            step(words)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "cases: 3 of 3, c\n")


def test_a_figure_says_whether_it_met_its_bar(capsys):
    made = figures.figure("speed", 3, "< 2", False, "us")
    assert made == {"name": "speed", "value": 3, "bar": "< 2", "ok": False, "unit": "us", "note": ""}
    assert capsys.readouterr().err == "MISS speed: 3 us (bar: < 2)\n"
    figures.report([made])
    assert json.loads(capsys.readouterr().out)["figures"] == [made]
