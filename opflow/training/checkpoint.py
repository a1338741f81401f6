"""Everything a run needs to continue bit for bit, saved and loaded without a pickle."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from opflow.batch import unwrapped
from opflow.files import DamagedFileError, atomic_folder, remove_stale_temporaries, sha256, write_json, write_tensors
from opflow.training import checkpoint_files as store
from opflow.training.arguments import check_count
from opflow.training.module import differences, is_first_rank
from opflow.training.random_streams import RandomStreams
from opflow.training.record import Record, Start
from opflow.training.state import flatten
from opflow.version import __version__


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    *,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    batches: Any = None,
    ema: AveragedModel | None = None,
    record: Record | None = None,
    keep: int = 3,
) -> Path:
    """Write ``folder/step_000100``, whole or not at all, then let ``folder/latest`` (and ``best``) name it.

    It holds what is given, the random streams (torch, CUDA, Python, NumPy's legacy global one) and ``model.recipe``.
    ``best`` is the one saved with the lowest ``record.validation``. Older ones are removed, except the newest `keep`,
    the latest and the best. Under torch.distributed the first rank writes, the others return the name only.

    Returns:
        The step's folder.

    Raises:
        ValueError: a parameter is NaN or infinite; such weights are never saved.
        TypeError: some state cannot be stored without a pickle.
        OSError: the disk is full, or the folder cannot be written to; what was there before stays.

    >>> import tempfile
    >>> save_checkpoint(tempfile.mkdtemp(), nn.Linear(2, 1)).name
    'step_000000'
    """
    check_count("keep", keep)
    folder = Path(folder)
    step = record.step if record else 0
    inner = unwrapped(model)
    if not is_first_rank():
        return folder / f"step_{step:06d}"
    parts = _states(loss, optimizer, scheduler, batches, ema)
    meta, weights, tensors = _contents(inner, parts, record)
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(folder)
    names = store.step_names(folder)
    meta["serial"] = 1 + max((store.serial(folder / name) for name in names), default=0)
    path = folder / store.new_name(folder, step)
    with atomic_folder(path) as temporary:
        write_tensors(temporary / store.MODEL, weights)
        write_tensors(temporary / store.STATE, tensors)
        meta["files"] = {name: sha256(temporary / name) for name in (store.MODEL, store.STATE)}
        write_json(temporary / store.META, meta | {"sha256": store.digest(meta)})
    if _is_better(folder, record):
        store.point(folder, "best", path.name)
    store.point(folder, "latest", path.name)
    store.prune(folder, keep)
    return path


def load_checkpoint(
    folder: str | Path,
    model: nn.Module,
    *,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    batches: Any = None,
    ema: AveragedModel | None = None,
    which: str = "latest",
) -> Start:
    """Load a checkpoint into the parts given, and return where to continue: ``fit(..., start=start)``.

    Everything is verified first; a load that fails leaves every part as it was. The random streams are put back by
    `fit`, or by ``start.streams.restore()`` in a loop of your own.

    Args:
        folder: a run's folder, or one step folder.
        which: "latest", "best" (by validation) or a step folder's name.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedFileError: none is whole. A damaged latest or best one is passed over, with a warning, for the newest
            that is whole.
        ValueError: the checkpoint does not fit the model or another part, or lacks a part that was asked for.

    >>> import tempfile
    >>> folder, model = tempfile.mkdtemp(), nn.Linear(2, 1)
    >>> _ = save_checkpoint(folder, model)
    >>> load_checkpoint(folder, model).path.name
    'step_000000'
    """
    checkpoint = store.read_checkpoint(folder, which)
    inner = unwrapped(model)
    given = {"loss": loss, "optimizer": optimizer, "scheduler": scheduler, "batches": batches, "ema": ema}
    wanted = {name: part for name, part in given.items() if part is not None}
    if not _state_of(loss):
        wanted.pop("loss", None)
    if not hasattr(batches, "load_state_dict"):
        wanted.pop("batches", None)
    _check(checkpoint, inner, wanted)
    start = _start(checkpoint, frozenset({"model", *wanted}))
    _apply(checkpoint, inner, wanted)
    return start


def _contents(
    model: nn.Module, parts: dict[str, Any], record: Record | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the three files hold: meta.json, the weights, and the tensors of every other part."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(
                f"the parameter {name!r} holds NaN or infinity, so this model is not saved; the last one stays."
            )
    streams = {"now": RandomStreams.capture().state_dict()}
    if record is not None and record.epoch_streams is not None:
        streams["epoch"] = record.epoch_streams.state_dict()
    weights: dict[str, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    meta = {
        "format": store.FORMAT,
        "torch": torch.__version__,
        "opflow": __version__,
        "recipe": _recipe(model),
        "record": record.to_json() if record else None,
        "model": _flatten_parts(model.state_dict(), weights),
        "state": _flatten_parts(parts | {"streams": streams}, tensors),
    }
    return meta, weights, tensors


def _flatten_parts(parts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    # Part by part, so that a weight is stored under the very name it has in the state dict.
    return {"dict": [[name, flatten(part, name, tensors)] for name, part in parts.items()]}


def _recipe(model: nn.Module) -> Any:
    recipe = getattr(model, "recipe", None)
    try:
        return json.loads(json.dumps(recipe))
    except (TypeError, ValueError) as error:
        raise TypeError(f"model.recipe holds something that JSON cannot ({error}); keep plain values in it.") from error


def _state_of(part: Any) -> dict[str, Any]:
    # A loss may be a plain function, which has no state.
    return dict(part.state_dict()) if isinstance(part, nn.Module) else {}


def _states(loss: Any, optimizer: Any, scheduler: Any, batches: Any, ema: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if _state_of(loss):
        parts["loss"] = _state_of(loss)
    if optimizer is not None:
        shapes = [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]
        parts["optimizer"] = {"kind": type(optimizer).__name__, "shapes": shapes, "state": optimizer.state_dict()}
    if scheduler is not None:
        parts["scheduler"] = {"kind": type(scheduler).__name__, "state": scheduler.state_dict()}
    # A plain list or DataLoader has no state of its own; fit draws its order again from the random streams.
    if hasattr(batches, "state_dict"):
        parts["batches"] = batches.state_dict()
    if ema is not None:
        parts["ema"] = {"module": dict(unwrapped(ema.module).state_dict()), "n_averaged": ema.n_averaged}
    return parts


def _is_better(folder: Path, record: Record | None) -> bool:
    """Lower than the validation of the checkpoint that ``best`` names; NaN never is."""
    if record is None or record.validation is None or not record.validation < float("inf"):
        return False
    name = store.pointed(folder, "best")
    if name is None:
        return True
    try:
        before = store.read_meta(folder / name)["record"]
    except DamagedFileError:
        return True
    return not before or before["validation"] is None or record.validation < float(before["validation"])


def _check(checkpoint: store.Checkpoint, model: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Raise unless the checkpoint fits every part, before any of them is changed."""
    state = checkpoint.state
    lacking = [name for name in wanted if name not in state]
    if lacking:
        raise ValueError(
            f"{checkpoint.path} holds no state of {', '.join(lacking)}; it was saved without, so leave it out here "
            "or pass it to save_checkpoint."
        )
    _check_module("the model", model, checkpoint.model, checkpoint.path)
    if "loss" in wanted:
        _check_module("the loss", wanted["loss"], state["loss"], checkpoint.path)
    if "ema" in wanted:
        _check_module("the averaged model", unwrapped(wanted["ema"].module), state["ema"]["module"], checkpoint.path)
    if "optimizer" in wanted:
        _check_optimizer(wanted["optimizer"], state["optimizer"], checkpoint.path)
    if "scheduler" in wanted:
        _check_kind("scheduler", wanted["scheduler"], state["scheduler"], checkpoint.path)


def _apply(checkpoint: store.Checkpoint, model: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Load every part; if one refuses, put those before it back. The modules come last: they were checked by name."""
    state = checkpoint.state
    with ExitStack() as undo:
        for name in ("batches", "scheduler", "optimizer"):
            if (part := wanted.get(name)) is not None:
                # References suffice for an optimiser: load_state_dict replaces its tensors and never writes into them.
                before = part.state_dict() if name == "optimizer" else copy.deepcopy(part.state_dict())
                undo.callback(part.load_state_dict, before)
                part.load_state_dict(state[name] if name == "batches" else state[name]["state"])
        if "loss" in wanted:
            wanted["loss"].load_state_dict(state["loss"])
        if "ema" in wanted:
            unwrapped(wanted["ema"].module).load_state_dict(state["ema"]["module"])
            wanted["ema"].n_averaged.copy_(state["ema"]["n_averaged"])
        model.load_state_dict(checkpoint.model)
        undo.pop_all()


def _start(checkpoint: store.Checkpoint, restored: frozenset[str]) -> Start:
    try:
        streams = {name: RandomStreams.from_state_dict(s) for name, s in checkpoint.state["streams"].items()}
        record = Record.from_json(checkpoint.meta["record"]) if checkpoint.meta["record"] else None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{checkpoint.path} was not written by this version of opflow ({error!r}).") from error
    if record is not None:
        record = replace(record, epoch_streams=streams.get("epoch"))
    batches = checkpoint.state.get("batches") if "batches" in restored else None
    return Start(checkpoint.path, record, streams["now"], batches, restored)


def _check_module(what: str, module: nn.Module, stored: Mapping[str, Any], path: Path) -> None:
    parts = differences(module.state_dict(), stored)
    if parts:
        raise ValueError(
            f"{path} does not fit {what} {type(module).__name__}: {'; '.join(parts)}. Build it as it was when the "
            "checkpoint was written; nothing was changed."
        )


def _check_kind(what: str, part: Any, stored: Mapping[str, Any], path: Path) -> None:
    if stored["kind"] != type(part).__name__:
        raise ValueError(
            f"{path} holds the state of {stored['kind']} but the {what} is {type(part).__name__}; use the same kind. "
            "Nothing was changed."
        )


def _check_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], path: Path) -> None:
    _check_kind("optimizer", optimizer, stored, path)
    shapes = [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    if shapes != stored["shapes"]:
        raise ValueError(
            f"{path}: the optimizer has {[len(g) for g in shapes]} parameters in its groups but the checkpoint's had "
            f"{[len(g) for g in stored['shapes']]}, or their shapes or order differ; build it from the same parameters "
            "in the same order. Nothing was changed."
        )
