"""The truncated Fourier transform on a CPU as real matrix products, a few planes at a time.

Layouts: a plane is one channel of one sample, (planes, *grid); spectra are mode-major, (*kept, 2, planes), real and
imaginary part. Only the last axis of a product chain ever moves, so no stage transposes a field.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opflow.kernels.cpu_products import empty_field, product
from opflow.kernels.spectral_conv.dft import TruncatedDFT, waves

# A chunk of planes and what is made of it stay in the second-level cache.
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Matrices:
    """The real matrices of one `TruncatedDFT` in one dtype.

    Attributes:
        last: (2 kept, n): s_k cos and -s_k sin in turn, of the last axis.
        last_t: its transpose.
        leading: per leading axis (2 (m + 1), n): cos, then sin, of q = 0 .. m; they serve +q and -q.
        leading_t: their transposes.
    """

    last: Tensor
    last_t: Tensor
    leading: tuple[Tensor, ...]
    leading_t: tuple[Tensor, ...]


@functools.lru_cache(maxsize=64)
def matrices(dft: TruncatedDFT, dtype: torch.dtype) -> Matrices:
    """Built in float64 and rounded once."""
    with torch.inference_mode(False), torch.no_grad():
        scale = torch.tensor(dft.scale, dtype=torch.float64)[:, None]
        cosine, sine = waves(dft.shape[-1], *dft.kept[-1])
        last = torch.stack([scale * cosine, -scale * sine], dim=1).flatten(0, 1).to(dtype)
        leading = [
            torch.cat(waves(n, 0, max(highest, -lowest))).to(dtype)
            for n, (lowest, highest) in zip(dft.shape[:-1], dft.kept[:-1], strict=True)
        ]
        return Matrices(
            last, last.t().contiguous(), tuple(leading), tuple(matrix.t().contiguous() for matrix in leading)
        )


def chunk_of_planes(dft: TruncatedDFT, element_size: int) -> int:
    """How many planes to transform at once."""
    return max(1, CHUNK_BYTES // (math.prod(dft.shape) * element_size))


def analyse(x: Tensor, dft: TruncatedDFT) -> Tensor:
    """Fields (planes, *grid), contiguous, to spectra (*modes, 2, planes)."""
    planes = x.shape[0]
    spectrum = x.new_empty(*dft.modes, 2, planes)
    step, tables = chunk_of_planes(dft, x.element_size()), matrices(dft, x.dtype)
    for first in range(0, planes, step):
        chunk = slice(first, min(first + step, planes))
        spectrum[..., chunk] = analyse_chunk(x[chunk], dft, tables)
    return spectrum


def synthesise(spectrum: Tensor, dft: TruncatedDFT) -> Tensor:
    """Spectra (*modes, 2, planes) to fields (planes, *grid), contiguous."""
    planes = spectrum.shape[-1]
    x = empty_field((planes, *dft.shape), spectrum)
    step, tables = chunk_of_planes(dft, x.element_size()), matrices(dft, x.dtype)
    for first in range(0, planes, step):
        chunk = slice(first, min(first + step, planes))
        x[chunk] = synthesise_chunk(spectrum[..., chunk], dft, tables)
    return x


def analyse_chunk(x: Tensor, dft: TruncatedDFT, tables: Matrices) -> Tensor:
    """`analyse` of a few planes at once."""
    z = product(tables.last, x.reshape(-1, dft.shape[-1]))  # (2 k, planes * leading axes)
    for axis in reversed(range(len(dft.shape) - 1)):
        inner = math.prod(dft.modes[axis + 1 : -1]) * dft.modes[-1]
        v = product(tables.leading[axis], z.view(-1, dft.shape[axis]))  # (2 (m + 1), kept so far * 2 * planes * rest)
        z = _plus_and_minus(v.view(2, -1, inner, 2, v.shape[1] // (2 * inner)), *dft.kept[axis])
    return z.view(*dft.modes, 2, x.shape[0])


def synthesise_chunk(spectrum: Tensor, dft: TruncatedDFT, tables: Matrices) -> Tensor:
    """`synthesise` of a few planes at once; a view (planes, *grid) of a buffer with the axes in another order."""
    planes, dim = spectrum.shape[-1], len(dft.shape)
    done: tuple[int, ...] = ()  # the sizes of the axes that are back on the grid, the latest first
    z = spectrum.reshape(-1, 2 * dft.modes[-1], planes)
    for axis in range(dim - 1):
        inner = math.prod(dft.modes[axis + 1 : -1])
        shape = (math.prod(done), dft.modes[axis], inner * dft.modes[-1], 2, planes)
        pq = _sum_and_difference(z.reshape(shape), *dft.kept[axis])  # (2 (m + 1), done, inner k, 2, planes)
        if axis == dim - 2:
            pq = pq.flatten(2, 3).transpose(2, 3)  # the last axis' frequencies come last: (..., planes, 2 k)
        pq = pq.reshape(pq.shape[0], -1)
        z = product(tables.leading_t[axis], pq.t())
        done = (dft.shape[axis], *done)
    if dim == 1:
        z = z.view(2 * dft.modes[-1], planes).t()
    rows = z.reshape(-1, 2 * dft.modes[-1])
    field = product(rows, tables.last_t).view(*done, planes, dft.shape[-1])
    return field.permute(dim - 1, *reversed(range(dim - 1)), dim)


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
