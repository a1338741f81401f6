"""One linear step: it solves what it says, unwanted parts of the data do not reach it, and Otsu cuts where a search would."""

import itertools

import pytest
import torch

from opflow.inversion import LinearisedReconstruction, otsu_thresholds, segment_conductivity, smoothness_penalty


def system(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    deviation = 0.5 + torch.rand(30, generator=generator, dtype=torch.float64)
    return J, deviation, torch.randn(2, 30, generator=generator, dtype=torch.float64)


def test_it_minimises_tikhonovs_functional() -> None:
    J, deviation, drift = system()
    R = smoothness_penalty(torch.ones(3, 4, dtype=torch.bool), 1.5)
    step = LinearisedReconstruction(J, deviation, [0.3, 0.01], penalty=R, nuisance=drift)
    data = torch.randn(4, 30, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = step(data)
    assert found.shape == (4, 2, 12)
    weighted, unwanted = J / deviation[:, None], torch.linalg.qr((drift / deviation).T)[0]
    cleaned = weighted - unwanted @ (unwanted.T @ weighted)
    scale = (cleaned.T @ cleaned).trace() / R.trace()
    for j, level in enumerate((0.3, 0.01)):
        m = found[:, j].clone().requires_grad_()
        residual = step.prepared(data) - m @ cleaned.T
        objective = residual.square().sum() + level * scale * torch.einsum("nu,uv,nv->", m, R, m)
        (gradient,) = torch.autograd.grad(objective, m)
        assert float(gradient.norm()) < 1e-9 * float((step.prepared(data) @ cleaned).norm())


def test_nuisance_is_invisible_and_small_levels_invert() -> None:
    J, deviation, drift = system(1)
    step = LinearisedReconstruction(J, deviation, [1e-12], nuisance=drift)
    m = torch.randn(3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    amounts = torch.tensor([[0.0, 0], [5, -3], [100, 7]], dtype=torch.float64)
    torch.testing.assert_close(step(m @ J.T + amounts @ drift)[:, 0], m, rtol=1e-6, atol=1e-6)


def test_what_was_not_measured_does_not_count() -> None:
    J, deviation, _ = system(2)
    seen = torch.arange(30) % 5 != 0
    data = torch.randn(2, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    part = LinearisedReconstruction(J[seen], deviation[seen], [0.1])(data[:, seen])
    holes = torch.where(seen, data, torch.nan)
    whole = LinearisedReconstruction(J, torch.where(seen, deviation, torch.inf), [0.1])
    torch.testing.assert_close(whole(holes), part)
    with pytest.raises(ValueError, match="NaN or infinity where the deviation is finite"):
        LinearisedReconstruction(J, deviation, [0.1])(holes)


def test_unsuitable_parts_are_refused() -> None:
    J, deviation, _ = system()
    for change, message in (
        ({"deviation": deviation[:-1]}, "jacobian and deviation"),
        ({"deviation": 0 * deviation}, "not positive"),
        ({"levels": []}, "at least one"),
        ({"levels": [-1.0]}, "all positive"),
        ({"penalty": torch.eye(3)}, "penalty has shape"),
        ({"penalty": -10 * torch.eye(12), "levels": [100.0]}, "not positive definite"),
        ({"nuisance": torch.ones(1, 3)}, "nuisance has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearisedReconstruction(**({"jacobian": J, "deviation": deviation, "levels": [0.1]} | change))
    with pytest.raises(ValueError, match="measurements flattened"):
        LinearisedReconstruction(J, deviation, [0.1])(torch.ones(1, 7))
    with pytest.raises(ValueError, match="expected a mask"):
        smoothness_penalty(torch.ones(3, 3), 1.0)


def test_the_penalty_is_the_sum_over_neighbours() -> None:
    inside = torch.tensor([[True, True, False], [True, True, True]])
    m = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = torch.full((2, 3), torch.nan, dtype=torch.float64)
    image[inside] = m
    jumps = torch.cat([(image[1:] - image[:-1]).flatten(), (image[:, 1:] - image[:, :-1]).flatten()])
    expected = m.square().sum() + 9 * jumps[~jumps.isnan()].square().sum()
    torch.testing.assert_close(m @ smoothness_penalty(inside, 3.0) @ m, expected)


def test_otsu_finds_the_cut_of_an_exhaustive_search() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.cat([torch.randn(n, generator=generator) * s + m for n, s, m in ((40, 0.3, -3.0), (200, 0.2, 0.0), (30, 0.5, 4.0))]).double()  # fmt: skip

    def within(lower: float, upper: float) -> float:
        parts = [values[values <= lower], values[(values > lower) & (values <= upper)], values[values > upper]]
        return sum(float((part - part.mean()).square().sum()) for part in parts if len(part))

    found = within(*otsu_thresholds(values, bins=512))
    candidates = values.sort().values[::2].tolist()
    best = min(within(a, b) for a, b in itertools.combinations(candidates, 2))
    assert found < best * 1.01
    for bad in (torch.ones(5), torch.tensor([0.0, torch.nan]), torch.zeros(0)):
        with pytest.raises(ValueError, match="three classes"):
            otsu_thresholds(bad)


def test_segments_are_named_by_the_water() -> None:
    image = torch.zeros(20, 20)
    image[2:6, 2:6], image[10:15, 10:15] = -1.0, 2.0
    classes = segment_conductivity(image + 0.01 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
    assert (classes[2:6, 2:6] == 1).all() and (classes[10:15, 10:15] == 2).all() and int((classes > 0).sum()) == 41
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[:8] = True
    noisy = image + 0.01 * torch.randn(20, 20, generator=torch.Generator().manual_seed(1))
    assert not segment_conductivity(noisy, inside)[8:].any()
    with pytest.raises(ValueError, match="must agree"):
        segment_conductivity(image, inside[:5])


def test_single_precision_is_the_same_step() -> None:
    J, deviation, drift = system(5)
    step = LinearisedReconstruction(J, deviation, [0.1], nuisance=drift)
    data = torch.randn(3, 30, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    single = step.to(torch.float32)(data)
    assert single.dtype == torch.float32 and step(data).dtype == torch.float64
    torch.testing.assert_close(single.double(), step(data), rtol=1e-4, atol=1e-5)
