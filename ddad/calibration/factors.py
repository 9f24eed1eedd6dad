"""What good images have in common as a whole: factors, and what is left of each image without them.

A Gaussian at every position knows nothing of the rest of the image. Good parts differ in few ways at once, though: the
lamp, the batch, how the part lies. These are the principal components of whole feature images, and what they explain
is no defect (factor analysis; as a score of its own "DFM", Ahuja et al., 2019). Factors explain the images that they
were fitted to better than others, so covariances and likelihoods are those of images that they have not seen: in
folds, and what judges a fold is made of factors that have not seen it either.
"""

import itertools
from dataclasses import dataclass

import torch

from ddad.calibration.gaussians import Moments
from ddad.gaussians_ddad import DDADGaussianModel

NUM_FACTORS = (0, 16, 48, 96)
# Fewer views than this for each factor say little about it.
VIEWS_PER_FACTOR = 4


@dataclass(frozen=True)
class Factors:
    """Mean and factors of some images.

    Attributes:
        mean: `[P, C]`.
        basis: orthonormal columns in descending order of variance, `[P C, k]`.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def first(self, count: int) -> "Factors":
        """The `count` largest alone."""
        return Factors(self.mean, self.basis[:, :count])

    def unexplained(self, values: torch.Tensor) -> torch.Tensor:
        """(I - B B^T)(x - mean), `[N, P, C]` -> `[N, P, C]`."""
        return DDADGaussianModel.unexplained(values - self.mean, self.basis)


def fit_factors(values: torch.Tensor, count: int) -> Factors:
    """The leading principal components of `[N, P, C]`, by way of the `[N, N]` products of images.

    There are N - 1 of them at most, fewer if `count` is fewer.
    """
    mean = values.mean(dim=0)
    centred = (values - mean).flatten(1)  # [N, P C]
    variances, vectors = torch.linalg.eigh((centred @ centred.T).double())  # ascending
    count = min(count, len(values) - 1)
    directions = centred.T @ vectors.flip(1)[:, :count].float()
    lengths = variances.flip(0)[:count].clamp(min=1e-12).sqrt().float()
    # Rounded as they are stored, so that what is measured is what is saved.
    return Factors(mean, (directions / lengths).half().float())


@dataclass(frozen=True)
class Views:
    """The features of images and of their copies, one view a row.

    Attributes:
        values: `[V, P, C]`.
        fold: the fold of each view's image, `[V]`.
        original: whether the view is the image itself and no copy, `[V]` bool.
        turned: whether copies are turned by any angle, and stand for photographs that are not there.
        inside: which positions are looked at, `[P]` bool; None for all. The values of the others are zero.
    """

    values: torch.Tensor
    fold: torch.Tensor
    original: torch.Tensor
    turned: bool = False
    inside: torch.Tensor | None = None

    @property
    def image(self) -> torch.Tensor:
        """The number of the image that each view is of, `[V]`: copies follow the image itself."""
        return self.original.cumsum(dim=0) - 1

    @property
    def folds(self) -> list[int]:
        """The folds, in order."""
        return sorted(self.fold.unique().tolist())


def cross_fit(views: Views, count: int) -> dict[int, Factors]:
    """For each fold the factors of all images that are not in it."""
    return {fold: fit_factors(views.values[views.fold != fold], count) for fold in views.folds}


def cross_fit_pairs(views: Views, count: int) -> dict[tuple[int, int], Factors]:
    """For each two folds the factors of all images that are in neither: they may judge the first by the second.

    Two folds leave none: then it is the mean of the second, without factors.
    """
    found: dict[tuple[int, int], Factors] = {}
    for first, second in itertools.permutations(views.folds, 2):
        neither = (views.fold != first) & (views.fold != second)
        if not neither.any():
            found[first, second] = fit_factors(views.values[views.fold == second], 0)
        elif (second, first) in found:
            found[first, second] = found[second, first]
        else:
            found[first, second] = fit_factors(views.values[neither], count)
    return found


def unexplained(views: Views, factors: dict[int, Factors], count: int) -> torch.Tensor:
    """What `count` factors that have not seen an image leave of it, `[V, P, C]`."""
    result = torch.empty_like(views.values)
    for fold, of_others in factors.items():
        chosen = views.fold == fold
        result[chosen] = of_others.first(count).unexplained(views.values[chosen])
    return result


def moments_of(values: torch.Tensor) -> Moments:
    """Moments of `[V, P, C]`."""
    moments = Moments.empty(*values.shape[1:])
    moments.add(values)
    return moments


def candidates(views: int) -> list[int]:
    """The numbers of factors that so many views can speak for."""
    return [count for count in NUM_FACTORS if count * VIEWS_PER_FACTOR <= views]
