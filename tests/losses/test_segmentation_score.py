"""The challenge's score against its definition by direct convolution, and Dice's coefficient."""

import numpy as np
import pytest
import torch

from opflow.losses import challenge_score, dice


def direct(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The definition, with the two-dimensional window."""
    from scipy.signal import fftconvolve

    place = np.arange(-160, 161)
    window = np.exp(-0.5 * (place[:, None] ** 2 + place**2) / 80.0**2)
    ones = fftconvolve(np.ones((256, 256)), window, "same")

    def mean(image: np.ndarray) -> np.ndarray:
        return fftconvolve(image, window, "same") / ones

    halves = []
    for kind in (1, 2):
        p, t = (prediction == kind).astype(float), (truth == kind).astype(float)
        mp, mt = mean(p), mean(t)
        spp, stt, spt = mean(p * p) - mp**2, mean(t * t) - mt**2, mean(p * t) - mp * mt
        halves.append(((2 * mp * mt + 1e-4) * (2 * spt + 9e-4) / ((mp**2 + mt**2 + 1e-4) * (spp + stt + 9e-4))).mean())
    return float(np.mean(halves))


def images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(256, 256, dtype=torch.long)
    for kind in (1, 2):
        x, y = torch.randint(20, 180, (2,), generator=generator).tolist()
        image[x : x + 50, y : y + 35] = kind
    return image


def test_the_score_is_that_of_the_definition() -> None:
    predictions, truths = torch.stack([images(0), images(1)]), torch.stack([images(2), images(1)])
    scores = challenge_score(predictions, truths)
    for i in range(2):
        assert float(scores[i]) == pytest.approx(direct(predictions[i].numpy(), truths[i].numpy()), abs=1e-9)
    assert float(scores[1]) == pytest.approx(1.0)
    torch.testing.assert_close(challenge_score(predictions.mT, truths.mT), scores)


def test_an_empty_answer_scores_half_where_one_kind_is_absent() -> None:
    truth = images(3)[None]
    both, one = truth, torch.where(truth == 2, 0, truth)
    empty = torch.zeros_like(truth)
    assert float(challenge_score(empty, both)) < 0.2 and 0.5 < float(challenge_score(empty, one)) < 0.6
    assert float(dice(empty, one)) == 0.0 and float(dice(empty, empty)) == 1.0


def test_dice_is_the_mean_over_kinds_present() -> None:
    truth = torch.tensor([[[1, 1, 2, 2]], [[0, 0, 2, 2]]])
    prediction = torch.tensor([[[1, 1, 2, 0]], [[1, 0, 2, 2]]])
    torch.testing.assert_close(dice(prediction, truth), torch.tensor([(1 + 2 / 3) / 2, 0.5], dtype=torch.float64))


def test_other_images_are_refused() -> None:
    truth = images(0)[None]
    with pytest.raises(ValueError, match="256 x 256"):
        challenge_score(truth[:, ::2, ::2], truth[:, ::2, ::2])
    with pytest.raises(ValueError, match="other values"):
        dice(truth + 1, truth)
    with pytest.raises(ValueError, match="expected one shape"):
        dice(truth[0], truth[0])
