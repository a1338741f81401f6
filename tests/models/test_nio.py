"""NIO: a function of a set of measurements, whatever their number, order and place in memory; and what it is not when it should not be."""

from __future__ import annotations

import pytest
import torch

from opflow import Batch, Grid
from opflow.losses import DataMisfit, relative_l1
from opflow.models import NIO, EncoderDecoder, KernelRidge, StackedDeepONet
from opflow.models.inverse_units import InverseUnits
from opflow.models.recipe import build_model

GRID = Grid((9, 9))
ANGLES = torch.linspace(0, 3, 5)
DESCRIPTORS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def nio(**options) -> NIO:
    torch.manual_seed(0)
    options = {"descriptors": DESCRIPTORS, "encoder_channels": (6, 6), "n_modes": 4, "n_layers": 1} | options
    model = NIO.build((16,), 1, GRID, 4, features=8, fields=3, basis=6, mixer=(8,), trunk=(8,), **options)
    return model.double()


def measured(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 5, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_order_of_measurements_does_not_matter_but_which_is_which_does() -> None:
    model, y = nio(), measured()
    order = torch.tensor([3, 0, 4, 1, 2])
    there = DESCRIPTORS[order].double()
    torch.testing.assert_close(model(y[:, order], descriptors=there), model(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model(y[:, order], descriptors=there.expand(3, -1, -1)), model(y), rtol=1e-12, atol=1e-12
    )
    assert not torch.allclose(model(y[:, order]), model(y), rtol=1e-6, atol=1e-6), (
        "a measurement under another's name is another one"
    )


@pytest.mark.parametrize("pooling", [("mean",), ("deviation",), ("attention",), ("mean", "deviation", "attention")])
def test_a_mask_is_leaving_out(pooling: tuple[str, ...]) -> None:
    model, y = nio(pooling=pooling), measured()
    mask = torch.tensor([[True, False, True, True, False]]).expand(3, -1)
    broken = y.clone()
    broken[:, ~mask[0]] = torch.nan
    kept = model(y[:, mask[0]], descriptors=DESCRIPTORS[mask[0]].double())
    torch.testing.assert_close(model(broken, mask=mask), kept, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(model(y.requires_grad_(), mask=mask).sum(), y)
    assert not gradient[:, ~mask[0]].any() and gradient[:, mask[0]].abs().sum() > 0


def test_masks_are_of_each_sample() -> None:
    model, y = nio(), measured()
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)
    together = model(y, mask=mask)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], model(y[i : i + 1], mask=mask[i : i + 1]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_any_number_of_measurements(n: int) -> None:
    model = nio()
    y = torch.randn(2, n, 1, 16, dtype=torch.float64)
    assert model(y, descriptors=torch.randn(n, 2, dtype=torch.float64)).shape == (2, 1, 9, 9)
    assert nio(descriptors=None)(y).shape == (2, 1, 9, 9)


def test_every_measurement_twice_is_the_same_set() -> None:
    model, y = nio(), measured()
    twice = model(torch.cat([y, y], 1), descriptors=torch.cat([DESCRIPTORS, DESCRIPTORS]).double())
    torch.testing.assert_close(twice, model(y), rtol=1e-12, atol=1e-12)


def test_the_published_lifting_is_never_trained_and_ours_is() -> None:
    y, target = torch.randn(2, 3, 1, 64), torch.rand(2, 1, 9, 9) + 1
    for lifting, is_trained in (("frozen", False), ("trained", True)):
        torch.manual_seed(0)
        model = NIO.published((64,), 1, GRID, 4, basis=5, width=0.05, trunk=(6,), n_modes=4, lifting=lifting)
        total = sum(DataMisfit(relative_l1)(model, Batch(y, target)).values())
        total.backward()
        lift = model.refine.lift.linears[0].weight
        assert (lift.grad is not None and bool(lift.grad.any())) == is_trained
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
        before = lift.detach().clone()
        optimizer.step()
        assert torch.equal(before, lift) != is_trained
        assert model.recipe["lifting"] == lifting


def test_the_published_form_is_a_mean_of_fields() -> None:
    """(1/L) sum_l sum_k beta_k(y_l) t_k + b: what the branch and trunk give for each measurement, then averaged."""
    torch.manual_seed(0)
    model = NIO.published((64,), 1, GRID, 4, basis=5, width=0.05, trunk=(6,), n_modes=4).double().eval()
    y = torch.randn(2, 3, 1, 64, dtype=torch.float64)
    points = GRID.points().flatten(0, 1)
    branch = model.encoder(y.flatten(0, 1)).unflatten(0, (2, 3))
    each = torch.einsum("blk,pk->blp", branch, model.trunk(points)[:, 0]) + model.combine.bias
    expected = model.scale.field(model.refine(each.mean(1).view(2, 1, 9, 9)))
    torch.testing.assert_close(model(y), expected, rtol=1e-12, atol=1e-12)


def test_another_grid_gives_the_same_function_up_to_a_difference_that_falls() -> None:
    model, y = nio(n_modes=6).requires_grad_(False), measured(2)
    fine = model(y, shape=(129, 129))
    differences = []
    for n in (17, 33, 65):
        step = 128 // (n - 1)
        differences.append(
            float((model(y, shape=(n, n)) - fine[..., ::step, ::step]).norm() / fine[..., ::step, ::step].norm())
        )
    assert differences[2] < differences[1] / 1.5 < differences[0] / 2.25, differences


def test_at_coordinates_the_output_is_interpolated() -> None:
    model, y = nio(), measured()
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.25, 0.5]], dtype=torch.float64)
    field = model(y)
    expected = torch.stack([field[:, 0, 0, 0], field[:, 0, -1, -1], field[:, 0, 2, 4]], 1)[..., None]
    torch.testing.assert_close(model(y, corners), expected)
    torch.testing.assert_close(model(y, corners.expand(3, -1, -1)), expected)


def test_the_output_is_positive_and_in_units() -> None:
    model, y = nio().requires_grad_(False), measured()
    fields = torch.exp(3 + 0.1 * torch.randn(10, 1, 9, 9, dtype=torch.float64))
    model.scale.fit(7 * measured(10), fields)
    assert bool((model(y) > 0).all()) and 10 < float(model(y).mean()) < 40
    free = nio(positive=False).requires_grad_(False)
    free.scale.fit(y, -fields)
    assert float(free(y).mean()) < -10


@pytest.mark.parametrize(
    "make",
    [
        nio,
        lambda: nio(encoder="perceptron", encoder_channels=(7,), descriptors=None),
        lambda: NIO.published((64,), 1, GRID, 4, basis=5, width=0.05, trunk=(6,)),
        lambda: nio(reconstruction=KernelRidge.build(5, (16,), 1, GRID, components=4, targets=3, samples=9)),
        lambda: StackedDeepONet.build(5, (16,), 1, GRID, basis=4, branch=(4,), trunk=(4,)),
        lambda: EncoderDecoder.build(5, (16,), 1, GRID, channels=(4,), features=4, decoder_channels=(4, 3)),
    ],
)
def test_a_recipe_builds_the_model_again(make) -> None:
    model = make()
    again = build_model(model.recipe).to(next(model.parameters()).dtype)
    again.load_state_dict(model.state_dict())
    assert again.recipe == model.recipe
    y = torch.randn(2, 5, 1, 64 if "published" in str(model.recipe) else 16).to(next(model.parameters()))
    if getattr(model, "reconstruction", None) is None:
        assert torch.equal(again.eval()(y), model.eval()(y))


def test_a_reconstruction_is_what_an_untrained_network_says() -> None:
    """With R zero, the network gives its kernel ridge regression, in any units and on other grids."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    y = torch.einsum("nk,klcs->nlcs", z, torch.randn(2, 5, 1, 16, generator=generator, dtype=torch.float64))
    x, _ = GRID.points().unbind(-1)
    fields = torch.exp(z[:, :1, None, None] * x)
    ridge = KernelRidge.build(5, (16,), 1, GRID, components=2, targets=1).double().fit(y, fields)
    model = nio(reconstruction=ridge, skip=False)
    model.scale.fit(y, fields)
    for p in model.refine.project.parameters():
        p.data.zero_()
    torch.testing.assert_close(model(y), ridge(y))
    mask = torch.tensor([[True, True, False, True, False]]).expand(30, -1)
    torch.testing.assert_close(model(y, mask=mask), ridge(y, mask=mask))
    held_out = torch.arange(30)
    torch.testing.assert_close(model(y, held_out=held_out), ridge(y, held_out=held_out))
    assert model(y, shape=(17, 17)).shape == (30, 1, 17, 17)
    torch.testing.assert_close(model(y, shape=(17, 17))[..., ::2, ::2], ridge(y))
    assert not any(name.startswith("reconstruction") for name, _ in model.named_parameters())


def test_units_whiten_what_is_above_the_noise() -> None:
    """Directions of variances 1, 1e-2 and 1e-10: the second is raised by 10^(w), the third is noise and stays away."""
    draw = torch.Generator().manual_seed(0)
    V, _ = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64))
    deviations = torch.tensor([1.0, 0.1, 1e-5, 0.0, 0.0, 0.0], dtype=torch.float64)
    means = torch.randn(4, 6, generator=draw, dtype=torch.float64)  # of each measurement: no variance
    y = (means + (torch.randn(5000, 4, 6, generator=draw, dtype=torch.float64) * deviations) @ V.T)[:, :, None]
    fields = torch.ones(5000, 1, 3) + torch.rand(5000, 1, 3, generator=draw)
    for whitening in (0.5, 1.0):
        units = InverseUnits(6, whitening=whitening, noise=1e-3).double().fit(y, fields)
        z = units.measurements(y)
        assert z.shape == y.shape and abs(float(z.square().mean()) - 1) < 1e-6
        found = ((z[:, :, 0] - z[:, :, 0].mean(0)) @ V).std((0, 1))
        assert abs(float(found[1] / found[0]) / 0.1 ** (1 - whitening) - 1) < 0.02
        assert float(found[2:].max()) < 1e-3 * float(found[0])
        torch.testing.assert_close(units.whitener, units.whitener.T)
    y[:100, 2] = torch.nan
    assert bool(InverseUnits(6).double().fit(y, fields).whitener.isfinite().all())
    plain = InverseUnits(6, whitening=0.0).double().fit(7 * y, fields)
    torch.testing.assert_close(plain.measurements(y), y / plain.size, equal_nan=True)
    torch.testing.assert_close(plain.field(plain.raw(fields.double())), fields.double())
    with pytest.raises(ValueError, match="give whitening=0"):
        InverseUnits(5000)


def test_differences_are_from_the_mean_of_each_measurement() -> None:
    y = measured(6) + 10 * torch.arange(5).double().view(5, 1, 1)
    fields = torch.rand(6, 1, 9, 9).double() + 1
    y[2, 3] = torch.nan
    for whitening in (0.0, 0.5):
        units = InverseUnits(16, whitening=whitening, usual=5).double().fit(y, fields)
        seen = units.measurements(y)
        torch.testing.assert_close(seen.nanmean(0), torch.zeros(5, 1, 16).double(), rtol=0, atol=1e-10)
        assert abs(float(seen.square().nanmean().sqrt()) - 1) < 1e-10
        torch.testing.assert_close(units.measurements(y, units.reference), seen, equal_nan=True)
        with pytest.raises(ValueError, match="there are 4 measurements and the model knows 5"):
            units.measurements(y[:, :4])
        with pytest.raises(ValueError, match="has 4 measurements of each sample"):
            units.fit(y[:, :4], fields)
    common = InverseUnits(16).double().fit(y, fields)
    assert common.reference.shape == (1, 16), "measurements without an identity share their mean"
    with pytest.raises(ValueError, match="usual is 5"):
        InverseUnits(usual=5)


def test_the_reference_of_other_measurements_is_interpolated_between_the_usual_ones() -> None:
    model, y = nio(), measured(6) + torch.arange(5).double().view(5, 1, 1)
    model.scale.fit(y, torch.rand(6, 1, 9, 9).double() + 1)
    order, r = torch.tensor([3, 0, 4, 1, 2]), model.scale.reference
    torch.testing.assert_close(model(y[:, order], descriptors=model.descriptors[order]), model(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model._reference(model.descriptors[order]), r[order], rtol=1e-10, atol=1e-10)
    between = model._reference((model.descriptors[1] + model.descriptors[2])[None] / 2)[0]
    assert bool(((between > r[1].minimum(r[2]) - 0.5) & (between < r[1].maximum(r[2]) + 0.5)).all())
    far = model._reference(torch.full((1, 2), 1e6).double())[0]
    torch.testing.assert_close(far, r.mean(0))
    assert nio(difference=False)._reference(DESCRIPTORS.double()) is None
    assert nio(descriptors=None).latent is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, y: m(y[:, 0]), r"shape \(3, 1, 16\) but NIO expects \(batch, L, channel"),
        (lambda m, y: m(y[..., :15]), "another layout of sensors"),
        (lambda m, y: m(y[:, :2]), "2 measurements and the model has 5 descriptors"),
        (lambda m, y: m(y, mask=torch.zeros(3, 5, dtype=torch.bool)), "sample 0 keeps none of its 5"),
        (lambda m, y: m(y, mask=torch.ones(3, 4, dtype=torch.bool)), "mask is torch.bool of shape"),
        (lambda m, y: m(y, mask=torch.ones(3, 5)), "expected torch.bool"),
        (lambda m, y: m(y, descriptors=DESCRIPTORS[:3].double()), "descriptors have shape"),
        (lambda m, y: m(y, torch.zeros(4, 3, dtype=torch.float64)), "coords has shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(nio(), measured())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"descriptors": [[0.0], [1.0], [0.0]]}, "the same for two measurements"),
        ({"encoder": "wide"}, "encoder is 'wide'"),
        ({"lifting": "lost"}, "lifting is 'lost'"),
        ({"pooling": ("mean", "mean")}, "each once"),
    ],
)
def test_what_cannot_be_built_is_refused(options, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        nio(**options)
    with pytest.raises(ValueError, match="mixer=None"):
        NIO.build((16,), 1, GRID, mixer=None)
    with pytest.raises(ValueError, match="descriptors were given"):
        nio(descriptors=None)(measured(), descriptors=DESCRIPTORS.double())


@pytest.mark.parametrize("build", [StackedDeepONet.build, EncoderDecoder.build])
def test_the_baselines_take_masks_as_zeros(build) -> None:
    torch.manual_seed(0)
    model, y = build(5, (16,), 1, GRID).double(), measured()
    mask = torch.tensor([[True, False, True, True, False]]).expand(3, -1)
    zeros = torch.where(mask[..., None, None], y, 0.0)
    y[:, ~mask[0]] = torch.nan
    torch.testing.assert_close(model(y, mask=mask), model(zeros))
    with pytest.raises(ValueError, match="there are 3 measurements and the model knows 5"):
        model(y[:, :3])
    with pytest.raises(ValueError, match="expects"):
        build(5, (16,), 1, GRID, difference=False).double()(y[:, :3])
