"""Hardware and Cluster: presets against the datasheets, refusals."""

import pytest

from janus import JanusError
from janus.scale import Cluster, Hardware
from janus.scale.hardware import PRESETS


def test_presets_are_the_system_files(shared):
    files = {p.stem.replace("_", "-"): p.read_text() for p in (shared / "data" / "systems").glob("*.yaml")}
    assert set(files) == set(PRESETS)
    for name, text in files.items():
        said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
        said = {k.strip(): v.split("#")[0].strip() for k, v in said.items()}
        hw = PRESETS[name]
        assert hw.memory_bytes == int(said["mem_capacity"])
        assert hw.memory_bytes_per_s == int(said["mem_bw"])
        assert hw.bf16_flops == int(said["bfloat16_tc_flops"])
        assert hw.fp8_flops == int(said.get("fp8_tc_flops", said["bfloat16_tc_flops"]))
        assert hw.link_bytes_per_s == int(said["intra_node_bw"])
        assert hw.inter_node_gbps * 1e9 / 8 == int(said["inter_node_bw"])
        assert hw.gpus_per_node == int(said["num_gpus_per_node"])


def test_presets_are_the_datasheets():
    """The figures everybody knows, so that a lone clone notices a slip too."""
    tbps = {name: hw.memory_bytes_per_s / 1e12 for name, hw in PRESETS.items()}
    assert tbps == {"a100-sxm": 2.039, "h100-sxm": 3.35, "h200-sxm": 4.8, "b200-sxm": 7.7, "gb200": 8.0}
    assert {name: hw.bf16_flops / 1e12 for name, hw in PRESETS.items()}["h100-sxm"] == 989


def test_a_cluster_takes_the_usual_wiring_or_what_is_said():
    assert Cluster("gb200").node_size == 4
    assert Cluster("h100-sxm", gpus_per_node=2, inter_node_gbps=100).inter_node_bytes_per_s == 12.5e9
    assert Cluster(Hardware.preset("h200-sxm"), memory_use=0.5).usable_bytes == 141 * 2**30 / 2


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "8", True])
def test_nonsense_is_refused(wrong):
    with pytest.raises(JanusError, match="inter_node_gbps"):
        Cluster("h100-sxm", inter_node_gbps=wrong)
    with pytest.raises(JanusError, match="memory_bytes_per_s"):
        Hardware("x", 1e9, wrong, 1e12, 1e12, 1e9)


def test_more_refusals():
    with pytest.raises(JanusError, match="gb200"):
        Cluster("h900")
    with pytest.raises(JanusError, match="memory_use"):
        Cluster("h100-sxm", memory_use=1.5)
    with pytest.raises(JanusError, match="gpus_per_node"):
        Cluster("h100-sxm", gpus_per_node=2.5)
    with pytest.raises(JanusError, match="preset"):
        Cluster(42)
