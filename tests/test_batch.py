"""Batches, and how a model is called with one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from opflow import Batch
from opflow.batch import apply_model


def full() -> Batch:
    return Batch(
        input=torch.zeros(3, 1, 4),
        target=torch.zeros(3, 2, 4),
        coords=torch.zeros(5, 1),
        parameters={"viscosity": torch.zeros(3)},
        mask=torch.ones(3, 4, dtype=torch.bool),
        weight=torch.ones(4),
        index=torch.arange(3),
    )


def test_batch_size_comes_from_what_is_there() -> None:
    assert full().batch_size == 3
    assert Batch(target=torch.zeros(2, 1)).batch_size == 2
    assert Batch(index=torch.arange(7)).batch_size == 7
    with pytest.raises(ValueError, match="neither input, target nor index"):
        _ = Batch(coords=torch.zeros(5, 2)).batch_size


def test_to_moves_everything_and_converts_floating_point_only() -> None:
    batch = full()
    moved = batch.to("meta", torch.float64)
    assert moved is not batch and batch.input is not None and batch.input.device.type == "cpu"
    for name in ("input", "target", "coords", "weight"):
        part = getattr(moved, name)
        assert part.device.type == "meta" and part.dtype == torch.float64, name
    assert moved.parameters is not None and moved.parameters["viscosity"].dtype == torch.float64
    assert moved.parameters["viscosity"].device.type == "meta"
    assert moved.mask is not None and moved.mask.dtype == torch.bool and moved.mask.device.type == "meta"
    assert moved.index is not None and moved.index.dtype == torch.int64 and moved.index.device.type == "meta"
    assert Batch().to("meta", torch.float64) == Batch()
    double = batch.to(dtype=torch.float64)
    assert double.input is not None and double.input.dtype == torch.float64 and double.input.device.type == "cpu"


class Recorder(nn.Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.called: tuple = ()


class Plain(Recorder):
    def forward(self, *arguments: Tensor) -> Tensor:
        self.called = (arguments, {})
        return self.scale


class WithParameters(Recorder):
    def forward(
        self, x: Tensor, coords: Tensor | None = None, *, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        self.called = ((x, coords), {"parameters": parameters})
        return self.scale


class WithMask(Recorder):
    def forward(self, x: Tensor, coords: Tensor, mask: Tensor | None = None) -> Tensor:
        self.called = ((x, coords), {"mask": mask})
        return self.scale


def test_a_model_is_called_with_what_is_there() -> None:
    model, batch = Plain(), full()
    apply_model(model, batch)
    assert model.called[0] == (batch.input, batch.coords)
    apply_model(model, Batch(input=batch.input))
    assert model.called[0] == (batch.input,)
    apply_model(model, Batch(coords=batch.coords))
    assert model.called[0] == (batch.coords,)


def test_parameters_and_mask_go_where_they_are_declared() -> None:
    batch = full()
    model = WithParameters()
    apply_model(model, batch)
    assert model.called[1] == {"parameters": batch.parameters}
    masked = WithMask()
    apply_model(masked, batch)
    assert masked.called[1]["mask"] is batch.mask
    apply_model(masked, Batch(input=batch.input, coords=batch.coords))
    assert masked.called[1]["mask"] is None


class WithDescriptors(Recorder):
    def forward(
        self,
        measurements: Tensor,
        coords: Tensor | None = None,
        *,
        descriptors: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        self.called = ((measurements, coords), {"descriptors": descriptors, "mask": mask})
        return self.scale


class Anything(Recorder):
    def forward(self, *arguments: Tensor, **named: Tensor) -> Tensor:
        self.called = (arguments, named)
        return self.scale


def test_entries_of_the_parameters_go_by_name() -> None:
    batch = full()
    angles = torch.zeros(1, 4, 2)
    batch.parameters = {"descriptors": angles, "viscosity": torch.zeros(3), "measurements": angles, "mask": angles}
    model = WithDescriptors()
    apply_model(model, batch)
    assert model.called[0][0] is batch.input, "an entry of the first argument's name does not take its place"
    assert model.called[1]["descriptors"] is angles and model.called[1]["mask"] is batch.mask
    apply_model(model, Batch(input=batch.input, parameters={"viscosity": torch.zeros(3)}))
    assert model.called[1] == {"descriptors": None, "mask": None}
    apply_model(model, Batch(input=batch.input, parameters={"mask": angles}))
    assert model.called[1]["mask"] is None, "the batch's own mask is meant"
    anything = Anything()
    apply_model(anything, batch)
    assert anything.called[1] == {}


def test_wrappers_do_not_hide_what_a_model_declares() -> None:
    batch = full()
    averaged = AveragedModel(WithParameters())
    apply_model(averaged, batch)
    assert averaged.module.called[1] == {"parameters": batch.parameters}

    class Owner(WithParameters):
        """A model of its own that happens to hold another under the name of a wrapper's."""

        def __init__(self) -> None:
            super().__init__()
            self.module = Plain()

    owner = Owner()
    apply_model(owner, batch)
    assert owner.called[1] == {"parameters": batch.parameters}
