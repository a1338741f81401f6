"""Rollout: the recurrence written out, its gradient in time, and its way through checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from opflow import Batch
from opflow.interop import Predictor
from opflow.layers import ChannelMLP, Normalized, Normalizer
from opflow.losses import DataMisfit, relative_l2
from opflow.models import FNO, Rollout
from opflow.models.recipe import build_model
from opflow.training import fit, save_checkpoint


class LinearStep(nn.Module):
    """u_(n+1) = sum_j a_j u_(n-w+j): so the rollout is known in closed form."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        windows = x.unflatten(1, (-1, len(self.weight)))
        return torch.einsum("bcw...,w->bc...", windows, self.weight)


class Frames(nn.Module):
    """(batch, channel, window, *grid) -> `frames` frames, the last one plus 1, 2, ...; as an axis of their own."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, :, -1] + i + 1 for i in range(self.frames)], dim=2)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_recurrence_written_out() -> None:
    x, step = random(2, 3, 2, 5, 4), LinearStep(0.25, -0.5)
    expected = list(x.unbind(2))
    for _ in range(7):
        expected.append(0.25 * expected[-2] - 0.5 * expected[-1])
    y = Rollout(step, 7, window=2)(x)
    assert y.shape == (2, 3, 7, 5, 4)
    torch.testing.assert_close(y, torch.stack(expected[2:], dim=2), rtol=1e-14, atol=1e-14)


def test_increments_are_added_to_the_last_frame() -> None:
    x = random(2, 1, 1, 6)
    y = Rollout(LinearStep(0.5), 4, increments=True)(x)
    torch.testing.assert_close(y, x * 1.5 ** torch.arange(1, 5, dtype=torch.float64)[:, None], rtol=1e-14, atol=0)


@pytest.mark.parametrize("steps", [1, 3, 5, 6])
def test_several_frames_a_call_and_a_window_as_an_axis(steps: int) -> None:
    """Three frames a call, of which the last call's surplus is dropped; the window may be shorter than what a call gives."""
    x = random(2, 2, 2, 4)
    for window in (1, 2):
        y = Rollout(Frames(3), steps, window=window, stacked=False)(x[:, :, -window:])
        expected = x[:, :, -1:] + torch.arange(1.0, steps + 1)[:, None]
        torch.testing.assert_close(y, expected.to(y), rtol=1e-14, atol=1e-14)


def test_stacked_frames_are_channel_by_channel() -> None:
    """Channel 0's window comes first, then channel 1's; what is given back is read in the same order."""

    class Probe(nn.Module):
        def forward(self, v: torch.Tensor) -> torch.Tensor:
            assert v.shape == (1, 4, 3)
            return v

    x = random(1, 2, 2, 3)
    assert torch.equal(Rollout(Probe(), 2, window=2)(x), x)


def test_another_number_of_steps_at_the_call_continues_the_same_trajectory() -> None:
    torch.manual_seed(0)
    model = Rollout(FNO.build((4, 4), 3, 1, 4, n_layers=2), 2, window=3)
    x = torch.randn(2, 1, 3, 8, 8)
    long = model(x, steps=5)
    assert torch.equal(model(x), long[:, :, :2])
    again = model(torch.cat([x, long], dim=2)[:, :, 2:5], steps=3)
    assert torch.equal(again, long[:, :, 2:])


# The gradient in time


def test_the_gradient_runs_through_all_steps() -> None:
    """u_n = a^n u_0: d/da sum of u_N = N a^(N-1) u_0, and of the sum over all steps likewise."""
    step, x = LinearStep(0.9), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    Rollout(step, 5)(x)[:, :, -1].sum().backward()
    assert step.weight.grad is not None
    assert float(step.weight.grad) == pytest.approx(5 * 0.9**4, rel=1e-14)


@pytest.mark.parametrize(
    ("every", "expected"), [(1, 0.9**4), (2, 0.9**4), (3, 2 * 0.9**4), (4, 0.9**4), (9, 5 * 0.9**4)]
)
def test_detached_gradients_see_the_calls_since_the_last_cut(every: int, expected: float) -> None:
    """The last of 5 calls is the first, first, second, first and fifth since a cut; each of those adds a^4."""
    step, x = LinearStep(0.9), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    y = Rollout(step, 5, detach_every=every)(x)
    torch.testing.assert_close(y.flatten(), 0.9 ** torch.arange(1, 6, dtype=torch.float64))
    y[:, :, -1].sum().backward()
    assert step.weight.grad is not None
    assert float(step.weight.grad) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("options", [{}, {"increments": True}, {"detach_every": 2}])
def test_checkpointing_changes_memory_and_nothing_else(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    step = FNO.build((4, 4), 2, 1, 8, n_layers=2).double()
    x, kept, gradients = random(2, 1, 2, 16, 16), {}, {}
    for checkpoint in (False, True):
        model = Rollout(step, 6, window=2, checkpoint=checkpoint, **options)
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(x).square().mean()
        kept[checkpoint] = sum(sizes.values())
        gradients[checkpoint] = torch.autograd.grad(loss, list(step.parameters()))
    for ours, theirs in zip(gradients[True], gradients[False], strict=True):
        assert torch.equal(ours, theirs)
    assert kept[True] < kept[False] / 10
    with torch.no_grad():
        assert torch.equal(
            Rollout(step, 6, window=2, checkpoint=True, **options)(x), Rollout(step, 6, window=2, **options)(x)
        )


def test_training_unrolled_makes_long_rollouts_better_than_training_single_steps() -> None:
    """A turn by 0.3 with a damping that grows with |u|, learned by a linear map, which must compromise: the map that fits single
    steps best is not the one whose iterates do.
    """
    angle = torch.tensor(0.3, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    u = random(32, 2, 4)
    frames = [u]
    for _ in range(10):
        u = torch.einsum("ij,bjn->bin", turn, u) * (1 - 0.05 * u.square().sum(1, keepdim=True))
        frames.append(u)
    trajectory = torch.stack(frames, dim=2)
    errors = {}
    for steps in (1, 10):
        torch.manual_seed(0)
        model = Rollout(ChannelMLP(2, 2, 1, 1).double(), steps)
        if steps == 1:  # every pair of neighbours on the trajectory
            x = trajectory[:, :, :-1].transpose(1, 2).flatten(0, 1).unsqueeze(2)
            y = trajectory[:, :, 1:].transpose(1, 2).flatten(0, 1).unsqueeze(2)
        else:
            x, y = trajectory[:, :, :1], trajectory[:, :, 1:]
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")
        for _ in fit(model, DataMisfit(relative_l2), [Batch(input=x, target=y)], optimizer, epochs=5):
            pass
        with torch.no_grad():
            errors[steps] = float(relative_l2(model(trajectory[:, :, :1], steps=10), trajectory[:, :, 1:]))
    assert errors[10] < 0.9 * errors[1]


# Recipes and checkpoints


def test_recipes_nest_both_ways() -> None:
    inner = FNO.build((4, 4), 3, 1, 4, n_layers=2)
    options = {"window": 3, "increments": True, "checkpoint": True, "detach_every": 5}
    many, one = Normalizer([1.0, 2.0, 3.0], [2.0] * 3), Normalizer([1.0], [2.0])
    outside = Normalized(Rollout(inner, 7, **options), one, Normalizer([1.0], [2.0]))
    inside = Rollout(Normalized(inner, many, one), 7, **options)
    twice = Normalized(Rollout(Normalized(inner, many, one), 7, **options), one, None)
    x = torch.randn(2, 1, 3, 8, 8)
    for model in (outside, inside, twice):
        recipe = json.loads(json.dumps(model.recipe))
        again = build_model(recipe)
        assert again.recipe == model.recipe
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), model(x))
    assert inside.recipe is not None
    assert inside.recipe["model"] == "Rollout" and inside.recipe["inner"]["inner"]["model"] == "FNO"
    assert Rollout(nn.Identity(), 2).recipe is None
    with pytest.raises(ValueError, match=r"recipe of Rollout does not fit this version.*strides.*pass build="):
        build_model({**inside.recipe, "strides": 2})


def test_normalised_outside_with_one_quantity_equals_normalised_inside() -> None:
    """With the same numbers for every frame of the window the two ways are one function."""
    torch.manual_seed(0)
    inner = FNO.build((4, 4), 2, 1, 4, n_layers=2).double()
    outside = Normalized(Rollout(inner, 3, window=2), Normalizer([3.0], [0.5]), Normalizer([3.0], [0.5])).double()
    inside = Rollout(
        Normalized(inner, Normalizer([3.0] * 2, [0.5] * 2), Normalizer([3.0], [0.5])), 3, window=2
    ).double()
    x = 3 + 0.5 * random(2, 1, 2, 8, 8)
    torch.testing.assert_close(outside(x), inside(x), rtol=1e-12, atol=1e-12)


def test_a_predictor_rolls_out_from_its_folder(tmp_path) -> None:
    torch.manual_seed(0)
    model = Normalized(Rollout(FNO.build((4,), 2, 1, 4, n_layers=2), 3, window=2), Normalizer([1.0], [2.0]), None)
    save_checkpoint(tmp_path / "run", model)
    x = torch.randn(2, 1, 2, 8)
    with torch.no_grad():
        expected = model(x).numpy()
    assert (Predictor.load(tmp_path / "run")(x.numpy()) == expected).all()


# Bad input


def test_wrong_shapes_are_refused_in_a_sentence() -> None:
    model = Rollout(LinearStep(1.0, 1.0), 2, window=2)
    with pytest.raises(
        ValueError, match=r"shape \(1, 1, 3, 8\) but Rollout expects \(batch, channel, 2, \*grid\).*x\[:, :, -window:\]"
    ):
        model(random(1, 1, 3, 8))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 8\) but Rollout expects"):
        model(random(1, 2, 8))
    fno = Rollout(FNO.build((4, 4), 2, 1, 4, n_layers=1), 2, window=2)
    with pytest.raises(ValueError, match=r"x has 6 channels but .* expects 4"):
        fno(torch.randn(1, 2, 2, 8, 8))

    class Wrong(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, v: torch.Tensor) -> torch.Tensor:
            return v.new_zeros(self.shape)

    x = random(1, 2, 1, 8)
    for shape, stacked in (
        ((1, 3, 8), True),
        ((1, 2, 7), True),
        ((1, 2, 1, 8), True),
        ((1, 2, 8), False),
        ((1, 1, 1, 8), False),
    ):
        with pytest.raises(
            ValueError, match=r"the model gave \(.*\) for \(.*\), but \(batch, 2.*frames.*8\) is expected"
        ):
            Rollout(Wrong(*shape), 1, stacked=stacked)(x)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps is 0; give a positive whole number"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": True}, "steps is True"),
        ({"steps": 2, "window": 0}, "window is 0"),
        ({"steps": 2, "window": None}, "window is None; give a positive whole number."),
        ({"steps": 2, "detach_every": 0}, "detach_every is 0; give a positive whole number, or None"),
    ],
)
def test_wrong_numbers_are_refused_in_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Rollout(nn.Identity(), **options)
    with pytest.raises(ValueError, match="steps is -1"):
        Rollout(nn.Identity(), 1)(random(1, 1, 1, 4), steps=-1)
