"""Calibration of a tank on a measurement of it without inclusions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opflow.problems.electrode_tomography import ElectrodeTomography

# A contact whose impedance the data do not show stays near the start: this many shares of the voltages' norm per factor e.
HOLD = 1e-3


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` found.

    Attributes:
        problem: the tank with the fitted background and contact impedances.
        offsets: the constant of every voltmeter (K,), which differences to a reference measurement do not see.
        misfit: || fitted - measured || / || measured ||, over what was measured.
        converged: whether the fit stopped by itself.
        message: how it stopped.
    """

    problem: ElectrodeTomography
    offsets: Tensor
    misfit: float
    converged: bool
    message: str


def calibrate(
    problem: ElectrodeTomography, voltages: Tensor, mask: Tensor | None = None, *, max_steps: int = 40
) -> Calibration:
    """Fit one conductivity, every contact impedance and every voltmeter's offset to voltages (L, K) of the tank without inclusions.

        min over sigma, z, o of || V(sigma, z) + o - voltages ||^2,   o_k the same for all currents,

    by Gauss-Newton with a trust region in log sigma and log z; the offsets are eliminated, as means over the currents.

    Args:
        voltages: measured (L, K); NaN is not measured.
        mask: (L, K), False where not measured.
        max_steps: evaluations of the model.

    Raises:
        ValueError: shapes do not fit, or fewer voltages than unknowns.

    >>> tank = ElectrodeTomography.disc(8, background=0.7, impedance=0.03)
    >>> water = tank.observe({"conductivity": torch.full((1, len(tank.mesh.cells)), 0.7)})["measurements"][0, :, 0]
    >>> found = calibrate(ElectrodeTomography.disc(8), water)
    >>> round(found.problem.background, 2), found.converged
    (0.7, True)
    """
    from scipy.optimize import least_squares

    shape = (problem.currents.shape[1], problem.pattern.shape[1])
    if tuple(voltages.shape) != shape:
        raise ValueError(f"voltages have shape {tuple(voltages.shape)}; expected {shape}, currents by differences.")
    seen = ~voltages.isnan() if mask is None else mask & ~voltages.isnan()
    measured = seen.detach().cpu().numpy().T
    count = len(problem.electrodes)
    if measured.sum() < 1 + count + measured.shape[0]:
        raise ValueError(
            f"{int(measured.sum())} voltages are measured, fewer than the {1 + count + measured.shape[0]} numbers to be fitted."
        )
    data = np.where(measured, voltages.detach().cpu().double().numpy().T, 0.0)  # (K, L)
    size = float(np.linalg.norm(data))
    model, currents, pattern = problem.model, problem.currents.numpy(), problem.pattern.numpy()
    often = np.maximum(measured.sum(1), 1)

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Without its means over the measured currents, zero elsewhere: (K, L, ...)"""
        known = values * measured.reshape(*measured.shape, *[1] * (values.ndim - 2))
        means = known.sum(1) / often.reshape(-1, *[1] * (values.ndim - 2))
        return (values - means[:, None]) * measured.reshape(*measured.shape, *[1] * (values.ndim - 2))

    cells = np.ones(len(problem.mesh.cells))
    lengths = np.array([model.points[sides[:, 0]] - model.points[sides[:, 1]] for sides in model.electrodes[:1]])
    contact = 0.02 * float(np.linalg.norm(lengths, axis=-1).sum())
    # Resistances scale with 1/sigma if sigma z is kept: the first guess is one factor.
    unit = centred(model.state(cells, np.full(count, contact)).voltages(pattern, currents))
    factor = float((unit * centred(data)).sum() / (unit * unit).sum())
    if not factor > 0:
        raise ValueError(
            "the voltages have the wrong sign for these currents; check the order of electrodes and measurements."
        )
    start = np.concatenate([[-np.log(factor)], np.full(count, np.log(contact * factor))])

    def residual(p: NDArray[np.float64]) -> NDArray[np.float64]:
        fitted = model.state(np.exp(p[0]) * cells, np.exp(p[1:])).voltages(pattern, currents)
        return np.concatenate([centred(fitted - data).ravel() / size, HOLD * (p[1:] - start[1:])])

    def jacobian(p: NDArray[np.float64]) -> NDArray[np.float64]:
        state = model.state(np.exp(p[0]) * cells, np.exp(p[1:]))
        contacts = model.impedance_jacobian(state, pattern, currents) * np.exp(p[1:])
        # V(c sigma, z / c) = V / c, hence sigma dV/dsigma = -V + sum z dV/dz.
        water = -state.voltages(pattern, currents) + contacts.sum(-1)
        upper = centred(np.concatenate([water[..., None], contacts], -1)).reshape(-1, count + 1)
        held = np.concatenate([np.zeros((count, 1)), HOLD * np.eye(count)], 1)
        return np.concatenate([upper / size, held])

    found = least_squares(residual, start, jacobian, max_nfev=max_steps, x_scale="jac")
    sigma, impedances = float(np.exp(found.x[0])), torch.from_numpy(np.exp(found.x[1:]))
    fitted = model.state(sigma * cells, impedances.numpy()).voltages(pattern, currents)
    offsets = ((data - fitted) * measured).sum(1) / often
    misfit = float(np.linalg.norm((fitted + offsets[:, None] - data) * measured)) / size
    return Calibration(
        replace(problem, background=sigma, impedances=impedances),
        torch.from_numpy(offsets),
        misfit,
        bool(found.success),
        f"misfit {misfit:.2%} after {found.nfev} evaluations: {found.message.lower()}",
    )
