"""The shipped samples: all found, all small, all loadable, unknown ones refused."""

from pathlib import Path

import pytest
from type_strategies import refuses

from janus.types import RoutingTrace, sample
from janus.types.samples import SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_there_and_small(name):
    path = sample(name)
    assert path.is_file()
    assert path.stat().st_size <= 150_000


def test_every_shipped_file_has_a_notice():
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    for name in SAMPLES.values():
        assert name in notice


@pytest.mark.parametrize("name", ["azure", "", None, 3])
def test_an_unknown_sample_is_refused_by_name(name):
    refuses("sample.name", "'azure-conversation', 'gptoss20b-routing', 'olmoe-mixtral-counts'", sample, name)


def test_the_routing_sample_is_enough_for_monte_carlo():
    trace = RoutingTrace.load(sample("gptoss20b-routing"))
    assert (trace.num_tokens, trace.num_layers, trace.top_k, trace.num_experts) == (2304, 24, 4, 32)
    assert set(trace.step.tolist()) == set(range(13, 124, 10))
    assert not trace.synthetic
