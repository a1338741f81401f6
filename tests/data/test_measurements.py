"""Measurements beside fields: written, read, generated on finer grids, handed to models, left out at random."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from toy_problem import Toy, ToyInverse, content

from opflow import Grid
from opflow.data import (
    Batches,
    DataError,
    FieldDataset,
    Source,
    channel_statistics,
    collate,
    generate,
    open_dataset,
    random_subsets,
    write_dataset,
)
from opflow.data.source import ArraySource

GRID = Grid((6, 5))
N = 7


def arrays(n=N):
    random = np.random.default_rng(0)
    return {"a": random.normal(size=(n, 6, 5))}, {"psi": random.normal(size=(n, 3, 2, 4, 2)).astype("f4")}


def write(path, n=N, **options):
    fields, measurements = arrays(n)
    given = {"inputs": ("psi",), "targets": ("a",), "measurements": measurements, "index": range(10, 10 + n)} | options
    write_dataset(path, fields, GRID, **given)
    return path


def test_a_file_holds_measurements_beside_fields(tmp_path):
    source = open_dataset(write(tmp_path / "f.h5"))
    assert isinstance(source, Source) and source.names == ("a", "psi")
    assert (source.inputs, source.targets, source.measurements) == (("psi",), ("a",), ("psi",))
    fields, measurements = arrays()
    order = [5, 0, 0, 6]
    np.testing.assert_array_equal(source.read("psi", order), measurements["psi"][order])
    np.testing.assert_array_equal(source.read("a", order), fields["a"][order])
    assert source.read("psi", order).dtype == np.float32 and source.read("psi", []).shape == (0, 3, 2, 4, 2)
    source.close()
    with h5py.File(tmp_path / "f.h5") as file:
        stored = file["measurements/psi"]
        assert stored.chunks == (1, 3, 2, 4, 2) and stored.fletcher32 and stored.compression is None
        assert list(file["fields"]) == ["a"]
    assert write(tmp_path / "g.h5").read_bytes() == (tmp_path / "f.h5").read_bytes()


def test_files_without_measurements_have_no_trace_of_them(tmp_path):
    write_dataset(tmp_path / "f.h5", arrays()[0], GRID, inputs=("a",), targets=(), attributes={"measurements": 20})
    with h5py.File(tmp_path / "f.h5") as file:
        assert set(file) == {"fields", "grid", "samples"}
    source = open_dataset(tmp_path / "f.h5")
    assert source.measurements == () and source.attributes == {"measurements": 20}


def test_measurements_may_come_without_a_truth(tmp_path):
    write_dataset(tmp_path / "f.h5", {}, GRID, inputs=("psi",), targets=(), measurements=arrays()[1])
    batch = FieldDataset(tmp_path / "f.h5").read([1, 2])
    assert batch.target is None and batch.input.shape == (2, 3, 2, 4, 2)


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        ({"psi": np.ones((N, 3, 4)) * 1j}, "two channels"),
        ({"psi": np.ones((N, 3, 4))}, r"\(samples, measurement, channel, \*sensors\)"),
        ({"psi": np.ones((N, 3, 0, 4))}, "nothing empty"),
        ({"psi": np.ones((N - 1, 3, 1, 4))}, f"{N - 1} samples but what comes before has {N}"),
        ({"psi": np.full((N, 3, 1, 4), np.nan)}, "'psi' is not finite .* in 7 of 7"),
        ({"psi": np.ones((N, 3, 1, 4), "f2")}, "float16"),
        ({"a": np.ones((N, 3, 1, 4)), "psi": np.ones((N, 3, 1, 4))}, "a field and measurements at once"),
        ({"../psi": np.ones((N, 3, 1, 4))}, "not allowed"),
        ({"phi": np.ones((N, 3, 1, 4))}, "no field 'psi'; it has a, phi"),
    ],
)
def test_bad_measurements_are_refused(tmp_path, measurements, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "f.h5", measurements=measurements)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=message if "float16" not in message else "no such"):
        ArraySource(arrays()[0], GRID, inputs=("psi",), targets=("a",), measurements=measurements)
        raise DataError("no such refusal: memory holds half precision")


def _replace(**options):
    def edit(file):
        del file["measurements/psi"]
        file["measurements"].create_dataset("psi", **options)

    return edit


STORED = {"chunks": (1, 3, 2, 4, 2), "fletcher32": True}
DAMAGES = {
    "external link": (
        lambda f: (f.pop("measurements"), f.update({"measurements": h5py.ExternalLink("o.h5", "/")})),
        "ExternalLink",
    ),
    "link inside": (
        lambda f: (f.pop("measurements/psi"), f["measurements"].update({"psi": h5py.SoftLink("/fields/a")})),
        "SoftLink",
    ),
    "fewer samples": (_replace(data=np.zeros((N - 1, 3, 2, 4, 2), "f4"), **STORED), "shape"),
    "three axes": (_replace(data=np.zeros((N, 3, 2), "f4"), chunks=(1, 3, 2), fletcher32=True), r"channel, \*sensors"),
    "another chunk": (
        _replace(data=np.zeros((N, 3, 2, 4, 2), "f4"), chunks=(2, 3, 2, 4, 2), fletcher32=True),
        "chunks",
    ),
    "no checksum": (_replace(data=np.zeros((N, 3, 2, 4, 2), "f4"), chunks=(1, 3, 2, 4, 2)), "fletcher32"),
    "terabytes": (
        _replace(shape=(N, 1 << 40, 2, 4, 2), dtype="f4", chunks=(1, 3, 2, 4, 2), fletcher32=True),
        "declares .* bytes",
    ),
    "never written": (_replace(shape=(N, 3, 2, 4, 2), dtype="f4", **STORED), "never written"),
    "no group": (lambda f: f.pop("measurements"), "no field 'psi'"),
    "one name twice": (
        lambda f: f["measurements"].create_dataset(
            "a", data=np.zeros((N, 3, 1, 4)), chunks=(1, 3, 1, 4), fletcher32=True
        ),
        "twice",
    ),
    "NaN": (_replace(data=np.full((N, 3, 2, 4, 2), np.nan, "f4"), **STORED), "not finite"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_measurements_are_refused(tmp_path, case):
    edit, message = DAMAGES[case]
    path = write(tmp_path / "f.h5")
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        edit(file)
    with pytest.raises(DataError, match=message):
        open_dataset(path).read("psi", range(N))


def test_a_flipped_bit_is_found(tmp_path):
    path = write(tmp_path / "f.h5")
    whole, sample = path.read_bytes(), arrays()[1]["psi"][4].tobytes()
    at = whole.index(sample)
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 8]) + whole[at + 6 :])
    source = open_dataset(path)
    np.testing.assert_array_equal(source.read("psi", [3]), arrays()[1]["psi"][[3]])
    with pytest.raises(DataError, match="'psi' of sample 14 cannot be read"):
        source.read("psi", range(N))


def test_a_data_set_hands_them_to_a_model(tmp_path):
    fields, measurements = arrays()
    data = FieldDataset(write(tmp_path / "f.h5"), dtype=torch.float64)
    batch = data.read([6, 1])
    assert torch.equal(batch.input, torch.from_numpy(measurements["psi"])[[6, 1]].double())
    assert torch.equal(batch.target, torch.from_numpy(fields["a"])[[6, 1]][:, None])
    assert torch.equal(batch.weight, GRID.quadrature_weights()) and batch.index.tolist() == [16, 11]
    held = FieldDataset.from_arrays(None, fields["a"], GRID, measurements=measurements["psi"], dtype=torch.float64)
    named = FieldDataset.from_arrays(None, {"a": fields["a"]}, GRID, measurements=measurements, dtype=torch.float64)
    assert held.input_names == ("measurements",) and named.input_names == ("psi",)
    for other in (held, named, data.in_memory(), data.subset(range(1, N)).subset(range(N - 1))):
        first = 1 if other.indices[0] == 1 else 0
        assert torch.equal(other.read([1 - first]).input, batch.input[1:])
    assert held.fingerprint != named.fingerprint
    assert torch.equal(collate([data[6], data[1]]).input, batch.input)
    assert [b.input.shape[0] for b in Batches(data, 3)] == [3, 3, 1]


def test_a_stride_coarsens_the_fields_only():
    fields, measurements = arrays()
    data = FieldDataset.from_arrays(None, fields["a"][:, :5], Grid((5, 5)), measurements=measurements["psi"], stride=2)
    batch = data.read([0])
    assert batch.target.shape == (1, 1, 3, 3) and batch.input.shape == (1, 3, 2, 4, 2) and batch.weight.shape == (3, 3)


def test_a_surrogate_has_them_as_targets(tmp_path):
    data = FieldDataset(write(tmp_path / "f.h5"), ("a",), ("psi",))
    batch = data.read([0, 1])
    assert batch.input.shape == (2, 1, 6, 5) and batch.target.shape == (2, 3, 2, 4, 2) and batch.weight is None
    assert channel_statistics(data).target.mean.shape == (2,)


def test_measurements_stand_alone(tmp_path):
    path = write(tmp_path / "f.h5")
    with pytest.raises(DataError, match=r"inputs are psi, a, where psi are measurements: .*with inputs="):
        FieldDataset(path, ("psi", "a"), ())
    fields, measurements = arrays()
    with pytest.raises(DataError, match="inputs and measurements were both given"):
        FieldDataset.from_arrays(fields["a"], None, GRID, measurements=measurements["psi"])
    with pytest.raises(DataError, match="two channels"):
        FieldDataset.from_arrays(None, fields["a"], GRID, measurements=measurements["psi"] + 0j)


def test_statistics_are_those_of_each_channel(tmp_path):
    statistics = channel_statistics(FieldDataset(write(tmp_path / "f.h5")), batch_size=2)
    values = torch.from_numpy(arrays()[1]["psi"]).double().movedim(2, 0).flatten(1)
    assert torch.allclose(statistics.input.mean, values.mean(1), rtol=0, atol=1e-12)
    assert torch.allclose(statistics.input.std, values.std(1, unbiased=False), rtol=0, atol=1e-12)
    assert statistics.input.count == values.shape[1] and statistics.target.mean.shape == (1,)


SMALL = {"block": 2, "samples_per_file": 4, "progress": False}


@pytest.mark.parametrize(
    ("grid", "fine"),
    [
        (GRID, Grid((16, 13))),
        (Grid((6, 5), layout="cells"), Grid((18, 15), layout="cells")),
        (Grid((6, 5), layout=("periodic", "nodes")), Grid((18, 13), layout=("periodic", "nodes"))),
    ],
)
def test_an_inverse_problem_is_observed_on_the_finer_grid(tmp_path, grid, fine):
    problem = ToyInverse()
    source = generate(problem, grid, tmp_path, 5, refine=3, split="test", seed=3, dtype=torch.float64, **SMALL)
    assert (source.grid, source.inputs, source.targets, source.measurements) == (
        grid,
        ("measurements",),
        ("conductivity",),
        ("measurements",),
    )
    coarse, exact = (problem.sample(6, g, seed=3, split="test") for g in (grid, fine))
    np.testing.assert_array_equal(source.read("conductivity", range(5)), coarse["conductivity"][:5])
    expected = problem.observe(exact, grid=fine)["measurements"][:5]
    np.testing.assert_allclose(source.read("measurements", [4, 0]), expected[[4, 0]], rtol=1e-13)
    assert (expected - problem.observe(coarse, grid=grid)["measurements"][:5]).abs().max() > 1e-3
    assert source.attributes["refine"] == 3 and source.attributes["measurements"] == ["measurements"]
    batch = FieldDataset(tmp_path / "test").read([0, 1])
    assert batch.input.shape == (2, 3, 1, 4) and batch.target.shape == (2, 1, 6, 5)


def test_shards_and_interruptions_give_the_same_bytes(tmp_path):
    generate(ToyInverse(), GRID, tmp_path / "whole", 9, **SMALL)
    for i in (1, 0):
        generate(ToyInverse(), GRID, tmp_path / "parts", 9, shard=(i, 2), **SMALL)
    whole = content(tmp_path / "whole" / "train")
    assert content(tmp_path / "parts" / "train") == whole
    (tmp_path / "parts" / "train" / "part-00001-of-00003.h5").unlink()
    generate(ToyInverse(), GRID, tmp_path / "parts", 9, resume=True, **SMALL)
    assert content(tmp_path / "parts" / "train") == whole
    with pytest.raises(DataError, match="refine is 1 there and 2 here"):
        generate(ToyInverse(), GRID, tmp_path / "parts", 9, resume=True, refine=2, **SMALL)


def test_recipes_of_other_problems_are_as_before(tmp_path):
    generate(Toy(), GRID, tmp_path, 4, **SMALL)
    recipe = json.loads((tmp_path / "train" / "recipe.json").read_text())
    assert not {"refine", "measurements"} & set(recipe)
    with pytest.raises(ValueError, match="Toy is no inverse problem, so refine=2"):
        generate(Toy(), GRID, tmp_path / "fine", 4, refine=2, **SMALL)
    with pytest.raises(ValueError, match="leave times out"):
        generate(ToyInverse(), GRID, tmp_path / "fine", 4, times=range(3), **SMALL)
    for refine in (0, 1.5):
        with pytest.raises(ValueError, match="positive whole number"):
            generate(ToyInverse(), GRID, tmp_path / "fine", 4, refine=refine, **SMALL)
    assert not (tmp_path / "fine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"mask": d["mask"]}, "gave 'measurements' as missing"),
        (lambda d: d | {"measurements": d["measurements"][..., 0, :]}, r"channel, \*sensors\) is expected"),
        (lambda d: d | {"measurements": d["measurements"] + 0j}, "two channels"),
        (lambda d: d | {"measurements": d["measurements"] / 0}, "observe: field 'measurements' is not finite"),
        (lambda d: d | {"mask": torch.zeros_like(d["mask"])}, "left out 6 of 6 measurements"),
    ],
)
def test_a_problem_that_breaks_its_word_is_refused(tmp_path, monkeypatch, change, message):
    observe = ToyInverse.observe
    monkeypatch.setattr(ToyInverse, "observe", lambda self, inputs, **options: change(observe(self, inputs, **options)))
    with pytest.raises(DataError, match=message):
        generate(ToyInverse(), GRID, tmp_path, 4, **SMALL)


def test_parts_that_do_not_fit_together_are_refused(tmp_path):
    a = generate(ToyInverse(), GRID, tmp_path / "a", 8, **SMALL)
    manifest = json.loads((tmp_path / "a" / "train" / "manifest.json").read_text())
    assert a.read("measurements", range(8)).shape == (8, 3, 1, 4)
    a.close()
    generate(ToyInverse(sensors=5), GRID, tmp_path / "b", 8, **SMALL)
    other = json.loads((tmp_path / "b" / "train" / "manifest.json").read_text())
    name = manifest["parts"][1]["file"]
    shutil.copy(tmp_path / "b" / "train" / name, tmp_path / "a" / "train" / name)
    manifest["parts"][1] = other["parts"][1]
    (tmp_path / "a" / "train" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="in one part and"):
        open_dataset(tmp_path / "a" / "train").read("measurements", range(8))


def test_random_subsets_are_uniform_in_size_and_place():
    mask = random_subsets(20_000, 5, torch.Generator().manual_seed(0))
    sizes = mask.sum(1)
    assert mask.dtype == torch.bool and sizes.min() == 1
    assert torch.allclose(sizes.bincount(minlength=6)[1:] / 20_000, torch.full((5,), 0.2), atol=0.015)
    assert torch.allclose(mask.float().mean(0), torch.full((5,), 0.6), atol=0.015)
    pairs = mask[sizes == 2].float()
    assert torch.allclose((pairs.T @ pairs / len(pairs))[~torch.eye(5, dtype=torch.bool)], torch.tensor(0.1), atol=0.02)
    again = random_subsets(20_000, 5, torch.Generator().manual_seed(0))
    assert torch.equal(mask, again)
    assert random_subsets(9, 5, at_least=5).all()
    assert (random_subsets(50, 20, at_least=5, at_most=5).sum(1) == 5).all()
    for at_least, at_most in ((0, None), (6, None), (3, 2), (1, 6)):
        with pytest.raises(ValueError, match="of 5 measurements"):
            random_subsets(3, 5, at_least=at_least, at_most=at_most)
