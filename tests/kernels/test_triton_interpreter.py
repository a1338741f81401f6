"""The Triton kernels equal the float64 reference where there is no GPU: in Triton's interpreter, in processes of their own.

Triton decides at import whether kernels are interpreted, hence the processes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")


def interpreted(*arguments: str) -> None:
    """Run pytest under the interpreter; every chosen test must run and pass."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert re.search(r"\d+ passed", last) and "skipped" not in last


def test_backend_contract() -> None:
    """The contract of every backend; derivatives are checked in the file below, half precision is cut there, not rounded."""
    interpreted("tests/contracts/test_kernels.py", "-k", "triton and not gradients_of_first and not bfloat16")


def test_kernels_and_operators() -> None:
    interpreted("tests/kernels/interpreted_triton.py")


def test_stencils_on_a_plane() -> None:
    interpreted("tests/contracts/test_stencil_kernels.py", "-k", "triton and (7x4 or empty or nothing)")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stencils_in_one_to_three_dimensions() -> None:
    interpreted("tests/contracts/test_stencil_kernels.py", "-k", "triton and not refuses", "--timeout=3600")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_larger_sizes() -> None:
    interpreted("tests/kernels/interpreted_triton.py", "-m", "slow", "--timeout=3600")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_contract_of_first_and_second_derivatives() -> None:
    interpreted("tests/contracts/test_kernels.py", "-k", "triton and gradients_of_first", "--timeout=3600")
