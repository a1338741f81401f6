"""The dispatch rule of every operation: the named backend or an error; else the first that supports the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

CallT = TypeVar("CallT", contravariant=True)


class Backend(Protocol[CallT]):
    """One implementation of an operation. A call is a small record of shapes, dtypes and devices, never of values."""

    name: str

    def refusal(self, call: CallT) -> str | None:
        """Why this backend cannot serve the call, in words; None if it can."""
        ...


BackendT = TypeVar("BackendT", bound=Backend)
FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def choose(backends: Sequence[BackendT], call: object, name: str | None = None) -> BackendT:
    """The backend for a call: `name` or a ValueError with its reason; without a name, the first that does not refuse.

    The choice depends on nothing but the call, so that a resumed run and a compiled graph take the same one.
    """
    if name is None:
        for backend in backends:
            if backend.refusal(call) is None:
                return backend
        raise ValueError(f"no backend supports this call: {explain(backends, call)}.")
    for backend in backends:
        if backend.name == name:
            reason = backend.refusal(call)
            if reason is not None:
                raise ValueError(
                    f"backend {name!r} was asked for, but {reason}; pass backend=None to let opflow choose."
                )
            return backend
    known = ", ".join(repr(backend.name) for backend in backends)
    raise ValueError(f"backend {name!r} is unknown here; choose one of {known}, or None to let opflow choose.")


def explain(backends: Sequence[Backend], call: object) -> str:
    """One clause a backend, in order of preference: why it refuses, or that it is chosen."""
    clauses, chosen = [], False
    for backend in backends:
        reason = backend.refusal(call)
        if reason is None:
            reason = "supported, but an earlier one is chosen" if chosen else "chosen"
            chosen = True
        clauses.append(f"{backend.name}: {reason}")
    return "; ".join(clauses)


def constant_when_compiled(function: FunctionT) -> FunctionT:
    """Mark a function whose result the compiler may take as a constant: `torch.compiler.assume_constant_result`.

    That decorator imports the compiler, a second of work at `import opflow`; the mark is all that it leaves.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def only_plain_operations(*tensors: Tensor) -> str | None:
    """Why none but plain torch operations can serve a call on these tensors, in words; None if kernels can."""
    # Not is_exporting(), which torch 2.11 reads as true in every compiled graph.
    if torch.compiler._is_exporting_flag:
        return "an exported program stands alone, without opflow's kernels"
    if torch._C._are_functorch_transforms_active():
        return "the transforms of torch.func go through plain torch operations"
    if torch.compiler.is_compiling():
        return None
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        return "forward-mode derivatives go through plain torch operations"
    return None


def is_transformed() -> bool:
    """Whether a backward pass is itself differentiated, or mapped over many gradients at once."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
