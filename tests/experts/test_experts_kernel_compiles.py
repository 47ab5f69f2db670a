"""The experts' kernels compile for NVIDIA GPUs on a machine without one, to wide copies and matrix instructions. Layer 2."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("triton")
CODE = """
    import json, sys
    import torch, triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from janus.experts import kernel
    from janus.experts.activation import Activation
    from janus.experts.launches import Weights, launches
    from janus.experts.tuning import Problem, rule
    import dataclasses

    NAMES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8e4nv": 1, "i8": 1}
    COUNTS = {"n": "i32", "S": "i32", "cap": "i32"}
    KINDS = {"ids": "*i64", "plan": "*i32", "order": "*i32", "arrived": "*i32", "partial": "*fp32", "scale": "*fp32"}

    def compiled(function, arch, kinds, fixed):
        options = {name: fixed.pop(name) for name in ("num_warps", "num_stages", "launch_pdl", "enable_fp_fusion") if name in fixed}
        names = function.arg_names
        kinds = {name: "constexpr" if name in fixed else kinds[name] for name in names}
        wide = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds[name][0] == "*"}
        constants = {(names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(fn=function, signature=kinds, constexprs=constants, attrs=wide)
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

    for case in json.loads(sys.argv[1]):
        sizes = dict(zip(("tokens", "choices", "slots", "hidden", "inner"), case["sizes"]))
        gated = case.get("gated", True)
        problem = Problem(**sizes, item=NAMES[case["x"]], stored=NAMES[case["w"]], pair=1 + gated)
        act = Activation("silu", interleaved=case.get("interleaved", False), alpha=1.702, clamp="before", limit=7.0)
        act = act if gated else Activation("relu2", gated=False)
        share = {"i8": 1, "fp8e4nv": 128}.get(case["w"], 0)
        weights = Weights(case.get("transposed", False), case.get("bias", False), share)
        cut = dataclasses.replace(rule(problem), early=case.get("early", False))
        made = launches(problem, weights, act, cut)
        rest = dict.fromkeys(("x", "hidden", "out", "y", "bias"), "*" + case["x"])
        kinds = COUNTS | KINDS | rest | {"w": "*" + case["w"], "weights": "*fp32"}
        for name in case.get("kernels", ["up", "down"]):
            built = compiled(getattr(kernel, name), case["arch"], kinds, dict(made.fixed[name]))
            text = built.asm["ptx"]
            count = {what: text.count(what) for what in (
                "cp.async.cg.shared.global", "mma.sync", "wgmma.mma_async", ".local", "ld.global.cg", "acq_rel",
                "griddepcontrol.wait", "fma.rn.f32",
            )}
            print(json.dumps({"kernel": name, "cubin": len(built.asm["cubin"]) > 0, "shared": built.metadata.shared, **count}))
"""
QWEN, DEEPSEEK, OSS = (2048, 768), (7168, 2048), (2880, 2880)
FEW = {  # tokens, choices, slots, H, F: one token, a decode batch of one instance, gpt-oss as it lies in memory
    "one token": {"arch": 90, "x": "bf16", "w": "bf16", "sizes": [1, 8, 128, *QWEN]},
    "one token, Ampere": {"arch": 80, "x": "bf16", "w": "bf16", "sizes": [1, 8, 128, *QWEN]},
    "one token, Blackwell": {"arch": 100, "x": "bf16", "w": "bf16", "sizes": [1, 8, 128, *QWEN]},
    "64 tokens": {"arch": 90, "x": "fp16", "w": "fp16", "sizes": [64, 8, 128, *QWEN]},
    "fp8": {"arch": 90, "x": "bf16", "w": "fp8e4nv", "sizes": [8, 8, 256, *DEEPSEEK]},
    "int8": {"arch": 80, "x": "bf16", "w": "i8", "sizes": [8, 8, 256, *DEEPSEEK]},
    "gpt-oss": {
        "arch": 90, "x": "bf16", "w": "bf16", "sizes": [8, 4, 32, *OSS], "interleaved": True, "transposed": True, "bias": True,
    },
    "no gate": {"arch": 90, "x": "bf16", "w": "bf16", "sizes": [1, 8, 128, *QWEN], "gated": False},
    "early": {"arch": 90, "x": "bf16", "w": "bf16", "sizes": [1, 8, 128, *QWEN], "early": True},
}  # fmt: skip


def compiled(cases, folder):
    """What each kernel of each case became."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", textwrap.dedent(CODE), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    made = compiled(list(FEW.values()), tmp_path_factory.mktemp("triton"))
    return {(name, built["kernel"]): built for name, built in zip([n for n in FEW for _ in "ud"], made, strict=True)}


def test_weights_come_in_wide_copies_while_matrix_instructions_run(few):
    for built in few.values():
        assert built["cubin"]
        assert built["cp.async.cg.shared.global"] >= 24  # 16 bytes each, several stages ahead
        assert built["mma.sync"] >= 8
        assert built[".local"] == 0  # nothing spilled, no stack


def test_two_programs_fit_a_multiprocessor(few):
    for (name, _), built in few.items():
        room = 164 << 10 if "Ampere" in name or name == "int8" else 228 << 10
        assert 2 * (built["shared"] + 1024) <= room


def test_the_last_to_arrive_reads_what_others_wrote_past_its_own_cache(few):
    for (_, kernel), built in few.items():
        assert built["acq_rel"] == (kernel == "down")
        assert (built["ld.global.cg"] > 0) == (kernel == "down")


def test_kernels_launched_early_wait_for_what_they_read(few):
    for (name, _), built in few.items():
        assert built["griddepcontrol.wait"] == (name == "early")


def test_many_tokens_and_the_small_kernels(tmp_path):
    many = {"arch": 90, "x": "bf16", "w": "bf16", "sizes": [1024, 8, 16, *DEEPSEEK]}
    cases = [
        many | {"kernels": ["sort", "up", "down", "combine"]},
        {"arch": 90, "x": "fp32", "w": "fp32", "sizes": [8, 8, 128, *QWEN], "kernels": ["up"]},
        {"arch": 100, "x": "bf16", "w": "bf16", "sizes": [1024, 8, 4096, *QWEN], "kernels": ["sort"]},
    ]
    sort, up, down, combine, exact, wide = compiled(cases, tmp_path)
    assert up["wgmma.mma_async"] >= 4
    assert down["wgmma.mma_async"] >= 4
    assert down["acq_rel"] == 0
    assert combine["ld.global.cg"] >= 8
    assert exact["mma.sync"] == 0  # float32 as it is: no shortened products
    assert exact["fma.rn.f32"] >= 64
    assert [built[".local"] for built in (sort, up, down, combine, exact, wide)] == [0] * 6
