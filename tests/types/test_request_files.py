"""Request files: each format told by content, each corrupt line named, the recordings with their known facts."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_strategies import only_janus_error, refuses

from janus.types import RequestTrace, sample

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n118.5,GPT-4,417,276,693,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    '{"timestamp": 3054, "input_length": 7322, "output_length": 490, "hash_ids": []}\n'
)


def load(tmp_path: Path, text: str | bytes) -> RequestTrace:
    path = tmp_path / "requests"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return RequestTrace.load(path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats_are_told_by_content(tmp_path, ending, mark):
    trace = load(tmp_path, mark + AZURE.replace("\n", ending))
    assert trace.times_s.tolist() == [0.0, 4.314579]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([374, 396], [44, 109])
    assert trace.source == "Azure: requests"
    trace = load(tmp_path, mark + BURST.replace("\n", ending))
    assert trace.times_s.tolist() == [0.0, 113.5]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([472, 417], [18, 276])
    assert trace.dropped == 1
    trace = load(tmp_path, mark + MOONCAKE.replace("\n", ending))
    assert (trace.times_s.tolist(), trace.input_tokens.tolist()) == ([0.0, 3.054], [6758, 7322])


def test_columns_are_found_by_name_and_rows_are_sorted(tmp_path):
    text = "GeneratedTokens,Extra,TIMESTAMP,ContextTokens\n7,x,2024-05-10 00:00:01+00:00,9\n8,y,2024-05-10 00:00:00+00:00,5\n"
    trace = load(tmp_path, text)
    assert trace.times_s.tolist() == [0.0, 1.0]
    assert trace.output_tokens.tolist() == [8, 7]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (AZURE + "2023-11-16 18:15,1\n", "line 4", "a row has 3 cells, got 2; the line is '2023-11-16 18:15,1'"),
        (AZURE + "yesterday,1,1\n", "line 4", "got 'yesterday'"),
        (AZURE + "2023-11-16 18:15:50,1.5,1\n", "line 4", "got '1.5'"),
        (AZURE + "2023-11-16 18:15:50,-3,1\n", "line 4", "got '-3'"),
        (AZURE + "\n2023-11-16 18:15:50,,1\n", "line 5", "got ''"),
        (
            BURST + "nan,ChatGPT,1,1,2,API log\n",
            "line 5",
            "Timestamp (seconds) must be a finite number >= 0, got 'nan'",
        ),
        (BURST + "-1,ChatGPT,1,1,2,API log\n", "line 5", "got '-1'"),
        (BURST + "1e308,ChatGPT,1,1,2,API log\n", "line 5", "got '1e308'; at most 1e+15"),
        (BURST + "7,ChatGPT,1,99999999999999,2,API log\n", "line 5", "0..2147483647"),
        (MOONCAKE + "{", "line 3", "a line is a JSON object"),
        (MOONCAKE + "[1, 2]", "line 3", "TypeError"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 5}', "line 3", "KeyError: 'output_length'"),
        (MOONCAKE + '{"timestamp": "x", "input_length": 5, "output_length": 1}', "line 3", "got 'x'"),
        (MOONCAKE + '{"timestamp": NaN, "input_length": 5, "output_length": 1}', "line 3", "got nan"),
        (MOONCAKE + '{"timestamp": 1, "input_length": true, "output_length": 1}', "line 3", "got True"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1.0, "output_length": 1}', "line 3", "got 1.0"),
        (MOONCAKE + "[" * 100_000, "line 3", "RecursionError"),
    ],
)
def test_a_corrupt_line_is_named(tmp_path, text, line, words):
    refuses("requests.file", f"requests: {line}: ", load, tmp_path, text)
    refuses("requests.file", words, load, tmp_path, text)


@pytest.mark.parametrize(
    "text", ["", "\n", "a,b,c\n1,2,3\n", "Timestamp,Request tokens\n", b"\x80\x81\xff", b"\x1f\x8b\x08"]
)
def test_an_unknown_format_lists_the_known_ones(tmp_path, text):
    refuses("requests.file", "known: Azure LLM inference CSV", load, tmp_path, text)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    refuses("requests.file", "line 4", load, tmp_path, AZURE.encode() + b"2023-11-16 18:15:50,\xff1,1\n")


def test_a_file_without_requests_is_refused(tmp_path):
    refuses("requests.file", "among 0 rows", load, tmp_path, AZURE.split("\n")[0])
    refuses("requests.file", "among 1 rows", load, tmp_path, "\n".join(BURST.split("\n")[::2][:2]))


@given(st.text(max_size=60), st.integers(0, 300), st.sampled_from([AZURE, BURST, MOONCAKE]))
@settings(max_examples=100, deadline=None)
def test_any_damage_is_read_or_refused(junk, at, text):
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "r").write_bytes((text[:at] + junk + text[at:]).encode(errors="surrogatepass"))
        only_janus_error("requests.file", RequestTrace.load, path)


def test_our_own_file_is_checked(tmp_path):
    trace = RequestTrace([0.0], [1], [1], duration_s=2.0)
    trace.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as data:
        good = dict(data)
    for change in (
        {"format": "x"},
        {"times_s": [np.nan]},
        {"duration_s": [1.0]},
        {"recorded": 1},
        {"output_tokens": [0]},
    ):
        np.savez(tmp_path / "bad.npz", **(good | change))
        refuses("requests.file", "bad.npz: ", RequestTrace.load, tmp_path / "bad.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[:-9])
    refuses("requests.file", "cannot be read as an npz", RequestTrace.load, tmp_path / "bad.npz")


def test_the_shipped_sample():
    trace = RequestTrace.load(sample("azure-conversation"))
    assert trace.num_requests == 600
    assert 80 < trace.duration_s < 200
    assert trace.dropped == 0


@pytest.mark.parametrize(
    ("name", "requests", "mean_input", "mean_output", "minutes"),
    [
        ("AzureLLMInferenceTrace_conv.csv", 19_366, 1155, 211, 58.4),
        ("AzureLLMInferenceTrace_code.csv", 8_819, 2048, 28, 57.3),
        ("mooncake_conversation.jsonl", 12_031, 12_035, 343, 59.0),
    ],
)
def test_the_recorded_requests(shared_data, name, requests, mean_input, mean_output, minutes):
    trace = RequestTrace.load(shared_data / "traces" / name)
    assert trace.num_requests == requests
    assert (round(trace.mean_input), round(trace.mean_output)) == (mean_input, mean_output)
    assert trace.duration_s / 60 == pytest.approx(minutes, abs=0.1)
