"""Kernel tables: every kind read in microseconds, and every fault named with file, line and rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus import JanusError
from janus.scale.kernels.tables import CollectiveRow, DeepepRow, MlaRow, MoeRow, Tables, read_table

MOE = "kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency"
MLA = "device,kernel_source,kv_cache_dtype,num_heads,batch_size,isl,tp_size,step,latency"
DEEPEP = "version,device,node_num,hidden_size,num_token,num_topk,num_experts,combine_avg_t_us,dispatch_avg_t_us"
NCCL = "version,device,op_name,nccl_dtype,num_gpus,message_size,latency"


@pytest.fixture
def write(tmp_path):
    def put(*lines, name="table.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return put


def test_every_kind_is_told_by_its_columns_and_read_in_microseconds(write):
    write(MOE, "triton,fp8_block,64,7168,2048,8,256,1,4,power_law_1.2,0.5", name="1.csv")
    write(f"op_name,version,{MOE}", "moe,0.5,deepep,fp8_block,64,7168,2048,8,256,1,4,uniform,0.25", name="2.csv")
    write(MLA, "H200,fa,fp8,128,4,1,1,99,0.02", name="3.csv")
    write(f"gemm_type,{MLA}", "fp8,H200,fa,fp8,128,4,16,1,0,0.09", name="4.csv")
    write(DEEPEP, "0.5,H200,2,7168,8,8,256,14.5,16.25", name="5.csv")
    folder = write(NCCL, "2.29,H200,alltoall,half,8,1024,0.01", name="6.csv").parent
    read = Tables.read(folder)
    assert read.fused_moe == (MoeRow("triton", "fp8_block", 64, 7168, 2048, 8, 256, 4, "power_law_1.2", 500.0),)
    assert read.moe_decode == (MoeRow("deepep 0.5", "fp8_block", 64, 7168, 2048, 8, 256, 4, "uniform", 250.0),)
    assert read.mla_decode == (MlaRow("fa", "fp8", 128, 4, 100, 20.0),)  # isl + step tokens are attended to
    assert read.mla_module == (MlaRow("fa", "fp8", 128, 4, 16, 90.0),)
    assert read.deepep == (DeepepRow("0.5", 2, 7168, 8, 8, 256, 16.25, 14.5),)
    assert read.collectives == (CollectiveRow("2.29", "alltoall", 8, 2048, 10.0),)  # 1024 elements of 2 bytes
    assert read.device == "H200"


GOOD = "H200,fa,fp8,128,4,1,1,99,0.02"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "line 1: no kernel table has these columns"),
        (["a,b", "1,2"], "line 1: no kernel table has these columns"),
        ([MLA + ",latency", GOOD + ",1"], "each once"),
        ([MLA], "at least one measurement"),
        ([MLA, GOOD, "H200,fa,fp8,128"], "line 3: 9 columns are named, got 4 cells"),
        ([MLA, GOOD.replace("0.02", "nan")], "line 2: latency must be a finite time > 0, got 'nan'"),
        ([MLA, GOOD.replace("0.02", "-1")], "finite time > 0, got '-1'"),
        ([MLA, GOOD.replace("0.02", "fast")], "finite time > 0, got 'fast'"),
        ([MLA, GOOD.replace("128", "0")], "num_heads must be a whole number >= 1, got '0'"),
        ([MLA, GOOD.replace("128", "1.5")], "num_heads must be a whole number >= 1"),
        ([MLA, GOOD.replace("128", "9" * 99)], "num_heads must be a whole number >= 1"),
        ([MLA, GOOD.replace("fa", "")], "kernel_source must not be empty"),
        ([MLA, GOOD, GOOD.replace("H200", "H100")], "line 3: device must be 'H200' as above, got 'H100'"),
        ([MOE, "t,fp8,64,7168,2048,8,256,1,3,uniform,1"], "moe_ep_size must divide num_experts"),
        ([MOE, "t,fp8,64,7168,2048,8,256,2,4,uniform,1"], "moe_tp_size must be 1"),
        ([MOE, "t,fp8,64,7168,2048,8,256,1,4,zipf,1"], "distribution must be uniform"),
        ([MOE, "t,fp8,64,7168,2048,8,256,1,4,power_law_x,1"], "distribution must be uniform"),
        ([NCCL, "2,H200,alltoall,fp3,8,1024,0.01"], "nccl_dtype must be one of"),
        ([NCCL, "2,H200,send,half,8,1024,0.01"], "op_name must be one of"),
        ([NCCL, "2,H200,alltoall,half,1,1024,0.01"], "num_gpus must be a whole number >= 2"),
        ([MLA, '"' + "x" * 200_000], "no CSV"),
    ],
)
def test_a_bad_table_is_refused_with_file_line_and_rule(write, lines, reason):
    with pytest.raises(JanusError, match=r"table\.csv") as caught:
        read_table(write(*lines))
    assert caught.value.code == "latency.table"
    assert reason in caught.value.message


def test_tables_of_two_devices_do_not_mix(write):
    write(MLA, GOOD, name="a.csv")
    with pytest.raises(JanusError, match="one device"):
        Tables.read(write(MLA, GOOD.replace("H200", "H100"), name="b.csv").parent)


@pytest.mark.parametrize("paths", [3, [3], []])
def test_measurements_must_be_files(paths):
    with pytest.raises(JanusError, match=r"latency\.table"):
        Tables.read(paths)


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(JanusError, match="no CSV file"):
        Tables.read(tmp_path)


@given(text=st.text(alphabet=st.sampled_from('0123456789.,-\n"naefH2xp_ \x00'), max_size=120), cut=st.integers(0, 90))
def test_no_text_raises_anything_but_a_janus_error(tmp_path_factory, text, cut):
    path = tmp_path_factory.mktemp("fuzz") / "table.csv"
    path.write_text(f"{MLA}\n{GOOD}"[: cut + 80] + text)
    try:
        kind, rows, _ = read_table(path)
    except JanusError:
        return
    assert kind == "mla_decode"
    assert all(row.us > 0 for row in rows)


def test_the_recorded_tables_are_all_read(shared):
    """Counts of rows, one per line of the eight files."""
    read = Tables.read(shared / "data" / "kernel_perf")
    counts = {name: len(rows) for name, rows in vars(read).items() if name != "device"}
    assert counts == {
        "moe_decode": 526, "fused_moe": 3067, "mla_decode": 2168, "mla_module": 762, "deepep": 197, "collectives": 380,
    }  # fmt: skip
    assert read.device == "NVIDIA H200"
