"""What can be absent is absent without harm: torch, triton, numba, a folder to keep compiled code in. Layer 1."""

import subprocess
import sys
import textwrap

import pytest

from janus.sched import numba_backend


def run(code):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_and_balancing_needs_no_torch_and_no_triton():
    out = run("""
        import sys
        sys.modules["torch"] = sys.modules["triton"] = None   # importing either raises ImportError
        import numpy as np
        import janus.sched
        assert "numba" not in sys.modules
        from janus.types import Placement
        placement = Placement([[0, 1], [0, 1]], num_experts=2)
        got = janus.sched.balance(np.array([[0], [1]]), placement, backend="reference")
        print(got.physical_ids.tolist())
    """)
    assert out == "[[0], [3]]"


def test_without_numba_auto_takes_the_reference_and_numba_is_refused():
    out = run("""
        import sys
        sys.modules["numba"] = None
        import numpy as np
        from janus import JanusError
        from janus.sched import balance
        from janus.types import Placement
        placement = Placement([[0, 1], [0, 1]], num_experts=2)
        print(balance(np.array([[0]]), placement).backend)
        try:
            balance(np.array([[0]]), placement, backend="numba")
        except JanusError as error:
            print(error.code, "install numba" in str(error))
    """)
    assert out.split() == ["reference", "sched.backend", "True"]


def test_without_a_folder_for_compiled_code_functions_compile_anyway(monkeypatch):
    real = numba_backend.numba.njit

    def read_only(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba_backend.numba, "njit", read_only)
    assert numba_backend.compiled(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("method", ["exact", "random"])
def test_nothing_is_left_to_compile_for_the_first_batch(method):
    out = run(f"""
        import numpy as np
        from janus.sched import Balancer, numba_backend
        from janus.types import Placement
        balancer = Balancer(Placement([[0, 1]], num_experts=2), method="{method}", backend="numba", max_tokens=2)
        functions = numba_backend.choose, numba_backend.split
        before = [len(f.signatures) for f in functions]
        for dtype in ("i4", "i8", "u1", ">i2"):
            balancer(np.zeros((2, 1), dtype=dtype), 0)
        print(before, [len(f.signatures) for f in functions])
    """)
    assert out in ("[2, 0] [2, 0]", "[0, 2] [0, 2]")  # int32 and int64, of the one function that the method uses


@pytest.mark.parametrize("function", [numba_backend.choose, numba_backend.split])
def test_compiled_code_is_kept_on_disk_here(function):
    assert function.stats.cache_path
