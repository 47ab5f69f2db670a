"""The kernel compiles for NVIDIA GPUs on a machine without one: Triton brings its own compiler. Layer 2."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("triton")
CODE = """
    import sys, warnings
    import triton
    warnings.simplefilter("ignore")  # Triton announces changed defaults
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from janus.sched import kernel
    from janus.sched.device import Launch, constants_of

    for shape in sys.argv[1:]:
        arch, E, G, C, exact = map(int, shape.split())
        method = "exact" if exact else "greedy"
        constants = constants_of(E, G, C, method, max_tokens=4096, record_load=True, launch=Launch())
        masks = "*i32" if G <= 32 else "*i64"
        wide = {"ids": "*i64", "out": "*i64", "stats": "*i64", "seen": "*i64", "masks": masks}
        scalars = dict.fromkeys(("n", "share", "parts", "C", "singles"), "i32")
        counted = {"E": E, "EP": constants["EP"], "BLOCK": 1024}
        for function, fixed, warps in ((kernel.count, counted, 4), (kernel.solve, constants, 1)):
            names = function.arg_names
            kinds = dict.fromkeys(names, "*i32") | wide | scalars | dict.fromkeys(fixed, "constexpr")
            source = ASTSource(
                fn=function,
                signature={name: kinds[name] for name in names},
                constexprs={(names.index(name),): value for name, value in fixed.items()},
            )
            built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
            text = built.asm["ptx"]
            print(function.__name__, len(built.asm["cubin"]) > 0, text.count("redux.sync.min"))
"""


# architecture, experts, instances, slots, exact?: the smallest and the largest sets and keys
SHAPES = ("80 160 8 27 1", "90 256 32 16 1", "90 512 128 512 0", "100 8 2 4 1")


def test_it_compiles_and_its_minima_are_single_instructions(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", textwrap.dedent(CODE), *SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["count", "True"], ["solve", "True"]] * len(SHAPES)
    # start, source, target and walk back; the third shape has greedy's start alone
    assert [int(line[2]) for line in lines[1::2]] == [4, 4, 1, 4]
