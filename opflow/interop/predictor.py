"""A trained model as a plain NumPy function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from opflow.batch import Batch, apply_model
from opflow.training.checkpoint_files import Checkpoint, pointed, read_checkpoint
from opflow.training.module import differences
from opflow.training.record import Record


class Predictor:
    """``predictor(x) -> y``: NumPy in, NumPy out, in physical units (the normalisation is part of the model).

    Args:
        model: put into eval mode, and moved to `device` and `dtype`.
        device: where it computes.
        dtype: torch.float32 or torch.float64; the model's own by default.
        batch_size: the most samples computed at once; a larger input is computed in pieces.

    Attributes:
        model, device, dtype, batch_size: as above.
        path, record: the checkpoint and the training record it came from; None without one.

    >>> Predictor(nn.Linear(3, 2))(np.ones((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
    ) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}; give torch.float32 or torch.float64, or None for the model's own.")
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device} but this machine has no CUDA device; use device='cpu'.")
        self.batch_size = _checked_size(batch_size)
        self.model = _in_precision(model, dtype).to(self.device).eval()
        self.dtype = dtype or _precision_of(model.state_dict()) or torch.get_default_dtype()
        self.path: Path | None = None
        self.record: Record | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        build: Callable[[], nn.Module] | None = None,
        *,
        which: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
    ) -> Predictor:
        """Load from a run's folder, its ``checkpoints`` folder, or one step folder; the hashes are verified first.

        The averaged weights are used where the run kept them, since it is those that validation chose.

        Args:
            build: makes the model with fresh weights; needed only for a model that is not opflow's own, since others
                are rebuilt from the recipe in the checkpoint.
            which: "latest", "best" or a step folder's name; by default the best, or the latest if none is marked.

        Raises:
            FileNotFoundError: there is no checkpoint.
            DamagedFileError: no checkpoint is whole, or `folder` is a pickle.
            ValueError: the checkpoint has no recipe, or does not fit the model that `build` makes.
        """
        folder = Path(folder)
        if (folder / "checkpoints").is_dir():
            folder = folder / "checkpoints"
        checkpoint = read_checkpoint(folder, which or ("best" if pointed(folder, "best") else "latest"))
        with torch.random.fork_rng(devices=[]):  # the fresh weights must not use up the caller's random numbers
            model = _rebuilt(checkpoint) if build is None else build()
        if not isinstance(model, nn.Module):
            raise TypeError(f"build returned {type(model).__name__}, but it must return the model, an nn.Module.")
        weights: Mapping[str, Any] = checkpoint.state.get("ema", {}).get("module", checkpoint.model)
        wrong = differences(model.state_dict(), weights, check_dtype=False)
        if wrong:
            raise ValueError(
                f"{checkpoint.path} does not fit {type(model).__name__}: {'; '.join(wrong)}. "
                "Pass a build= that makes the model as it was trained."
            )
        # Without a wish, the trained precision, whatever torch's default is now.
        _in_precision(model, _precision_of(weights)).load_state_dict(weights)
        predictor = cls(model, device=device, dtype=dtype, batch_size=batch_size)
        predictor.path = checkpoint.path
        predictor.record = Record.from_json(checkpoint.meta["record"]) if checkpoint.meta["record"] else None
        return predictor

    def __call__(self, x: ArrayLike, coords: ArrayLike | None = None, *, batch_size: int | None = None) -> NDArray[Any]:
        """Predict.

        Args:
            x: (batch, channel, *grid), or measurements; the batch may be empty.
            coords: (points, dim), or (batch, points, dim), for a model that takes them.
            batch_size: instead of the predictor's own.

        Returns:
            The model's output, batch first, in the predictor's dtype (float32 for bfloat16).

        Raises:
            TypeError: not an array of real numbers.
            ValueError: too few axes, NaN or infinity, or coords that do not belong to x.
        """
        size = self.batch_size if batch_size is None else _checked_size(batch_size)
        fields = self._tensor("x", x, axes=(2, None), shape="(batch, channel, *grid)")
        points = None
        if coords is not None:
            points = self._tensor("coords", coords, axes=(2, 3), shape="(points, dim) or (batch, points, dim)")
            if points.ndim == 3 and points.shape[0] not in (1, fields.shape[0]):
                raise ValueError(
                    f"coords has {points.shape[0]} sets of points but x has {fields.shape[0]} samples; "
                    "give one set a sample, or one set (points, dim) for all."
                )
        n = fields.shape[0]
        if n == 0:  # the shape of nothing is learnt from one sample of zeros: not every model takes an empty batch
            fields = fields.new_zeros((1, *fields.shape[1:]))
            points = points.new_zeros((1, *points.shape[1:])) if points is not None and points.ndim == 3 else points
        pieces = []
        with torch.no_grad():
            self.model.eval()
            for first in range(0, fields.shape[0], size):
                part = slice(first, first + size)
                shared = points is None or points.ndim == 2 or points.shape[0] == 1
                pieces.append(self._apply(fields[part], points if shared or points is None else points[part]))
        return np.concatenate(pieces)[:n]

    def _apply(self, x: Tensor, coords: Tensor | None) -> NDArray[Any]:
        prediction = apply_model(self.model, Batch(input=x, coords=coords))
        if not isinstance(prediction, Tensor):
            raise TypeError(
                f"the model returned {type(prediction).__name__} but a predictor needs one tensor; "
                "wrap the model so that it returns the field."
            )
        if prediction.dtype == torch.bfloat16:  # NumPy has no such numbers
            prediction = prediction.float()
        return prediction.cpu().numpy()

    def _tensor(self, name: str, value: ArrayLike, *, axes: tuple[int, int | None], shape: str) -> Tensor:
        if isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a torch Tensor; a predictor speaks NumPy: pass {name}.numpy(), or call predictor.model."
            )
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} holds {array.dtype}, but real numbers are expected, as an array {shape}.")
        least, most = axes
        if array.ndim < least or (most is not None and array.ndim > most):
            raise ValueError(f"{name} has shape {array.shape} but {shape} is expected; one sample is {name}[None].")
        # A copy: torch shares no memory with read-only arrays, negative strides or another byte order.
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        with np.errstate(over="ignore"):  # said below, in a sentence
            tensor = torch.from_numpy(np.array(array, dtype=kind, order="C")).to(self.device, self.dtype)
        bad = ~tensor.isfinite()
        if bool(bad.any()):
            what = "NaN or infinity" if not np.isfinite(array).all() else f"values beyond the range of {self.dtype}"
            raise ValueError(
                f"{name} holds {int(bad.sum())} entries that are {what}, the first at {tuple(bad.nonzero()[0].tolist())}; "
                "a prediction from them would mean nothing."
            )
        return tensor


def _rebuilt(checkpoint: Checkpoint) -> nn.Module:
    # On use: the recipe's models are needed by this path alone.
    from opflow.models.recipe import build_model

    recipe = checkpoint.meta["recipe"]
    if recipe is None:
        raise ValueError(
            f"{checkpoint.path} holds no recipe, since its model was not made by a .build(...) of opflow; "
            "pass build=, a function that returns the model with fresh weights."
        )
    return build_model(recipe)


def _precision_of(weights: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the first real weight; None if there is none."""
    return next((w.dtype for w in weights.values() if isinstance(w, Tensor) and w.is_floating_point()), None)


def _in_precision(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    state = model.state_dict()
    if dtype is None or dtype == _precision_of(state):
        return model
    if any(isinstance(w, Tensor) and w.is_complex() for w in state.values()):
        raise ValueError(
            f"the model holds complex weights, whose imaginary part a conversion to {dtype} would drop; "
            "leave dtype out, or build the model in that precision."
        )
    return model.to(dtype=dtype)


def _checked_size(batch_size: int) -> int:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; give a positive whole number.")
    return batch_size
