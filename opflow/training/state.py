"""Nested state as named tensors and plain JSON: what a checkpoint stores instead of a pickle."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A JSON number beyond this is read as a float by other readers, so it is written as text.
_EXACT_INTEGER = 2**53
_MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON skeleton of `value`; its tensors and arrays go to `tensors`, named by their path.

    Exact for None, bool, int of any size, float (inf and nan too), str, list, tuple, dict with keys of these kinds,
    OrderedDict, Counter, tensors of every dtype, NumPy numbers and numeric arrays.

    Raises:
        TypeError: anything else, a function for example; it names the path.

    >>> tensors = {}
    >>> flatten({"step": 3, "betas": (0.9, float("inf")), "mean": torch.ones(2)}, "adam", tensors)
    {'dict': [['step', 3], ['betas', {'tuple': [0.9, {'float': 'inf'}]}], ['mean', {'tensor': 'adam.mean'}]]}
    >>> list(tensors)
    ['adam.mean']
    """
    if isinstance(value, Tensor):
        return _store_tensor(value, name, tensors)
    if isinstance(value, np.ndarray | np.generic):
        return _store_array(value, name, tensors)
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) <= _EXACT_INTEGER else {"int": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    for kind, mapping in _MAPPINGS.items():
        if type(value) is mapping:
            return {
                kind: [
                    [flatten(k, f"{name}.key", tensors), flatten(v, f"{name}.{k}", tensors)] for k, v in value.items()
                ]
            }
    if isinstance(value, list | tuple):
        parts = [flatten(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    raise TypeError(
        f"{name} is {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot store without a pickle; "
        "keep plain numbers, strings, lists, tuples, dicts, arrays and tensors in the state."
    )


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`.

    Raises:
        ValueError: the skeleton is none that `flatten` writes, or it names a tensor that is not there.
    """
    if skeleton is None or isinstance(skeleton, bool | int | float | str):
        return skeleton
    if isinstance(skeleton, list):
        return [unflatten(part, tensors) for part in skeleton]
    try:
        return _unflatten_tagged(skeleton, tensors)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the stored state is malformed at {str(skeleton)[:80]!r} ({error!r})") from error


def _unflatten_tagged(skeleton: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if not skeleton:
        raise KeyError("an empty object")
    kind, content = next(iter(skeleton.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "complex":
        return torch.view_as_complex(tensors[content])
    if kind == "array":
        dtype = np.dtype(skeleton["dtype"])
        array = np.frombuffer(tensors[content].numpy().tobytes(), dtype=dtype).reshape(skeleton["shape"]).copy()
        return array if skeleton["ndarray"] else array[()]
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(unflatten(part, tensors) for part in content)
    return _MAPPINGS[kind]({unflatten(k, tensors): unflatten(v, tensors) for k, v in content})


def _store_tensor(value: Tensor, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    name = _free_name(name, tensors)
    value = value.detach()
    if value.is_complex():  # safetensors knows complex64 in its newer versions only, complex128 in none
        tensors[name] = torch.view_as_real(value.resolve_conj().contiguous())
        return {"complex": name}
    tensors[name] = value
    return {"tensor": name}


def _store_array(value: np.ndarray | np.generic, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    array = np.ascontiguousarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} is a NumPy array of {array.dtype}, but a checkpoint stores numeric arrays only.")
    name = _free_name(name, tensors)
    tensors[name] = torch.tensor(bytearray(array.tobytes()), dtype=torch.uint8)
    return {
        "array": name,
        "dtype": array.dtype.str,
        "shape": list(np.shape(value)),
        "ndarray": isinstance(value, np.ndarray),
    }


def _free_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    # Different paths can read alike, {"a.b": x} and {"a": {"b": y}} for example.
    while name in tensors:
        name += "'"
    return name
