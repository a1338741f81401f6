"""How well a segmentation of a tank agrees with the truth: the score of the Kuopio Tomography Challenge, and Dice's coefficient."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 80.0  # deviation of the Gaussian window, pixels of a 256 x 256 image
STABILISERS = (1e-4, 9e-4)
SIZE = 256


def challenge_score(prediction: Tensor, truth: Tensor) -> Tensor:
    """The mean of two structural similarities, of the conductive masks and of the resistive ones   (Rasanen et al. 2023), (n,).

    SSIM = mean over pixels of (2 m_p m_t + c_1) (2 s_pt + c_2) / ((m_p^2 + m_t^2 + c_1) (s_pp + s_tt + c_2)), with local means m and
    covariances s under a Gaussian window of deviation 80 pixels, cut at 160 and normalised at the image's border, c = 1e-4 and 9e-4. A wide
    window: the score sees place and size, less the shape. Where a class is in neither image its half is 1, so that an
    answer without inclusions scores 1/2 on a tank that lacks one kind: state `dice` and that answer's score beside it.

    Args:
        prediction, truth: (n, 256, 256), 0 water, 1 resistive, 2 conductive. Both orders of axes give the same.

    >>> truth = torch.zeros(1, 256, 256)
    >>> truth[:, 100:150, 60:90] = 2
    >>> float(challenge_score(truth, truth)), round(float(challenge_score(0 * truth, truth)), 2)
    (1.0, 0.53)
    """
    _check(prediction, truth)
    if truth.shape[-2:] != (SIZE, SIZE):
        raise ValueError(
            f"the images are {tuple(truth.shape[-2:])}; the score is defined on {SIZE} x {SIZE} pixels: resample them."
        )
    halves = [_similarity((prediction == kind).double(), (truth == kind).double()) for kind in (2, 1)]
    return (halves[0] + halves[1]) / 2


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """The mean over the kinds of inclusions present in either image of 2 |P and T| / (|P| + |T|), (n,); 1 where there are none.

    Args:
        prediction, truth: (n, height, width), 0 water, 1 resistive, 2 conductive.

    >>> float(dice(torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 0, 0]]])))  # doctest: +ELLIPSIS
    0.666...
    """
    _check(prediction, truth)
    shares, present = [], []
    for kind in (1, 2):
        p, t = (prediction == kind).flatten(1).double(), (truth == kind).flatten(1).double()
        size = p.sum(1) + t.sum(1)
        present.append(size > 0)
        shares.append(2 * (p * t).sum(1) / size.clamp(min=1))
    count = torch.stack(present).sum(0)
    return torch.where(count > 0, torch.stack(shares).sum(0) / count.clamp(min=1), torch.ones_like(shares[0]))


def _similarity(p: Tensor, t: Tensor) -> Tensor:
    place = torch.arange(SIZE, dtype=p.dtype, device=p.device)
    apart = (place[:, None] - place).abs()
    window = torch.exp(-0.5 * (apart / RADIUS) ** 2) * (apart <= 2 * RADIUS)
    window = window / window.sum(1, keepdim=True)  # the two-dimensional window and its normalisation are products

    def mean(image: Tensor) -> Tensor:
        return window @ image @ window.T

    m_p, m_t = mean(p), mean(t)
    s_pp, s_tt, s_pt = m_p - m_p**2, m_t - m_t**2, mean(p * t) - m_p * m_t  # a mask is its own square
    c_1, c_2 = STABILISERS
    similarity = (2 * m_p * m_t + c_1) * (2 * s_pt + c_2) / ((m_p**2 + m_t**2 + c_1) * (s_pp + s_tt + c_2))
    return similarity.mean((-2, -1))


def _check(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ValueError(
            f"prediction and truth have shapes {tuple(prediction.shape)} and {tuple(truth.shape)}; expected one shape (n, height, width)."
        )
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not bool(((image == 0) | (image == 1) | (image == 2)).all()):
            raise ValueError(f"the {name} holds other values than 0 (water), 1 (resistive) and 2 (conductive).")
