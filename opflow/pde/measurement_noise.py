"""Noise on measurements, relative to their size."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("additive", "multiplicative")


def add_noise(
    measurements: Tensor, level: float, generator: torch.Generator | None = None, *, kind: str = "additive"
) -> Tensor:
    """Measurements with Gaussian noise, drawn on the CPU in float64: the same on every device.

    - ``additive``:        d + level rms(d) N(0, 1),   rms over the sample: what an instrument of one range adds;
    - ``multiplicative``:  d (1 + level N(0, 1)),      what published comparisons of inverse operators use; it spares
      what is small.

    Args:
        measurements: (n, measurement, channel, *sensors), or any array a sample.
        level: relative standard deviation, 0.01 for 1 %.
        generator: of the CPU; None takes torch's global one.
        kind: one of the two.

    Raises:
        ValueError: a negative level, an unknown kind, or complex measurements.

    >>> add_noise(torch.ones(1, 20, 1, 272), 0.01, torch.Generator().manual_seed(0)).std() < 0.011
    tensor(True)
    """
    if not level >= 0:
        raise ValueError(f"the noise level is {level}; give the relative standard deviation, for example 0.01.")
    if kind not in KINDS:
        raise ValueError(f"noise of kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    if measurements.is_complex() or measurements.ndim < 2:
        raise ValueError(
            f"measurements are {measurements.dtype} of shape {tuple(measurements.shape)}; real ones (n, ...) are expected: "
            "give complex data as two channels, real and imaginary part."
        )
    if level == 0:
        return measurements
    draw = torch.randn(measurements.shape, generator=generator, dtype=torch.float64).to(measurements)
    if kind == "multiplicative":
        return measurements * (1 + level * draw)
    rms = measurements.square().mean(tuple(range(1, measurements.ndim)), keepdim=True).sqrt()
    return measurements + level * rms * draw
