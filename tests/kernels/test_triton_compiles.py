"""Every Triton kernel compiles for sm_80 and sm_90 where there is no GPU, with registers to spare; torch.compile sees them all."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("Triton is not installed here", allow_module_level=True)

from benchmarks.triton_resources import CASES, RECORD, Launch, Resources, compile_launch, record, table
from opflow.files import read_json
from opflow.functional import spectral_conv
from opflow.kernels.spectral_conv import triton_analysis, triton_block, triton_mixing, triton_synthesis
from opflow.kernels.spectral_conv.call import SpectralConvCall
from opflow.kernels.stencil import triton_backend, triton_kernel
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer

# Bytes of shared memory that a block may have: of compute capability 8.6 and 8.9 too where the default table serves.
SHARED = {80: 99 * 1024, 90: 227 * 1024}
# ptxas gives up a register pair here and there on sm_80 for one more block a multiprocessor; nothing on sm_90.
STACK = {80: 16, 90: 0}
architectures = pytest.mark.parametrize("capability", SHARED, ids="sm_{}".format)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile anew, and leave nothing behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns of a default that will change
        yield


def compiled(capability: int, cases: tuple[dict[str, Any], ...], **options: Any) -> list[Resources]:
    launches: dict[Launch, None] = {}
    for case in cases:
        launches.update(dict.fromkeys(record(capability, **case, **options)))
    return [compile_launch(launch, capability) for launch in launches]


def kernels() -> set[str]:
    """The kernels that are launched: of each file, the functions that no other one calls."""
    helpers = {"store_unfolded", "load_folded", "leading_axis", "inverse_tile", "gelu", "gelu_derivative"}
    files = (triton_analysis, triton_block, triton_mixing, triton_synthesis)
    return {name for file in files for name, value in vars(file).items() if hasattr(value, "arg_names")} - helpers


@architectures
def test_shipped_configurations_do_not_spill(capability) -> None:
    rows = compiled(capability, CASES, precision="tf32x3")
    assert not [row for row in rows if row.stack_bytes > STACK[capability]], table(rows)
    assert max(row.shared_bytes for row in rows) <= SHARED[capability], table(rows)
    assert capability == 80 or not [row for row in rows if row.spills], table(rows)
    assert {row.kernel for row in rows} == kernels()
    products = [row for row in rows if row.kernel != "add_parts"]
    assert all(row.tensor_core in ("mma", "wgmma") for row in products), table(rows)
    assert capability == 80 or {row.tensor_core for row in rows if row.kernel == "block"} >= {"wgmma"}


WIDE = (
    *CASES,
    *(
        {"n_modes": (24, 24), "shape": shape, "channels": c}
        for shape in ((85, 85), (240, 241))
        for c in (16, 32, 64, 128)
    ),
    *(
        {"n_modes": modes, "shape": (256, 256), "channels": 32}
        for modes in ((32, 32), (64, 64), (126, 126), (126, 16), (16, 126))
    ),
    *({"n_modes": (m,), "shape": (n,), "channels": c} for m in (32, 126) for n in (1021, 4096) for c in (32, 64)),
    {"n_modes": (32, 32, 32), "shape": (64, 64, 64), "channels": 32, "batch": 4},
    {"n_modes": (64, 64, 64), "shape": (128, 128, 128), "channels": 32, "batch": 4},
    {"n_modes": (126, 16, 16), "shape": (128, 31, 33), "channels": 20, "batch": 4},
    {"n_modes": (12, 12), "shape": (32, 32), "channels": 32, "batch": 1},
    {"n_modes": (12, 12), "shape": (16, 20), "channels": 20, "batch": 3},
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@architectures
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("tf32x3", torch.float32), ("tf32", torch.float32), ("tf32", torch.bfloat16), ("tf32x3", torch.float16)],
    ids=str,
)
def test_no_size_or_precision_spills(capability, precision, dtype) -> None:
    rows = compiled(capability, WIDE, precision=precision, dtype=dtype)
    bad = [row for row in rows if row.stack_bytes > STACK[capability] or row.shared_bytes > SHARED[capability]]
    assert not bad, table(bad)


def test_the_record_is_of_the_shipped_configurations() -> None:
    """`python -m benchmarks.triton_resources` writes it anew."""
    recorded = {(row["kernel"], row["architecture"], str(row["constants"])) for row in read_json(RECORD)["kernels"]}
    for capability in SHARED:
        for case in CASES:
            for launch in record(capability, "tf32x3", **case):
                key = (launch.name, f"sm_{capability}", str(dict(sorted(launch.describe().items()))))
                assert key in recorded, f"{key} is not in {RECORD.name}"
    assert not any(row["spills"] for row in read_json(RECORD)["kernels"] if row["architecture"] == "sm_90")


def stencil_launches(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shapes: dict[tuple[int, ...], Any]
) -> list[Launch]:
    """Every launch of a cycle, learned and classical, red-black and Jacobi, on grids of these shapes with these rings."""
    launches: dict[Launch, None] = {}

    def note(kernel, call, count, tensors, **options: Any) -> None:
        step = call.points if call.operators > 1 else 0
        constants = {**options, "SIZE": triton_backend.SIZE, "num_warps": triton_backend.WARPS}
        launches[Launch.of(kernel, [*tensors, *call.shape, step], constants)] = None

    monkeypatch.setattr(triton_backend, "launch", note)
    for shape, ring in shapes.items():
        w = torch.empty(1, *shape, dtype=dtype, device="meta")
        stencil, backend = Stencil((w,) * len(shape), w, ring), triton_backend.Triton()
        exact, damped = ([Relaxation(w, colour, kind) for colour in (0, 1)] for kind in (True, False))
        plain, weighted = Transfer((2,) * len(shape)), Transfer((2,) * len(shape), w, (w,) * len(shape))
        backend.apply(stencil, w)
        for sweeps, transfer, vanishing in (
            (exact, plain, 1),
            (damped, weighted, None),
            ([Relaxation(w)], plain, None),
        ):
            u = backend.relax(stencil, sweeps, w, None)
            e = backend.restrict(stencil, transfer, w, u, vanishing=vanishing)
            backend.correct(stencil, transfer, sweeps, w, u, e)
    return list(launches)


def assert_lean(launches: list[Launch], capability: int) -> None:
    rows = [compile_launch(launch, capability) for launch in launches]
    assert {row.kernel for row in rows} == {name for name in vars(triton_kernel) if name.startswith("stencil_")}
    assert not [row for row in rows if row.stack_bytes or row.spills or row.registers > 128], table(rows)


@pytest.mark.parametrize(("capability", "dtype"), [(80, torch.float32), (90, torch.float64)], ids=str)
def test_stencils_do_not_spill(capability, dtype, monkeypatch) -> None:
    assert_lean(stencil_launches(monkeypatch, dtype, {(64, 48, 80): (False,) * 3}), capability)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@architectures
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stencils_on_rings_and_planes_do_not_spill(capability, dtype, monkeypatch) -> None:
    shapes = {(64, 48, 80): (True, False, True), (63, 64): (True, False), (64, 62): (False, True), (4096,): (False,)}
    assert_lean(stencil_launches(monkeypatch, dtype, shapes), capability)


@pytest.fixture
def described_device() -> Iterator[None]:
    """A driver that says which device there is, and has none: enough for Triton to find what a kernel writes."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Described:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Described())
    yield
    driver._active = None


def test_torch_compile_sees_every_kernel(described_device) -> None:
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._subclasses import FakeTensorMode

    from opflow.kernels.spectral_conv import triton_operators as operators

    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    kept = [-4, 3, 0, 4]

    def layer(x, R, W, bias, first, last):
        return operators.block(x, R, W, bias, kept, [first, last], [first, last], True)[0]

    with FakeTensorMode():
        leaves = [torch.empty(size, requires_grad=True) for size in ((2, 8, 32, 30), (40, 2, 8, 8), (8, 8), (8,))]
        y = aot_function(layer, fw_compiler=keep, bw_compiler=keep)(*leaves, torch.empty(32, 128), torch.empty(32, 128))
        assert y.shape == (2, 8, 32, 30)
        y.sum().backward()
    launches = [graph.count("triton_kernel_wrapper_functional") for graph in graphs]
    assert launches[0] == 4 and launches[1] >= 9
    assert not any("opflow" in target for graph in graphs for target in graph)


def test_a_cpu_tensor_is_refused_in_words() -> None:
    x, weight = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 2, 3, 5)
    with pytest.raises(ValueError, match="backend 'triton' was asked for, but x is on cpu"):
        spectral_conv(x, weight, (4, 4), backend="triton")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "x is torch.float64 and the kernels multiply in single precision"),
        ({"n_modes": (8, 130), "in_shape": (8, 256)}, "it keeps 66 frequencies on one axis"),
        ({"only_reference": "an exported program stands alone"}, "an exported program stands alone"),
    ],
    ids=["float64", "modes", "export"],
)
def test_other_refusals(change, reason, monkeypatch) -> None:
    from opflow.kernels.spectral_conv import triton_backend

    monkeypatch.setattr(triton_backend, "device_refusal", lambda index: None)
    call = {
        "n_modes": (8, 8), "in_shape": (16, 16), "channels": (2, 3), "dtype": torch.float32, "device": torch.device("cuda", 0)
    } | change  # fmt: skip
    call = SpectralConvCall(out_shape=call["in_shape"], **call)
    assert reason in triton_backend.Triton().refusal(call)


def test_without_triton_it_says_how_to_install_it(monkeypatch) -> None:
    from opflow.kernels.spectral_conv import triton_backend

    monkeypatch.setattr(triton_backend, "INSTALLED", False)
    call = SpectralConvCall((4,), (8,), (8,), (1, 1), torch.float32, torch.device("cuda", 0))
    assert "pip install 'opflow[triton]'" in triton_backend.Triton().refusal(call)


def test_the_table_of_configurations_ships_with_the_package() -> None:
    from opflow.kernels.spectral_conv.triton_queue import configurations

    assert (Path(triton_mixing.__file__).parent / "triton_configurations.json").exists()
    assert {"default", "sm_90"} <= set(configurations())
