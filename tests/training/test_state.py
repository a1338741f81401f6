"""Nested state comes back exactly, through JSON text and safetensors, or is refused."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opflow.training.random_streams import RandomStreams
from opflow.training.state import flatten, unflatten


def round_trip(value):
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.loads(json.dumps(flatten(value, "state", tensors), allow_nan=False, sort_keys=True))
    from safetensors.torch import load, save

    return unflatten(skeleton, load(save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})))


def same(one, other) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    return one == other


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.booleans()) | st.none()
arrays = st.sampled_from(["<u4", ">f8", "<i8", "|b1", "<c16", "<f2"]).flatmap(
    lambda kind: st.lists(st.integers(0, 1), max_size=4).map(lambda v: np.array(v, dtype=kind))
)
tensors = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex128]
).flatmap(
    lambda dtype: st.sampled_from([torch.ones(2, 3), torch.tensor(3.0), torch.zeros(0, 2), torch.ones(3, 2).T]).map(
        lambda tensor: tensor.to(dtype)
    )
)
states = st.recursive(
    scalars | arrays | tensors,
    lambda part: (
        st.lists(part, max_size=3)
        | st.tuples(part, part)
        | st.dictionaries(keys, part, max_size=3)
        | st.dictionaries(keys, part, max_size=2).map(OrderedDict)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=150)
@given(states)
def test_round_trip(state):
    assert same(state, round_trip(state))


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)},
        {0: (10**5000, -(2**60)), "0": [-0.0, math.inf, -math.inf, math.nan, 1e-320]},
        Counter([3, 3, 9]),
        np.float64(0.1),
        np.uint32(7),
        {"tensor": "x", "tuple": [1]},
        torch.tensor([1 + 2j]).conj(),
        torch.ones(1).expand(4),
    ],
    ids=lambda state: type(state).__name__,
)
def test_awkward_states(state):
    assert same(state, round_trip(state))


@pytest.mark.parametrize("value", [lambda: 0, Path("x"), {1, 2}, b"x", object(), np.array(["x"]), 1j, torch.float32])
def test_what_needs_a_pickle_is_refused_with_its_path(value):
    with pytest.raises(TypeError, match=r"scheduler\.rule"):
        flatten({"rule": value}, "scheduler", {})


@pytest.mark.parametrize(
    "skeleton",
    [
        {},
        {"tensor": "absent"},
        {"pickle": "x"},
        {"dict": [1]},
        {"dict": [[[1], 2]]},
        {"tuple": 3},
        {"int": 3},
        {"int": "zz"},
        {"float": "x"},
        {"array": "there", "dtype": "O", "shape": [1], "ndarray": True},
        {"array": "there", "dtype": "<f8", "shape": [99], "ndarray": True},
        {"array": "there"},
        {"complex": "there"},
    ],
    ids=str,
)
def test_a_malformed_skeleton_is_a_value_error(skeleton):
    with pytest.raises(ValueError):
        unflatten([skeleton], {"there": torch.zeros(3, dtype=torch.uint8)})


def test_random_streams_round_trip_without_touching_the_global_ones():
    import random

    streams = RandomStreams.capture()
    expected = (torch.rand(3), random.gauss(0, 1), np.random.standard_normal())  # noqa: NPY002
    back = RandomStreams.from_state_dict(round_trip(streams.state_dict()))
    assert not torch.equal(torch.rand(3), expected[0])
    back.restore()
    again = (torch.rand(3), random.gauss(0, 1), np.random.standard_normal())  # noqa: NPY002
    assert torch.equal(again[0], expected[0]) and again[1:] == expected[1:]
