"""RequestTrace: what it computes, what it refuses."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import NONSENSE, only_janus_error, refuses, request_traces

from janus.types import RequestTrace


@given(request_traces())
@settings(max_examples=60, deadline=None)
def test_a_trace_survives_files_and_pickle(trace):
    with tempfile.TemporaryDirectory() as folder:
        trace.save(path := Path(folder) / "r.npz")
        loaded = RequestTrace.load(path)
    for twin in (loaded, pickle.loads(pickle.dumps(trace))):
        assert twin == trace
        assert not twin.times_s.flags.writeable


@given(request_traces(), st.floats(0, 1e6), st.floats(1, 1e6))
@settings(max_examples=60, deadline=None)
def test_a_window_holds_what_arrived_in_it(trace, start, width):
    window = trace.window(start, start + width)
    inside = [i for i, t in enumerate(trace.times_s) if start <= t < start + width]
    assert window.num_requests == len(inside)
    assert window.input_tokens.tolist() == trace.input_tokens[inside].tolist()
    assert window.times_s.tolist() == (trace.times_s[inside] - start).tolist()
    assert window.duration_s == start + width - start
    assert window.recorded == trace.recorded


@given(NONSENSE, NONSENSE, NONSENSE)
@settings(max_examples=150, deadline=None)
def test_nonsense_is_refused_as_a_requests_error(first, second, third):
    only_janus_error("requests.", RequestTrace, first, second, third)
    only_janus_error("requests.", RequestTrace, [0, 1], [1, 1], first)
    only_janus_error("requests.", RequestTrace, first, [1, 1], [1, 1])
    only_janus_error("requests.", RequestTrace, [0, 1], [1, 1], [1, 1], duration_s=first, dropped=second)
    trace = RequestTrace([0, 1], [1, 1], [1, 1])
    only_janus_error("requests.", trace.window, first, second)
    only_janus_error("requests.", trace.input_percentile, first)
    only_janus_error("requests.", RequestTrace.load, first)
    only_janus_error("requests.", RequestTrace.from_servegen, first, second, seed=third)
    only_janus_error("requests.", RequestTrace.from_servegen, "absent", "absent", hours=first)


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        ("requests.shape", "one length, got (2, 1, 2)", ([0, 1], [1], [1, 1])),
        (
            "requests.shape",
            "times_s must be finite numbers [N]; got nan at position 1",
            ([0, float("nan")], [1, 1], [1, 1]),
        ),
        ("requests.shape", "input_tokens must be integers", ([0.0], [1.5], [1])),
        ("requests.range", "request 1 at 1.0 s comes after 2.0 s", ([2, 1], [1, 1], [1, 1])),
        ("requests.range", "request 0 at -1.0 s comes after the start", ([-1], [1], [1])),
        ("requests.range", "1..2147483647 (leave failed requests out); request 1 has 0", ([0, 1], [1, 1], [1, 0])),
        ("requests.range", "request 0 has 2147483648", ([0], [2**31], [1])),
    ],
)
def test_a_bad_trace_names_rule_and_value(code, words, args):
    refuses(code, words, RequestTrace, *args)


def test_the_summary_by_hand():
    trace = RequestTrace([0.0, 1.0, 4.0], [100, 200, 300], [1, 3, 5], duration_s=8.0, source="x")
    assert (trace.rate_rps, trace.output_tokens_per_s) == (3 / 8, 9 / 8)
    assert (trace.mean_input, trace.mean_output) == (200.0, 3.0)
    seen = [100, 200, 201, 202, 300, 301, 302, 303, 304]  # the KV length at each output token
    assert trace.mean_context == pytest.approx(np.mean(seen))
    assert (trace.input_percentile(50), trace.output_percentile(100)) == (200.0, 5.0)
    summary = trace.summary()
    assert summary["num_requests"] == 3
    assert summary["input_p50"] == 200.0
    assert summary["source"] == "x"


def test_what_has_no_value_is_refused():
    empty = RequestTrace([], [], [], duration_s=1.0)
    assert empty.rate_rps == 0.0
    for name in ("mean_input", "mean_output", "mean_context"):
        refuses("requests.empty", "no requests", getattr, empty, name)
    refuses("requests.empty", "no requests", empty.output_percentile, 50)
    refuses("requests.range", "duration_s above 0", getattr, RequestTrace([0], [1], [1]), "rate_rps")
    refuses("requests.range", "not before the last arrival (5.0 s), got 4.0", RequestTrace, [5], [1], [1], duration_s=4)
    refuses("requests.range", "0..100, got 101.0", RequestTrace([0], [1], [1]).input_percentile, 101)


def test_a_trace_is_frozen_and_keeps_no_callers_array():
    times = np.array([0.0, 1.0])
    trace = RequestTrace(times, [1, 1], [1, 1])
    times[0] = 0.5
    assert trace.times_s[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        trace.times_s[0] = 1
    with pytest.raises(AttributeError, match="frozen"):
        trace.source = "other"
    with pytest.raises(AttributeError, match="frozen"):
        del trace.source
