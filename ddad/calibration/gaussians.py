"""Gaussians of good images' features at every position: moments, shrinkage, principal components.

Source: "PaDiM" (Defard et al., 2020), equation 1, whose 0.01 I is kept. That each position's covariance is drawn
towards the one of all positions is linear shrinkage ("A well-conditioned estimator for large-dimensional covariance
matrices", Ledoit and Wolf, 2004) with another target and a weight that is chosen by the likelihood of held-out images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

REGULARISATION = 0.01
SHRINKAGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.9)


@dataclass
class Moments:
    """Sums over images, from which Gaussians follow.

    Attributes:
        count: images seen.
        total: sum of the features, `[P, C]` float64.
        products: sum of their outer products, `[P, C, C]` float64.
    """

    count: int
    total: torch.Tensor
    products: torch.Tensor

    @staticmethod
    def empty(positions: int, channels: int) -> "Moments":
        """Of no image."""
        return Moments(
            0,
            torch.zeros(positions, channels, dtype=torch.float64),
            torch.zeros(positions, channels, channels, dtype=torch.float64),
        )

    def add(self, values: torch.Tensor) -> None:
        """Takes images in, `[N, P, C]`."""
        self.count += len(values)
        self.total += values.sum(dim=0, dtype=torch.float64)
        # Products of float32 features summed in float64: the batch is small, the sum is not.
        self.products += torch.bmm(values.permute(1, 2, 0), values.permute(1, 0, 2)).double()

    def gaussian(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean `[P, C]` and covariance `[P, C, C]`.

        Raises:
            ValueError: if there are fewer than two images: a covariance needs two.
        """
        if self.count < 2:
            raise ValueError(f"Gaussians need at least 2 normal images, found {self.count}.")
        mean = self.total / self.count
        outer = mean[:, :, None] * mean[:, None, :]
        return mean, (self.products - self.count * outer) / (self.count - 1)


def shrink(covariance: torch.Tensor, weight: float) -> torch.Tensor:
    """(1 - w) Sigma_p + w mean over positions of Sigma + 0.01 I, `[P, C, C]`."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return (1 - weight) * covariance + weight * covariance.mean(dim=0) + REGULARISATION * identity


def log_likelihood(values: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """Mean log density of `[N, P, C]` under N(mean_p, covariance_p), without the constant, a channel."""
    factor = torch.linalg.cholesky(covariance)  # [P, C, C]
    centred = (values.double() - mean).permute(1, 2, 0)  # [P, C, N]
    whitened = torch.linalg.solve_triangular(factor, centred, upper=False)
    log_determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)  # [P], half of that of the covariance
    density = -0.5 * whitened.square().sum(dim=1).mean(dim=1) - log_determinant
    return float(density.mean() / values.shape[-1])


def choose_shrinkage(rest: Iterable[Moments], held_out: Iterable[torch.Tensor]) -> tuple[float, dict[float, float]]:
    """The weight under which held-out good images are most likely.

    Args:
        rest: for each fold the moments of all images that are not in it.
        held_out: the images of each fold, `[N, P, C]`.

    Returns:
        The weight, and the mean log likelihood of each that was tried.
    """
    likelihoods = dict.fromkeys(SHRINKAGES, 0.0)
    for moments, values in zip(rest, held_out, strict=True):
        mean, covariance = moments.gaussian()
        for weight in SHRINKAGES:
            likelihoods[weight] += len(values) * log_likelihood(values, mean, shrink(covariance, weight))
    return max(likelihoods, key=lambda weight: likelihoods[weight]), likelihoods


def principal_components(values: torch.Tensor, count: int) -> torch.Tensor:
    """The directions in which features vary most about their mean at each position, `[N, P, C]` -> `[C, count]`."""
    centred = (values - values.mean(dim=0)).flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    return vectors.flip(1)[:, :count].float()
