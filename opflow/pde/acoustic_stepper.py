"""Acoustic waves in two dimensions: high order in space, leapfrog in time, an absorbing layer around, and the exact adjoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from opflow.pde.absorbing_line import LARGEST, AbsorbingLine, apply_first, apply_last

KAISER, HALF_WIDTH = 6.31, 4.0  # of the window of a point source (Hicks 2002, table 2)


@dataclass(frozen=True)
class Shots:
    """What is sent into the ground, and where and when it is heard.

    Attributes:
        sources: (shots, *nodes): the density of each source in 1/area, on the grid with the layer; see `AcousticStepper.point_sources`.
        wavelet: (steps,): the strength of all sources at t = 0, dt, ...
        receivers: (receivers, 2): nodes of the medium, no two the same.
        every: a record keeps every so many-th step; its first entry is t = 0.
    """

    sources: Tensor
    wavelet: Tensor
    receivers: Tensor
    every: int = 1

    @property
    def n_times(self) -> int:
        """Entries of a record: those at steps 0, every, 2 every, ... that `wavelet` reaches."""
        return (len(self.wavelet) - 1) // self.every + 1


class AcousticStepper:
    """u_tt / c^2 - lap u = s(x) w(t) from rest, on a grid with a perfectly matched layer around.

        u^(n+1) = 2 u^n - u^(n-1) + (c dt)^2 (D_1 u^n + D_2 u^n + s w^n)

    D_j is the eighth-order second difference along axis j, in the layer that of a stretched coordinate by recursive convolution: see
    `AbsorbingLine`, whose transpose steps the adjoint.

    In all second order in time, eighth in space. Stable for c dt sqrt(h_1^-2 + h_2^-2) <= 0.784, c dt / h <= 0.555 on squares; see `check`.

    Args:
        shape: nodes of the medium, (depth, width).
        spacing: h of each axis, in metres.
        time_step: dt, in seconds.
        speed: which the layer's damping is made for, the fastest to come; in metres a second.
        frequency: of the wavelet's peak, in hertz.
        absorbing_cells: of the layer, on each side; the medium goes on there as at the edge.

    >>> stepper = AcousticStepper((30, 30), (10.0, 10.0), 1e-3, speed=2000.0, frequency=15.0)
    >>> sources, receivers = stepper.point_sources(torch.tensor([[15, 15]])), torch.tensor([[0, 3], [0, 20]])
    >>> stepper.records(torch.full((1, 30, 30), 2000.0), Shots(sources, ricker(15.0, 1e-3, 200), receivers)).shape
    torch.Size([1, 1, 200, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        time_step: float,
        *,
        speed: float,
        frequency: float,
        absorbing_cells: int = 12,
    ) -> None:
        if len(shape) != 2 or len(spacing) != 2:
            raise ValueError(f"shape is {tuple(shape)} and spacing {tuple(spacing)}; two numbers each are expected.")
        if absorbing_cells < 1:
            raise ValueError(f"absorbing_cells is {absorbing_cells}; a positive whole number is expected.")
        self.shape, self.spacing, self.time_step = tuple(shape), tuple(spacing), time_step
        self.cells = absorbing_cells
        self.nodes = tuple(n + 2 * absorbing_cells for n in shape)
        self.lines = tuple(
            AbsorbingLine(n, h, time_step, cells=absorbing_cells, speed=speed, frequency=frequency)
            for n, h in zip(self.nodes, spacing, strict=True)
        )

    @property
    def largest_speed(self) -> float:
        """2 / (dt sqrt(largest eigenvalue of -lap)), the limit of stability in metres a second."""
        return 2 / (self.time_step * math.sqrt(LARGEST * sum(h**-2 for h in self.spacing)))

    def check(self, speed: Tensor) -> None:
        """Raise unless speeds (n, *shape) are positive, finite, and slow enough for the time step."""
        if speed.ndim != 3 or tuple(speed.shape[1:]) != self.shape or not speed.is_floating_point():
            raise ValueError(
                f"speed has shape {tuple(speed.shape)} and is {speed.dtype}; floating-point (n, {self.shape[0]}, "
                f"{self.shape[1]}) is expected."
            )
        values = speed.detach().flatten(1)
        good = (values.isfinite() & (values > 0)).all(1)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0])
            raise ValueError(
                f"the speed of sample {bad} is not positive and finite everywhere and not NaN: its smallest value is "
                f"{float(values[bad].min()):g}; correct or leave out this medium."
            )
        if len(values) and float(values.max()) > self.largest_speed:
            raise ValueError(
                f"the fastest speed is {float(values.max()):g} m/s, but time steps of {self.time_step:g} s at spacing {self.spacing} are "
                f"stable up to {self.largest_speed:g} m/s only; take shorter steps or a coarser grid."
            )

    def point_sources(self, places: Tensor, width: float = 1.0) -> Tensor:
        """Unit sources at places (shots, 2), counted in nodes of the medium: (shots, *nodes), float64.

        What a grid of spacing `width` h makes of a point at one of its nodes: sinc(x / (width h)) along each axis, under a Kaiser window of
        four times that to each side (Hicks 2002). So a finer grid takes the source of a coarser one, and one between nodes is as good.
        """
        peak, lines = float(torch.special.i0(torch.tensor(KAISER, dtype=torch.float64))), []
        for place, n, h in zip(places.double().T, self.nodes, self.spacing, strict=True):
            x = (torch.arange(n, dtype=torch.float64) - self.cells - place[:, None]) / width
            window = torch.special.i0(KAISER * (1 - (x / HALF_WIDTH) ** 2).clamp(min=0).sqrt()) * (
                x.abs() <= HALF_WIDTH
            )
            lines.append(torch.sinc(x) * window / (peak * width * h))
        return lines[0][:, :, None] * lines[1][:, None]

    def records(self, speed: Tensor, shots: Shots) -> Tensor:
        """speed (n, *shape) -> records (n, shots, times, receivers), in the precision of speed.

        Differentiable with respect to speed, once: the backward pass steps the transposed recursion from the last time to the first and
        computes the waves again from sqrt(steps) stored states, about twice the work of the records.
        """
        self.check(speed)
        sources, receivers = self._placed(shots)
        return _Records.apply(self._strength(speed), self, shots, sources.to(speed), receivers)

    def tangents(self, speed: Tensor, directions: Tensor, shots: Shots) -> tuple[Tensor, Tensor]:
        """One medium (*shape), directions (k, *shape): its records (shots, times, receivers), their derivatives (k, shots, times, receivers).

        The waves of all directions are stepped beside those of the medium.
        """
        self.check(speed[None])
        sources, receivers = self._placed(shots)
        with torch.no_grad():
            m = self._strength(speed[None])
            change = self._pad(2 * self.time_step**2 * speed * directions.to(speed))
            out = _Waves(self, m, shots, sources.to(speed), receivers, change).records()
        return out[0], out[1:]

    def _strength(self, speed: Tensor) -> Tensor:
        return self._pad((self.time_step * speed) ** 2)

    def _pad(self, field: Tensor) -> Tensor:
        """(n, *shape) -> (depth, n, 1, width) with the layer"""
        return F.pad(field[:, None], (self.cells,) * 4, mode="replicate").permute(2, 0, 1, 3).contiguous()

    def _placed(self, shots: Shots) -> tuple[Tensor, Tensor]:
        """Sources (depth, 1, shots, width) and receivers, counted on the grid with the layer."""
        if shots.sources.ndim != 3 or tuple(shots.sources.shape[1:]) != self.nodes:
            raise ValueError(
                f"sources have shape {tuple(shots.sources.shape)}; (shots, {self.nodes[0]}, {self.nodes[1]}) is expected, "
                "the layer with the medium: see point_sources."
            )
        nodes, limit = shots.receivers, torch.tensor(self.shape)
        if nodes.ndim != 2 or nodes.shape[1] != 2 or bool(((nodes < 0) | (nodes >= limit)).any()):
            raise ValueError(
                f"receivers are {nodes.tolist()}; nodes of the {self.shape} grid, (receivers, 2), are expected."
            )
        if len(nodes.unique(dim=0)) < len(nodes):
            raise ValueError("two receivers are at one node; give each its own.")
        return shots.sources.permute(1, 0, 2)[:, None].contiguous(), nodes + self.cells


class _Waves:
    """The waves of n media and S shots, stepped in place.

    Fields are (depth, n S, width); `line_z` and `line_x` hold u and the layers' memory along depth and along width. With `change`
    (depth, k, 1, width) the first medium, the only one then, has k tangents, the other samples here, which have no source.
    """

    def __init__(
        self,
        stepper: AcousticStepper,
        m: Tensor,
        shots: Shots,
        sources: Tensor,
        receivers: Tensor,
        change: Tensor | None = None,
    ) -> None:
        (nz, nx), (Z, X) = stepper.nodes, stepper.lines
        self.Z, self.X, self.m, self.change, self.every = Z.blocks(m), X.blocks(m), m, change, shots.every
        self.in_z, self.in_x = Z.nodes, X.nodes
        n, S = m.shape[1] + (0 if change is None else change.shape[1]), sources.shape[2]
        self.n_times, self.wavelet = shots.n_times, shots.wavelet.tolist()
        self.sizes = (n, S, self.n_times, len(receivers))
        self.split = (nz, n, S, nx)
        self.rows, self.columns = receivers.to(m.device).T
        # Only the rows of depth that hold a source, which are few.
        held = sources.flatten(1).any(1).nonzero()[:, 0]
        self.held = slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, 0)
        self.sources = sources[self.held]
        self.line_x = m.new_zeros(nz, n * S, X.size)
        self.line_z = m.new_zeros(Z.size, n * S, nx)
        self.before, self.force = m.new_zeros(2, nz, n * S, nx)
        self.next_x, self.next_z = torch.empty_like(self.line_x), torch.empty_like(self.line_z)

    @property
    def u(self) -> Tensor:
        return self.line_z[self.in_z]

    def state(self) -> tuple[Tensor, ...]:
        return self.line_x.clone(), self.line_z.clone(), self.before.clone()

    def restore(self, state: tuple[Tensor, ...]) -> None:
        for mine, kept in zip((self.line_x, self.line_z, self.before), state, strict=True):
            mine.copy_(kept)

    def step(self, n: int) -> Tensor:
        """From u^n to u^(n+1); returns lap u^n + s w^n (depth, n S, width), which the next step overwrites."""
        apply_last(self.X, self.line_x, self.next_x)
        apply_first(self.Z, self.line_z, self.next_z)
        force = torch.add(self.next_z[self.in_z], self.next_x[..., self.in_x], out=self.force)
        sourced = force.view(self.split)[self.held]
        (sourced if self.change is None else sourced[:, :1]).add_(self.sources, alpha=self.wavelet[n])
        after = self.before.neg_().add_(self.u, alpha=2).view(self.split)
        after.addcmul_(self.m, force.view(self.split))
        if self.change is not None:
            after[:, 1:].addcmul_(self.change, force.view(self.split)[:, :1])
        self.next_z[self.in_z] = self.next_x[..., self.in_x] = self.before
        self.before.copy_(self.u)
        self.line_x, self.next_x = self.next_x, self.line_x
        self.line_z, self.next_z = self.next_z, self.line_z
        return force

    def heard(self) -> Tensor:
        """(receivers, n S)"""
        return self.u[self.rows, :, self.columns]

    def records(self, checkpoints: dict[int, tuple[Tensor, ...]] | None = None) -> Tensor:
        """(n, S, times, receivers), from rest; the states at the steps that are keys of `checkpoints` are put there."""
        n, S, times, receivers = self.sizes
        out = self.m.new_empty(times, receivers, n * S)
        for step in range((times - 1) * self.every + 1):
            if checkpoints is not None and step in checkpoints:
                checkpoints[step] = self.state()
            if step % self.every == 0:
                out[step // self.every] = self.heard()
            if step < (times - 1) * self.every:
                self.step(step)
        return out.view(times, receivers, n, S).permute(2, 3, 0, 1)


class _Records(torch.autograd.Function):
    """Records from (c dt)^2 with the layer, (depth, n, 1, width)."""

    @staticmethod
    def forward(
        ctx: Any, m: Tensor, stepper: AcousticStepper, shots: Shots, sources: Tensor, receivers: Tensor
    ) -> Tensor:
        waves = _Waves(stepper, m, shots, sources, receivers)
        steps = (shots.n_times - 1) * shots.every
        ctx.starts = {}
        if ctx.needs_input_grad[0]:
            ctx.starts = dict.fromkeys(range(0, max(steps, 1), max(1, math.isqrt(steps))))
            ctx.parts = stepper, shots, sources, receivers, steps
            ctx.save_for_backward(m)
        return waves.records(ctx.starts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (m,), (stepper, shots, sources, receivers, steps) = ctx.saved_tensors, ctx.parts
        waves = _Waves(stepper, m, shots, sources, receivers)
        _, n, S, _ = waves.split
        heard = gradient.permute(2, 3, 0, 1).reshape(shots.n_times, -1, n * S)
        Z, X = (line.blocks(m, transposed=True) for line in stepper.lines)
        # Adjoints of force and memory after the step, and of u^(n+1) and u^n as "before".
        line_x, line_z = torch.zeros_like(waves.line_x), torch.zeros_like(waves.line_z)
        back_x, back_z = torch.empty_like(line_x), torch.empty_like(line_z)
        after, before = torch.zeros_like(waves.before), torch.zeros_like(waves.before)
        after[waves.rows, :, waves.columns] += heard[-1]
        result = torch.zeros_like(waves.before).view(waves.split)
        ends = [*list(ctx.starts)[1:], steps]
        for (start, state), end in reversed(list(zip(ctx.starts.items(), ends, strict=True))):
            waves.restore(state)
            forces = [waves.step(step).clone() for step in range(start, end)]
            for step in range(end - 1, start - 1, -1):
                result.addcmul_(after.view(waves.split), forces.pop().view(waves.split))
                torch.mul(after.view(waves.split), m, out=line_z[waves.in_z].view(waves.split))
                line_x[..., waves.in_x] = line_z[waves.in_z]
                apply_last(X, line_x, back_x)
                apply_first(Z, line_z, back_z)
                now = before.add_(after, alpha=2).add_(back_z[waves.in_z]).add_(back_x[..., waves.in_x])
                line_x, back_x, line_z, back_z = back_x, line_x, back_z, line_z
                if step % shots.every == 0:
                    now[waves.rows, :, waves.columns] += heard[step // shots.every]
                after, before = now, after.neg_()
        return result.sum(2, keepdim=True), None, None, None, None


def ricker(frequency: float, time_step: float, steps: int, delay: float | None = None) -> Tensor:
    """w(t) = (1 - 2 q) exp(-q), q = (pi frequency (t - delay))^2, at t = 0, dt, ...: (steps,), float64; delay 1.5 / frequency if None."""
    t = time_step * torch.arange(steps, dtype=torch.float64) - (1.5 / frequency if delay is None else delay)
    q = (torch.pi * frequency * t) ** 2
    return (1 - 2 * q) * torch.exp(-q)
