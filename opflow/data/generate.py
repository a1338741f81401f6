"""Making a data folder from a problem: in parts, by any number of processes, and again after any interruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from opflow.data.folder import FolderSource
from opflow.data.hdf5 import write_dataset
from opflow.data.inverse import check_options, is_inverse, observed
from opflow.data.manifest import MAX_PARTS, RECIPE, Part, digest, part_name, read_part, write_manifest
from opflow.data.schema import (
    RESERVED_ATTRIBUTES,
    SCHEMA,
    DataError,
    check_finite,
    check_name,
    check_names,
    first_difference,
)
from opflow.files import DamagedFileError, read_json, remove_stale_temporaries, sha256, write_json
from opflow.grid import Grid
from opflow.typing import InverseProblem, Problem
from opflow.version import __version__


def generate(
    problem: Problem | InverseProblem,
    grid: Grid,
    folder: str | Path,
    n: int,
    *,
    refine: int = 1,
    split: str = "train",
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    resume: bool = False,
    block: int = 32,
    samples_per_file: int = 256,
    times: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    rtol: float = 1e-10,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FolderSource | None:
    """Write samples 0..n-1 of `problem` to ``<folder>/<split>/`` and open them.

    Samples are computed in aligned blocks, whole even where n cuts the last one, since the bits of a batched solve may
    depend on the batch. So the bytes depend neither on the number of shards nor on interruptions (on one kind of
    machine, with one number of threads); a run that was killed goes on with ``resume=True`` and computes at most one part again per shard.

    An inverse problem (it has ``observe`` and no ``solve``) is stored the other way round: its noise-free measurements are
    the inputs of the data set, its coefficient, on `grid`, the target. With `refine` the measurements come from a finer
    solve than that of other splits, so that nothing is tested on the discretisation it was trained with.

    Args:
        problem: a frozen dataclass with ``inputs``, ``unknowns``, ``sample`` and ``solve``; or ``observe`` in its place.
        grid: where to sample and solve.
        folder: the data set's folder; each split has a folder in it.
        n: samples of this split.
        refine: of an inverse problem: sample and observe on the grid with 1/refine of the spacing. The stored coefficient is
            sampled on `grid` itself, for every layout: sample i is one function on every grid, and so its values mean
            the same, point values at the cells' centres for example, whatever the refinement.
        split: the seed namespace, and the name of the folder.
        seed: the root seed.
        shard: (i, m): make only the parts i, i + m, i + 2m, ...; m processes with the same arguments make them all.
        resume: continue in a folder that was begun; parts whose hash agrees are kept.
        block: samples computed together.
        samples_per_file: samples a part, a multiple of `block`.
        times: store the unknowns at these evenly spaced times, the first 0, as fields on the grid of (t, *space): the targets of
            the data set, whose first frames are the inputs, which are not stored again. None stores inputs and unknowns on `grid`.
        dtype: what is stored, torch.float32 or torch.float64; computed in float64.
        rtol: the solver's relative tolerance.
        device: where to solve.
        progress: show a bar on a terminal.

    Returns:
        The opened folder; None while parts of other shards are missing.

    Raises:
        FileExistsError: the folder holds a data set or other files, and `resume` was not asked for.
        DataError: the folder was made with another recipe, or the problem gave values that cannot be stored.
        OSError: the folder cannot be written to; raised before anything is computed.
    """
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(f"shard is {shard}; (i, m) with 0 <= i < m is expected.")
    if n < 1 or block < 1 or samples_per_file < 1 or samples_per_file % block:
        raise ValueError(
            f"n={n}, block={block}, samples_per_file={samples_per_file}; positive whole numbers are expected, "
            "samples_per_file a multiple of block."
        )
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype is {dtype}; torch.float32 or torch.float64 is expected.")
    n_parts = -(-n // samples_per_file)
    if n_parts > MAX_PARTS:
        raise ValueError(f"{n_parts} parts would be made; {MAX_PARTS} is the limit: raise samples_per_file.")
    parameters = _parameters(problem)
    inverse = is_inverse(problem)
    check_options(problem, refine=refine, times=times)
    inputs, targets = (problem.unknowns, problem.inputs) if inverse else (problem.inputs, problem.unknowns)
    stored_grid, inputs = (grid, inputs) if times is None else (_space_time(problem, grid, times), ())
    recipe = {
        "schema": SCHEMA,
        "problem": type(problem).__name__,
        "parameters": parameters,
        "cutoff": _plain(getattr(problem, "cutoff", None), "cutoff"),
        "inputs": list(check_names(inputs, "input")),
        "targets": list(check_names(targets, "unknown")),
        "grid": stored_grid.to_json(),
        "n": n,
        "split": check_name(split, "split"),
        "seed": seed,
        "rtol": rtol,
        "block": block,
        "samples_per_file": samples_per_file,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
        "opflow": __version__,
        "torch": torch.__version__,
    }
    measured = list(problem.unknowns) if inverse else []
    if inverse:  # no such keys in the recipes of other problems, whose hashes stand
        recipe |= {"measurements": measured, "refine": refine}
    folder = Path(folder) / split
    names = [part_name(k, n_parts) for k in range(n_parts)]
    mine = list(range(number, n_parts, count))
    _claim(folder, recipe, [names[k] for k in mine], alone=count == 1, resume=resume)

    bounds = {k: (k * samples_per_file, min((k + 1) * samples_per_file, n)) for k in mine}
    with tqdm(
        total=sum(stop - start for start, stop in bounds.values()),
        desc=f"{type(problem).__name__} {split}",
        unit="sample",
        disable=None if progress else True,
    ) as bar:
        for k in mine:
            path, (start, stop) = folder / names[k], bounds[k]
            if resume and _is_done(path, recipe):
                bar.update(stop - start)
                continue
            fields: dict[str, list[Tensor]] = {name: [] for name in (*inputs, *targets)}
            for values, kept in _blocks(problem, recipe, start, stop, grid, times, dtype, device):
                for name, field in values.items():
                    fields[name].append(field)
                bar.update(kept)
            joined = {name: torch.cat(blocks) for name, blocks in fields.items()}
            write_dataset(
                path,
                {name: values for name, values in joined.items() if name not in measured},
                stored_grid,
                inputs=inputs,
                targets=targets,
                measurements={name: joined[name] for name in measured},
                index=np.arange(start, stop),
                split=split,
                attributes={name: value for name, value in recipe.items() if name not in RESERVED_ATTRIBUTES},
            )
            part = Part(names[k], sha256(path), path.stat().st_size, start, stop)
            write_json(path.with_suffix(".json"), {**asdict(part), "recipe": digest(recipe)})
    return _finish(folder, recipe, names)


def _blocks(
    problem: Problem | InverseProblem,
    recipe: Mapping[str, Any],
    start: int,
    stop: int,
    grid: Grid,
    times: Sequence[float] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The fields of samples start..stop-1, block by block, as they are stored."""
    for first in range(start, stop, recipe["block"]):
        indices = range(first, first + recipe["block"])
        kept = min(stop, indices.stop) - first
        inputs = problem.sample(indices, grid, seed=recipe["seed"], split=recipe["split"])
        on_device = {name: field.to(device) for name, field in inputs.items()}
        if is_inverse(problem):
            drawn, verb = problem.inputs, "observe"
            solved = observed(problem, on_device, indices, grid, recipe, device)
        else:
            drawn, verb = recipe["inputs"], "solve"
            options = {"rtol": recipe["rtol"]} if times is None else {"times": times, "rtol": recipe["rtol"]}
            solved = cast(Problem, problem).solve(on_device, grid, **options)
        stored = {}
        shape = (len(indices), *Grid.from_json(recipe["grid"]).shape)
        for names, given, source in ((drawn, inputs, "sample"), (problem.unknowns, solved, verb)):
            for name in names:
                # Measurements have axes of their own, which `observed` has checked.
                if source != "observe" and (name not in given or tuple(given[name].shape) != shape):
                    came = tuple(given[name].shape) if name in given else "missing"
                    raise DataError(
                        f"{recipe['problem']}.{source} gave {name!r} as {came}; a field of shape {shape} is expected."
                    )
                stored[name] = given[name][:kept].detach().to(device="cpu", dtype=dtype)
                check_finite(stored[name].numpy(), name, indices, f"{recipe['problem']}.{source}")
        yield stored, kept


def _space_time(problem: Problem | InverseProblem, grid: Grid, times: Sequence[float]) -> Grid:
    """The grid of (t, *space) on which trajectories are stored."""
    moments = np.asarray(times, dtype=np.float64)
    even = len(moments) > 1 and np.allclose(np.diff(moments), moments[-1] / (len(moments) - 1), rtol=1e-9, atol=0)
    if not even or moments[0] != 0.0:
        raise ValueError(
            f"times are {moments[:4].tolist()}...; evenly spaced times that start at 0 are expected, for example range(51)."
        )
    later = [name for name in problem.inputs if not name.startswith("initial")]
    if later:
        raise ValueError(
            f"{type(problem).__name__} has the input {later[0]!r}, which the first frame of its solution does not hold; "
            "leave times out, and store the final state."
        )
    extent = ((0.0, float(moments[-1])), *grid.extent)
    return Grid((len(moments), *grid.shape), extent, ("nodes", *grid.layout), ("t", *grid.axes))


def _claim(folder: Path, recipe: Mapping[str, Any], own: list[str], *, alone: bool, resume: bool) -> None:
    """Make the folder ours, or say why not; nothing is computed before."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder; choose another output folder.")
    folder.mkdir(parents=True, exist_ok=True)
    # Only our own parts: the process ids of shards on other machines mean nothing here.
    remove_stale_temporaries(folder, "" if alone else tuple(name.removesuffix("h5") for name in own))
    found = [child.name for child in folder.iterdir()]
    if RECIPE in found:
        existing = read_json(folder / RECIPE)
        difference = first_difference(recipe, existing if isinstance(existing, dict) else {})
        if difference is not None:
            key, ours, theirs = difference
            raise DataError(
                f"{folder} was made with another recipe: {key} is {theirs!r} there and {ours!r} here; "
                "use another folder, or the same arguments."
            )
    elif any(".tmp." not in name for name in found):
        raise FileExistsError(f"{folder} holds files that opflow.data.generate did not write; choose another folder.")
    if not resume and (found if alone else set(own) & set(found)):
        raise FileExistsError(
            f"{folder} already holds samples; pass resume=True (--resume) to finish it, or choose another folder."
        )
    write_json(folder / RECIPE, recipe)  # written again on purpose: a folder that cannot be written to shows now


def _is_done(path: Path, recipe: Mapping[str, Any]) -> bool:
    sidecar = path.with_suffix(".json")
    if not (path.is_file() and sidecar.is_file()):
        return False
    try:
        values = read_json(sidecar)
        part = read_part(values, sidecar)
    except (DataError, DamagedFileError):
        return False  # a damaged sidecar vouches for nothing: the part is made again, and the sidecar with it
    return values.get("recipe") == digest(recipe) and part.file == path.name and part.sha256 == sha256(path)


def _finish(folder: Path, recipe: Mapping[str, Any], names: list[str]) -> FolderSource | None:
    """Write the manifest if every part is there; whoever comes last does, and all would write the same."""
    parts = []
    for name in names:
        sidecar = (folder / name).with_suffix(".json")
        if not (sidecar.is_file() and (folder / name).is_file()):
            return None
        values = read_json(sidecar)
        parts.append(read_part(values, sidecar))
        if values.get("recipe") != digest(recipe):
            raise DataError(f"{sidecar} belongs to another recipe; remove {name} and run again with resume=True.")
    write_manifest(folder, recipe, parts)
    return FolderSource(folder)


def _parameters(problem: Problem | InverseProblem) -> dict[str, Any]:
    if not dataclasses.is_dataclass(problem):
        raise TypeError(
            f"{type(problem).__name__} is not a dataclass; its fields are recorded as the recipe, so make it one."
        )
    return {field.name: _plain(getattr(problem, field.name), field.name) for field in dataclasses.fields(problem)}


def _plain(value: Any, name: str) -> Any:
    """A parameter as JSON holds it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "type": type(value).__name__,
            **{f.name: _plain(getattr(value, f.name), name) for f in dataclasses.fields(value)},
        }
    raise DataError(
        f"parameter {name!r} is a {type(value).__name__}, which the recipe cannot record; use numbers, text, tensors, "
        "sequences, mappings or dataclasses."
    )
