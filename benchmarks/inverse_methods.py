"""The methods of the table of inverse problems: what ignores the data, kernels, linear and Gauss-Newton steps, and networks."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inverse_questions import Case, Question, pieces, seen
from benchmarks.inverse_training import VALIDATION_NOISE, train
from opflow import Batch, Grid
from opflow.batch import apply_model
from opflow.data import FieldDataset
from opflow.inversion import GaussianPrior, gauss_newton
from opflow.models import KernelRidge
from opflow.pde import add_noise

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TRIED = 4  # validation samples on which Gauss-Newton's settings are chosen
PROBES = 8  # validation samples that the error of the discretisation is taken from, and inversions that are timed


@dataclass
class Fitted:
    """A method that is ready: a batch as it was measured to coefficients (n, 1, *grid).

    Attributes:
        predict: batch and case to coefficients; networks do not look at the case, methods that weigh the data against a prior
            are told the level of the noise.
        parameters: trained numbers.
        slow: asked for the first `few` samples only.
        details: what else the record keeps.
    """

    predict: Callable[[Batch, Case], Tensor]
    parameters: int = 0
    slow: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def run(settings: Mapping[str, Any], seed: int, *, data: Path, device: str = "cpu") -> dict[str, Any]:
    """Fit one method to one problem and ask it every case.

    Returns:
        {"cases", "parameters", "fit_seconds", "inversion_seconds", ...}: processor seconds, of the fit and of one inversion (the median
        of some, one sample at a time).
    """
    torch.manual_seed(seed)
    question = Question(settings, data)
    start = time.process_time()
    fitted = METHODS[settings["kind"]](question, settings, seed, device)
    seconds = time.process_time() - start
    cases = []
    for case in question.cases():
        batch = question.measured(question.test, case, settings["few"] if fitted.slow else None)
        cases.append(question.outcome(case, fitted.predict(batch, case).detach(), batch.target))
    return {
        "cases": cases,
        "grid": list(question.grid.shape),
        "measured": list(question.test.read([0]).input.shape[1:]),
        "parameters": fitted.parameters,
        "fit_seconds": fitted.details.pop("fit_seconds", seconds),
        "inversion_seconds": _timed(fitted, question),
        **fitted.details,
    }


def _timed(fitted: Fitted, question: Question) -> float:
    case = question.cases()[0]
    batch = question.measured(question.test, case, PROBES)
    seconds = []
    for one in pieces(batch, 1):
        start = time.process_time()
        fitted.predict(one, case)
        seconds.append(time.process_time() - start)
    return sorted(seconds)[len(seconds) // 2]


def constant(question: Question, settings: Mapping[str, Any], seed: int, device: str) -> Fitted:
    """The training set's median at every point, whatever was measured."""
    answer = question.train.read(range(len(question.train))).target.median(0).values
    return Fitted(lambda batch, case: answer.expand(batch.batch_size, *answer.shape))


def ridge(question: Question, settings: Mapping[str, Any], seed: int, device: str) -> Fitted:
    """Kernel ridge on principal components."""
    model = fitted_ridge(question, settings["model"])
    return Fitted(
        network_of(model, settings), parameters=model.coefficients.numel(), details={"length": float(model.length)}
    )


def fitted_ridge(question: Question, options: Mapping[str, Any]) -> KernelRidge:
    """Fitted to the training set, whose measurements get the noise that the options name."""
    L, channels, sensors = question.shape
    options = dict(options)
    level = options.pop("fit_noise", 0.0)
    batch = question.train.read(range(len(question.train)))
    noisy = add_noise(batch.input, level, torch.Generator().manual_seed(0))
    model = KernelRidge.build(L, sensors, channels, question.grid, **options)
    return model.fit(seen(question.settings, noisy), batch.target)


class Guarded:
    """A forward map that says NaN where it refuses a coefficient, so that a step that goes too far is shortened and not the end."""

    def __init__(self, question: Question) -> None:
        problem = question.problem
        if hasattr(problem, "resonance_tolerance"):  # an iterate may pass near a resonance
            problem = replace(problem, resonance_tolerance=0.0)
        self.forward = problem.forward(question.full_grid)
        self.linearise = self.forward.linearise
        self.shape = question.test.read([0]).input.shape[1:]

    def __call__(self, a: Tensor) -> Tensor:
        try:
            return self.forward(a)
        except ValueError:
            return a.new_full((len(a), *self.shape), float("nan"))


def newton(question: Question, settings: Mapping[str, Any], seed: int, device: str) -> Fitted:
    """Gauss-Newton with a prior of the settings' choice; the misfit it may leave is that of noise and discretisation together.

    The error of the discretisation is that of the forward map on the stored grid against the finer solves of some validation
    samples, whose coefficients are known. Where the prior cannot hold the coefficients, what it misses counts as noise, too: of the
    settings' `levels` the one is taken that is best on the first validation samples.
    """
    options = settings["newton"]
    forward = Guarded(question)
    known = FieldDataset(question.folder / "validation", dtype=torch.float64).read(range(PROBES))
    with torch.no_grad():
        difference = forward(known.target[:, 0]) - known.input
    floor = float(difference.square().mean().sqrt() / known.input.square().mean().sqrt())
    prior = _prior(question, options)
    steps, discrepancy = options.get("steps", 20), options.get("discrepancy")

    def invert(y: Tensor, mask: Tensor | None, case: Case, missed: float) -> Tensor:
        y = y.double()
        level = max((floor**2 + case.noise**2 + missed**2) ** 0.5, options.get("least", 1e-4))
        deviation = level * float(y.square().mean().sqrt())
        estimate = gauss_newton(
            forward, y, prior, deviation=deviation, mask=mask, max_steps=steps, discrepancy=discrepancy
        )
        return question.full_grid.subsample(estimate.field, question.stride)

    def predict(batch: Batch, case: Case, missed: float) -> Tensor:
        masks = [None] * batch.batch_size if batch.mask is None else list(batch.mask)
        return torch.stack([invert(y, mask, case, missed) for y, mask in zip(batch.input, masks, strict=True)])[:, None]

    levels = options.get("levels", [0.0])
    best = levels[0]
    if len(levels) > 1:
        case = Case(settings["counts"][0], VALIDATION_NOISE)
        few = question.measured(question.validation, case, TRIED)
        errors = [float(question.errors(predict(few, case, level), few.target)["l1"].median()) for level in levels]
        best = levels[min(range(len(levels)), key=errors.__getitem__)]
    return Fitted(
        lambda batch, case: predict(batch, case, best),
        slow=True,
        details={"discretisation": floor, "modes": prior.n_modes, "missed": best},
    )


def linearised(question: Question, settings: Mapping[str, Any], seed: int, device: str) -> Fitted:
    """One step of Gauss-Newton from the prior's mean: the derivative there is taken once, then every answer is a linear solve.

    What the linear map leaves unexplained is not noise; the deviation it counts for, relative to the data, is the one of `LEVELS`
    that is best on validation samples.
    """
    prior = _prior(question, settings["newton"])
    forward = question.problem.forward(question.full_grid)
    origin = torch.zeros(prior.n_modes, dtype=torch.float64)
    reference, jacobian = forward.linearise(prior.field(origin), prior.directions(origin))
    J = jacobian.detach().double().flatten(1, -2)  # (L, numbers, k)
    gram = torch.einsum("lnj,lnk->ljk", J, J)
    identity = torch.eye(prior.n_modes, dtype=torch.float64)

    def solve(batch: Batch, level: float) -> Tensor:
        y = batch.input.double()
        kept = torch.ones(y.shape[:2], dtype=torch.float64) if batch.mask is None else batch.mask.double()
        weight = (level**2 * y.square().flatten(1).mean(1)) ** -1
        difference = (y - reference.detach().double()).flatten(2)
        right = weight[:, None] * torch.einsum("bl,bln,lnk->bk", kept, difference, J)
        normal = weight[:, None, None] * torch.einsum("bl,ljk->bjk", kept, gram) + identity
        field = prior.field(torch.linalg.solve(normal, right))
        return question.full_grid.subsample(field, question.stride)[:, None]

    known = question.measured(question.validation, Case(question.settings["counts"][0], VALIDATION_NOISE))
    errors = [float(question.errors(solve(known, level), known.target)["l1"].median()) for level in LEVELS]
    best = LEVELS[min(range(len(LEVELS)), key=errors.__getitem__)]
    return Fitted(lambda batch, case: solve(batch, best), details={"level": best, "modes": prior.n_modes})


def _prior(question: Question, options: Mapping[str, Any]) -> GaussianPrior:
    grid = question.full_grid
    if options["prior"] == "cosine":
        coefficients = question.train.read(range(len(question.train))).target
        mean = float((coefficients.log() if options["link"] == "exp" else coefficients).mean())
        arguments = (options["modes"], options["scale"], options["decay"])
        if grid.kind == "polar":
            return _on_disc(grid, *arguments, mean=mean, link=options["link"])
        return GaussianPrior.cosine(grid, *arguments, mean=mean, link=options["link"])
    fields = FieldDataset(question.folder / "train", inputs=(), dtype=torch.float64).read(range(len(question.train)))
    return GaussianPrior.from_samples(
        fields.target[:, 0], options["modes"], link=options["link"], weight=grid.quadrature_weights()
    )


def _on_disc(grid: Grid, n_modes: int, scale: float, decay: float, *, mean: float, link: str) -> GaussianPrior:
    """The prior of `GaussianPrior.cosine` on the square around the disc, seen at the points of a polar grid."""
    radius = grid.extent[1][1]
    k = torch.cartesian_prod(*[torch.arange(n_modes, dtype=torch.float64)] * 2)
    k = k[k.square().sum(1).argsort(stable=True)]
    deviations = (1 + k.square().sum(1)) ** (-decay / 2)
    deviations = scale * deviations / deviations.square().sum().sqrt()
    x = (grid.cartesian_points() / radius + 1) / 2
    waves = torch.cos(torch.pi * x[None] * k[:, None, None]).prod(-1)
    weight = grid.quadrature_weights()
    waves = waves / ((waves.square() * weight).sum((1, 2)) / weight.sum()).sqrt()[:, None, None]
    constant = torch.full(grid.shape, mean, dtype=torch.float64)
    return GaussianPrior(constant, deviations[:, None, None] * waves, link, weight)


def network(question: Question, settings: Mapping[str, Any], seed: int, device: str) -> Fitted:
    """A network, trained for the seconds of the settings; fitting a reconstruction that it is given counts among them."""
    from benchmarks.inverse_models import built

    start = time.process_time()
    reconstruction = None
    if "reconstruction" in settings:
        reconstruction = fitted_ridge(question, settings["reconstruction"])
    before = time.process_time() - start
    model = built(question, settings, reconstruction).to(device)
    details = train(model, question, settings, seed, held_out=reconstruction is not None, already=before)
    return Fitted(
        network_of(model, settings), sum(p.numel() for p in model.parameters() if p.requires_grad), details=details
    )


def network_of(model: torch.nn.Module, settings: Mapping[str, Any]) -> Callable[[Batch, Case], Tensor]:
    """A model's answers, batch by batch, wherever its weights are."""
    where = next((p.device for p in [*model.parameters(), *model.buffers()]), torch.device("cpu"))

    @torch.no_grad()
    def predict(batch: Batch, case: Case) -> Tensor:
        model.eval()
        asked = replace(batch, input=seen(settings, batch.input))
        return torch.cat([apply_model(model, part.to(where)).cpu() for part in pieces(asked)])

    return predict


METHODS: dict[str, Callable[[Question, Mapping[str, Any], int, str], Fitted]] = {
    "constant": constant,
    "ridge": ridge,
    "linearised": linearised,
    "newton": newton,
    "network": network,
}
assert all(len(inspect.signature(method).parameters) == 4 for method in METHODS.values())
