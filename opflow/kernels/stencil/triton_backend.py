"""Stencils and the steps of a multigrid cycle on NVIDIA devices by Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from opflow.kernels.spectral_conv.triton_queue import INTERPRETED
from opflow.kernels.stencil.call import StencilCall
from opflow.kernels.stencil.geometry import PRODUCT, RELAXED, RESIDUAL, Geometry
from opflow.kernels.stencil.reference import of_colour
from opflow.kernels.stencil.stencil import Relaxation, Stencil, Transfer

INSTALLED = find_spec("triton") is not None
# Points a program and warps for them: a point a thread.
SIZE, WARPS = 128, 4


class Triton:
    """float32 and float64; nothing waits for the device, and equal inputs give equal bits.

    Under TRITON_INTERPRET=1 it serves tensors of any device, which is how it is tested without a GPU.
    """

    name = "triton"

    def refusal(self, call: StencilCall) -> str | None:
        """No such device, dtype or size; or a caller that needs plain torch operations."""
        if call.only_reference is not None:
            return call.only_reference
        if not INTERPRETED:
            if call.device.type != "cuda":
                return f"x is on {call.device.type}"
            if not INSTALLED:
                return "triton is not installed (pip install 'opflow[triton]', or a CUDA build of torch)"
            reason = device_refusal(call.device.index)
            if reason is not None:
                return reason
        if call.dtype not in (torch.float32, torch.float64):
            return f"x is {call.dtype}"
        if torch.compiler.is_compiling():
            return "a compiled graph goes through plain torch operations"
        if math.prod(call.shape) >= 2**31:
            return "x holds 2^31 numbers or more, and the kernels count them in 32 bits"
        return None

    def apply(self, stencil: Stencil, u: Tensor) -> Tensor:
        """A u, (batch, *shape) -> (batch, *shape)"""
        return _pass(stencil, None, u)

    def relax(self, stencil: Stencil, sweeps: Sequence[Relaxation], f: Tensor, u: Tensor | None) -> Tensor:
        """The sweeps in turn, from u (which may be overwritten) or from zero."""
        if not sweeps and u is None:
            raise ValueError("no sweep was given and no field to start from; give at least one of them.")
        if u is None and _in_place(stencil, sweeps[0]):
            two = len(sweeps) > 1 and sweeps[1].colour == 1 - sweeps[0].colour  # type: ignore[operator]
            u, sweeps = _start(stencil, sweeps[: 1 + two], f), sweeps[1 + two :]
        elif u is None:
            u, sweeps = of_colour(sweeps[0]) * f, sweeps[1:]
        for sweep in sweeps:
            u = _sweep(stencil, sweep, f, u) if _in_place(stencil, sweep) else _pass(stencil, f, u, of_colour(sweep))
        return u

    def restrict(
        self, stencil: Stencil, transfer: Transfer, f: Tensor, u: Tensor, *, vanishing: int | None = None
    ) -> Tensor:
        """P^T (f - A u), (batch, *shape) -> (batch, *coarse); `vanishing` is a colour known to have no residual."""
        from opflow.kernels.stencil import triton_kernel

        weights = transfer.weights
        call = Geometry.of(stencil, (f, u), weights, transfer.factors)
        out = u.new_empty(call.batch, *transfer.coarse_shape(stencil.shape))
        blocks, options = math.prod(call.coarse), _factors(call) | _rings(call)
        if weights:
            r = call.fields(_pass(stencil, f, u))
            numbers = (*call.coefficients(weights[0]), *call.per_axis(weights[1:]))
            launch(triton_kernel.stencil_collect, call, blocks, (out, *r, *numbers), **options)
            return out
        numbers = (*call.coefficients(stencil.diagonal), *call.per_axis(stencil.upper))
        options |= {"VANISHING": -1 if vanishing is None else vanishing, "AXES": call.axes}
        launch(triton_kernel.stencil_restrict, call, blocks, (out, *call.fields(f, u), *numbers), **options)
        return out

    def correct(
        self,
        stencil: Stencil,
        transfer: Transfer,
        sweeps: Sequence[Relaxation],
        f: Tensor,
        u: Tensor,
        e: Tensor,
    ) -> Tensor:
        """u + P e and then the sweeps; u is left as it is."""
        from opflow.kernels.stencil import triton_kernel

        first = sweeps[0] if sweeps and _in_place(stencil, sweeps[0]) else None
        weights, relaxation = transfer.weights, stencil.diagonal if first is None else first.weight
        call = Geometry.of(stencil, (f, u, e), (relaxation, *weights), transfer.factors)
        out = u.new_empty(call.batch, *stencil.shape)
        numbers = (*call.coefficients(relaxation, stencil.diagonal), *call.per_axis(stencil.upper))
        # What has no weights reads none.
        own, *across = weights or (relaxation,) * (1 + len(stencil.shape))
        interpolation = (*call.coefficients(own), *call.per_axis(across))
        options: dict[str, Any] = {
            "COLOUR": -1 if first is None else first.colour,
            "EXACT": first is not None and first.exact,
            "WEIGHTED": bool(weights),
            "AXES": call.axes,
        }
        tensors = (out, *call.fields(f, u, e), *interpolation, *numbers)
        launch(triton_kernel.stencil_correct, call, call.points, tensors, **options, **_factors(call), **_rings(call))
        rest = sweeps if first is None else sweeps[1:]
        return self.relax(stencil, rest, f, out) if rest else out


def launch(kernel: Any, call: Geometry, count: int, tensors: Sequence[Tensor], **options: Any) -> None:
    """One program for every SIZE of the `count` points or blocks of each sample."""
    programs = -(-count // SIZE) * call.batch
    if programs == 0:
        return
    step = call.points if call.operators > 1 else 0
    with _on(tensors[0].device):
        kernel[(programs,)](*tensors, *call.shape, step, **options, SIZE=SIZE, num_warps=WARPS)


def _pass(stencil: Stencil, f: Tensor | None, u: Tensor, weight: Tensor | None = None) -> Tensor:
    """f - A u, A u without f, u + weight (f - A u) with a weight."""
    from opflow.kernels.stencil import triton_kernel

    call = Geometry.of(stencil, (u,) if f is None else (f, u), () if weight is None else (weight,))
    out = u.new_empty(call.batch, *stencil.shape)
    # What is not given is not read either.
    fields = call.fields(u if f is None else f, u)
    numbers = call.coefficients(stencil.diagonal if weight is None else weight, stencil.diagonal)
    tensors = (out, *fields, *numbers, *call.per_axis(stencil.upper))
    result = PRODUCT if f is None else RESIDUAL if weight is None else RELAXED
    options = {"RESULT": result, "AXES": call.axes, **_rings(call)}
    launch(triton_kernel.stencil_residual, call, call.points, tensors, **options)
    return out


def _start(stencil: Stencil, sweeps: Sequence[Relaxation], f: Tensor) -> Tensor:
    """One sweep from zero, or one of each colour."""
    from opflow.kernels.stencil import triton_kernel

    weights = sweeps[0].weight, sweeps[-1].weight
    call = Geometry.of(stencil, (f,), weights)
    out = f.new_empty(call.batch, *stencil.shape)
    tensors = (out, *call.fields(f), *call.coefficients(*weights), *call.per_axis(stencil.upper))
    options = {"COLOUR": sweeps[0].colour, "TWO": len(sweeps) > 1, "AXES": call.axes, **_rings(call)}
    launch(triton_kernel.stencil_start, call, call.points, tensors, **options)
    return out


def _sweep(stencil: Stencil, sweep: Relaxation, f: Tensor, u: Tensor) -> Tensor:
    """A sweep of one colour, in place where u is whole and contiguous."""
    from opflow.kernels.stencil import triton_kernel

    call = Geometry.of(stencil, (f, u), (sweep.weight,))
    u, f = call.fields(u, f)
    tensors = (u, f, *call.coefficients(sweep.weight, stencil.diagonal), *call.per_axis(stencil.upper))
    rows, n = call.shape[0] * call.shape[1], call.shape[2]
    options = {"COLOUR": sweep.colour, "EXACT": sweep.exact, "AXES": call.axes, **_rings(call)}
    launch(triton_kernel.stencil_sweep, call, rows * ((n + 1) // 2), tensors, **options)
    return u


def _in_place(stencil: Stencil, sweep: Relaxation) -> bool:
    """Whether no point of the sweep sees another one."""
    return sweep.colour is not None and stencil.two_coloured


def _rings(call: Geometry) -> dict[str, bool]:
    return {f"RING{d}": ring for d, ring in enumerate(call.rings)}


def _factors(call: Geometry) -> dict[str, int]:
    return {f"FACTOR{d}": factor for d, factor in enumerate(call.factors)}


def _on(device: torch.device) -> Any:
    """Kernels are launched on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def device_refusal(index: int) -> str | None:
    """Why a CUDA device cannot run the kernels, in words."""
    if torch.version.hip is not None:
        return "the kernels are made for NVIDIA devices"
    major, minor = torch.cuda.get_device_capability(index)
    return (
        None if major >= 8 else f"the device has compute capability {major}.{minor} and the kernels are made for 8.0 on"
    )
