"""The truncated Fourier transform on a CPU: real matrix products, or pruned FFTs where the cost table prefers them.

Layouts: a plane is one channel of one sample, (planes, *grid); spectra are mode-major, (*modes, 2, planes), real and
imaginary part. A few planes are transformed at once, so that what lies between two stages stays in the cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from opflow.kernels.cpu_products import LONGEST_SUM, product
from opflow.kernels.spectral_conv.cpu_cost import prefers_fft
from opflow.kernels.spectral_conv.dft import TruncatedDFT, waves
from opflow.kernels.spectral_conv.fft import fft_analyse, fft_synthesise

# Planes and what is made of them stay in the last-level cache, and are worth the calls that they cost.
CHUNK_BYTES = 2 << 20


class MatrixTransform:
    """One `TruncatedDFT` by matrix products, one axis after the other; only the innermost axis is ever contracted.

    The cosines and sines of q = 0 .. m on a leading axis serve +q and -q, which halves the arithmetic there. Tables are
    built in float64 and rounded once.
    """

    def __init__(self, dft: TruncatedDFT, dtype: torch.dtype) -> None:
        self.dft = dft
        scale = torch.tensor(dft.scale, dtype=torch.float64)[:, None]
        cosine, sine = waves(dft.shape[-1], *dft.kept[-1])
        # (2 k, n): s_k cos and -s_k sin in turn, so that real and imaginary part of a mode are neighbours.
        last = torch.stack([scale * cosine, -scale * sine], dim=1).flatten(0, 1)
        self.last, self.last_t = last.to(dtype), last.t().to(dtype).contiguous()
        self.segment = _segment(dft.shape[-1])
        if self.segment:
            self.last = self.last[:, : self.segment].contiguous()
            # (k, 2, segments) and (k, 2, segments): what turns real and imaginary parts by the phase of each segment.
            cosine, sine = (wave[:, :: self.segment] for wave in (cosine, sine))
            self.turns = [torch.stack(pair, dim=1).to(dtype) for pair in ((cosine, -sine), (sine, cosine))]
        # (2 (m + 1), n): all cosines, then all sines.
        self.leading = [
            torch.cat(waves(n, 0, max(highest, -lowest))).to(dtype)
            for n, (lowest, highest) in zip(dft.shape[:-1], dft.kept[:-1], strict=True)
        ]
        self.leading_t = [matrix.t().contiguous() for matrix in self.leading]

    def analyse(self, x: Tensor) -> Tensor:
        """(planes, *grid) -> (*modes, 2, planes)"""
        dft = self.dft
        z = self._analyse_last(x)  # (2 k, planes * leading axes)
        for axis in reversed(range(len(dft.shape) - 1)):
            inner = math.prod(dft.modes[axis + 1 :])
            v = product(self.leading[axis], z.view(-1, dft.shape[axis]))  # (2 (m + 1), inner * 2 * planes * the rest)
            z = _plus_and_minus(v.view(2, -1, inner, 2, v.shape[1] // (2 * inner)), *dft.kept[axis])
        return z.view(*dft.modes, 2, x.shape[0])

    def _analyse_last(self, x: Tensor) -> Tensor:
        n, k = self.dft.shape[-1], self.dft.modes[-1]
        if not self.segment:
            return product(self.last, x.reshape(-1, n))
        # A long axis in segments of equal length: one short table serves all, then each is turned to its place. Short
        # sums keep their digits, and the table stays in the first-level cache.
        z = product(self.last, x.reshape(-1, self.segment)).view(k, 2, -1, n // self.segment)
        turned = torch.bmm(self.turns[0], z[:, 0].mT)  # (k, 2, planes * leading axes)
        return turned.baddbmm_(self.turns[1], z[:, 1].mT).flatten(0, 1)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """(*modes, 2, planes) -> (planes, *grid), a view of a buffer whose axes lie in another order"""
        dft, planes, dim = self.dft, spectrum.shape[-1], len(self.dft.shape)
        done: tuple[int, ...] = ()  # the sizes of the axes that are back on the grid, the latest first
        z = spectrum.reshape(-1, 2 * dft.modes[-1], planes)
        for axis in range(dim - 1):
            inner = math.prod(dft.modes[axis + 1 :])
            z = z.reshape(math.prod(done), dft.modes[axis], inner, 2, planes)
            rows = _sum_and_difference(z, *dft.kept[axis])  # (2 (m + 1), done, inner, 2, planes)
            if axis == dim - 2:
                rows = rows.flatten(2, 3).transpose(2, 3)  # the last axis is contracted next: (..., planes, 2 k)
            z = product(self.leading_t[axis], rows.reshape(len(rows), -1).t())
            done = (dft.shape[axis], *done)
        if dim == 1:
            z = z[0].t()
        field = product(z.reshape(-1, 2 * dft.modes[-1]), self.last_t).view(*done, planes, dft.shape[-1])
        return field.permute(dim - 1, *reversed(range(dim - 1)), dim)


class FftTransform:
    """One `TruncatedDFT` by fast Fourier transforms, cut at each axis."""

    def __init__(self, dft: TruncatedDFT) -> None:
        self.dft = dft

    def analyse(self, x: Tensor) -> Tensor:
        """(planes, *grid) -> (*modes, 2, planes)"""
        return torch.view_as_real(fft_analyse(x, self.dft)).movedim((0, -1), (-1, -2))

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """(*modes, 2, planes) -> (planes, *grid)"""
        pairs = spectrum.movedim((-1, -2), (0, -1)).contiguous()
        return fft_synthesise(torch.view_as_complex(pairs), self.dft)


@functools.lru_cache(maxsize=64)
def transform(dft: TruncatedDFT, dtype: torch.dtype) -> MatrixTransform | FftTransform:
    """The cheaper of the two by the cost table; with its tables, which the cache keeps."""
    with torch.inference_mode(False), torch.no_grad():
        return FftTransform(dft) if prefers_fft(dft, dtype) else MatrixTransform(dft, dtype)


def chunks(n: int, size_of_one: int) -> Iterator[slice]:
    """Slices of n things of `size_of_one` bytes that fit the cache together, at least one thing each."""
    step = max(1, CHUNK_BYTES // size_of_one)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))


def analyse(x: Tensor, dft: TruncatedDFT) -> Tensor:
    """`dft.analyse` of fields (planes, *grid), as (*modes, 2, planes)."""
    x = x.contiguous()
    spectrum = x.new_empty(*dft.modes, 2, len(x))
    for chunk in chunks(len(x), math.prod(dft.shape) * x.element_size()):
        spectrum[..., chunk] = transform(dft, x.dtype).analyse(x[chunk])
    return spectrum


def synthesise(spectrum: Tensor, dft: TruncatedDFT) -> Tensor:
    """`dft.synthesise` of spectra (*modes, 2, planes), as contiguous fields (planes, *grid)."""
    x = spectrum.new_empty(spectrum.shape[-1], *dft.shape)
    for chunk in chunks(len(x), math.prod(dft.shape) * x.element_size()):
        x[chunk] = transform(dft, x.dtype).synthesise(spectrum[..., chunk])
    return x


def _segment(n: int) -> int:
    """The length of the segments of a long axis: the largest divisor of n that `LONGEST_SUM` allows; 0 for one sum."""
    if n <= LONGEST_SUM:
        return 0
    length = max(d for d in range(1, LONGEST_SUM + 1) if n % d == 0)
    return length if length >= 32 else 0


def _plus_and_minus(v: Tensor, lowest: int, highest: int) -> Tensor:
    """From C z and S z, q = 0 .. m, the rows k = lowest .. highest of sum_j z_j exp(-2 pi i k j / n).

    v (2, m + 1, inner, 2, rest) -> (modes, inner, 2, rest); +q is C z - i S z and -q is C z + i S z.
    """
    (cr, ci), (sr, si) = (part.unbind(2) for part in v)
    z = v.new_empty(highest - lowest + 1, v.shape[2], 2, v.shape[4])
    zr, zi = z.unbind(2)
    torch.add(cr[: highest + 1], si[: highest + 1], out=zr[-lowest:])
    torch.sub(ci[: highest + 1], sr[: highest + 1], out=zi[-lowest:])
    if lowest < 0:
        negative = slice(1, 1 - lowest)
        zr[:-lowest] = (cr[negative] - si[negative]).flip(0)
        zi[:-lowest] = (ci[negative] + sr[negative]).flip(0)
    return z


def _sum_and_difference(z: Tensor, lowest: int, highest: int) -> Tensor:
    """The rows whose product with cos and sin, q = 0 .. m, is sum_k z_k exp(2 pi i k j / n).

    z (done, modes, inner, 2, planes) -> (2 (m + 1), done, inner, 2, planes): first z_q + z_-q, then i (z_q - z_-q).
    """
    done, _, inner, _, planes = z.shape
    m = max(highest, -lowest)
    rows = z.new_empty(2, m + 1, done, inner, 2, planes)
    z = z.transpose(0, 1)
    positive, negative = z[-lowest:], z[:-lowest].flip(0)
    total, turned = rows
    total[: highest + 1] = positive
    torch.neg(positive[:, :, :, 1], out=turned[: highest + 1, :, :, 0])
    turned[: highest + 1, :, :, 1] = positive[:, :, :, 0]
    if m > highest:  # an even number of modes keeps one more negative frequency
        total[highest + 1 :] = 0
        turned[highest + 1 :] = 0
    if lowest < 0:
        total[1 : 1 - lowest] += negative
        turned[1 : 1 - lowest, :, :, 0] += negative[:, :, :, 1]
        turned[1 : 1 - lowest, :, :, 1] -= negative[:, :, :, 0]
    return rows.flatten(0, 1)
