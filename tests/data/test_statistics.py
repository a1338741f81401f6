"""Channel statistics: right where a naive sum of squares fails, and the same whatever the order of the parts."""

import itertools

import pytest
import torch

from opflow import Batch, Grid
from opflow.data import Batches, ChannelStatistics, DataError, FieldDataset, channel_statistics


def dataset(values, targets=None):
    return FieldDataset.from_arrays(values, targets, Grid(values.shape[2:]), dtype=torch.float64)


def test_they_are_those_of_all_values():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(37, 3, 8, 9, dtype=torch.float64, generator=generator) * torch.tensor([1.0, 10.0, 0.1]).view(
        3, 1, 1
    )
    result = channel_statistics(dataset(values, values[:, :1] + 5), batch_size=10)
    flat = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(result.input.mean, flat.mean(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.input.std, flat.std(1, correction=0), rtol=1e-12, atol=0)
    assert torch.equal(result.input.min, flat.amin(1)) and torch.equal(result.input.max, flat.amax(1))
    assert result.input.count == 37 * 72 and result.target.mean.shape == (1,)
    assert all(v.dtype == torch.float64 for v in (result.input.mean, result.input.std, result.input.min))


def test_a_large_mean_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 1, 50, dtype=torch.float64, generator=generator)
    result = channel_statistics(dataset(values + 1e6), batch_size=7).input
    torch.testing.assert_close(result.mean - 1e6, values.mean().view(1), rtol=0, atol=1e-8)
    torch.testing.assert_close(result.std, values.std(correction=0).view(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -1e-30])
def test_a_constant_field_has_no_deviation(value):
    result = channel_statistics(dataset(torch.full((37, 1, 11), value, dtype=torch.float64)), batch_size=5).input
    assert result.std.item() == 0.0
    assert result.mean.item() == result.min.item() == result.max.item() == value


def test_merging_does_not_depend_on_order():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 2, 30, dtype=torch.float64, generator=generator) + 1e3
    parts = [ChannelStatistics.of(part) for part in values.split([5, 9, 11, 15])]
    merged = [order[0].merge(*order[1:]) for order in itertools.permutations(parts)]
    whole = ChannelStatistics.of(values)
    for result in merged:
        assert torch.equal(result.mean, merged[0].mean) and torch.equal(result.std, merged[0].std)
        torch.testing.assert_close(result.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(result.std, whole.std, rtol=1e-12, atol=0)
        assert result.count == whole.count and torch.equal(result.max, whole.max)
    with pytest.raises(DataError, match="cannot be merged"):
        parts[0].merge(ChannelStatistics.of(values[:, :1]))


def test_batches_keep_their_position():
    data = dataset(torch.randn(10, 1, 4))
    batches = Batches(data, 3, shuffle=True)
    assert torch.equal(channel_statistics(batches).input.mean, channel_statistics(data).input.mean)
    assert (batches.epoch, batches.position) == (0, 0)
    streamed = channel_statistics(Batch(input=part.float()) for part in torch.ones(4, 1, 3).split(2))
    assert streamed.input.count == 12 and streamed.target is None


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="at least one sample"):
        channel_statistics([])
    with pytest.raises(DataError, match="holds no values"):
        ChannelStatistics.of(torch.ones(0, 2, 3))
