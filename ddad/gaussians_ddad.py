"""How good parts look: a Gaussian of features at every position of a grid, less what good images have in common.

Source: "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization" (Defard et al., 2020),
sections III.B and III.C. With mean mu, orthonormal factors B of whole feature images and W^T W = Sigma^-1 at each
position, the distance is |W (I - B B^T)(f - mu)|, the noise of factor analysis ("Modeling the manifolds of images of
handwritten digits", Hinton et al., 1997), its covariance another at each position.

A pipeline has two of them: `residual`, of the errors F(x_0) - f(x_t, t) of the U-Net's prediction, and `appearance`,
of a backbone's features themselves.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

_loaded_before = globals().get("DDADGaussianModel")

# Factors in one parameter: a file of a checkpoint holds whole parameters and must stay below 10 MB.
FACTORS_TOGETHER = 32
# A factor's share of what is looked at, below which it is not estimated from that alone.
LEAST_INSIDE = 0.1


class DDADGaussianModel(ModelMixin, ConfigMixin):
    """A Gaussian N(mu, Sigma) of features at every position of a square grid, and factors of the whole.

    Stored is the inverse W of Sigma's Cholesky factor, so that the distance is a product, no solver, differentiable in
    the features. Of the triangular W only the lower half is kept.

    Args:
        feature_channels: C, channels of the features that come in.
        num_channels: c, how many principal components of the features are modelled; `basis` holds their directions.
        grid_size: height and width of the grid, P = grid_size^2 positions; features on a finer grid are averaged down.
        num_factors: principal components of whole feature images, which are taken off before the distance is measured:
            what good parts have in common as a whole is no defect.

    Raises:
        ValueError: if more components are to be modelled than there are channels.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 176,
        num_channels: int = 64,
        grid_size: int = 16,
        num_factors: int = 0,
    ):
        super().__init__()
        if num_channels > feature_channels:
            raise ValueError(f"`num_channels` must be at most {feature_channels}, found {num_channels}.")
        positions, triangle = grid_size**2, num_channels * (num_channels + 1) // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.basis = parameter(feature_channels, num_channels)
        self.mean = parameter(positions, num_channels)
        # Two halves of the triangles, since files of a checkpoint are split between parameters.
        self.whitening = nn.ParameterList(
            [parameter(positions, triangle // 2), parameter(positions, -(-triangle // 2))]
        )
        counts = (min(FACTORS_TOGETHER, num_factors - first) for first in range(0, num_factors, FACTORS_TOGETHER))
        self.factors = nn.ParameterList([parameter(positions * num_channels, count) for count in counts])
        self._kept: tuple[Any, tuple[torch.Tensor, torch.Tensor, torch.Tensor], list[torch.Tensor]] | None = None

    # ------------------------------------------------------------------------------------------------------ distance

    def to_grid(self, features: torch.Tensor) -> torch.Tensor:
        """Means over the positions of the grid, `[N, C, h, w]` -> `[N, P, C]`."""
        return F.adaptive_avg_pool2d(features, (self.config.grid_size,) * 2).flatten(2).transpose(1, 2)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """The principal components at each position, `[N, C, h, w]` -> `[N, P, c]`, float32."""
        return self.to_grid(features.float()) @ self.basis.float()

    @staticmethod
    def unexplained(centred: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """(I - B B^T) x with orthonormal factors B of whole feature images, `[P c, k]`; x is `[N, P, c]`, less mu."""
        flat = centred.flatten(1)
        return (flat - (flat @ factors) @ factors.T).view_as(centred)

    @classmethod
    def mahalanobis(
        cls, reduced: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """|W (I - B B^T)(f - mu)|, `[N, P, c]` -> `[N, P]`; W is `[P, c, c]`, B `[P c, k]`."""
        left = cls.unexplained(reduced - mean, factors)
        whitened = torch.bmm(whitening, left.permute(1, 2, 0))  # [P, c, N]
        # The root has no slope at zero; the constant is far below the distance of any image.
        return (whitened.square().sum(dim=1) + 1e-12).sqrt().T

    def distance(self, reduced: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """The distance at each position, `[N, P, c]` as `reduce` gives them -> `[N, P]`.

        Args:
            reduced: features of images.
            inside: which positions are looked at, `[P]` bool; None for all. What lies at the others changes nothing.
        """
        mean, whitening, factors = self.unpacked()
        if inside is None:
            return self.mahalanobis(reduced, mean, whitening, factors)
        chosen = inside.to(mean.device)
        factors = self.factors_inside(factors.view(*mean.shape, -1)[chosen].flatten(0, 1))
        found = reduced.new_zeros(reduced.shape[:2])
        found[:, chosen] = self.mahalanobis(reduced[:, chosen], mean[chosen], whitening[chosen], factors)
        return found

    @staticmethod
    def factors_inside(factors: torch.Tensor) -> torch.Tensor:
        """Factors of some positions alone, from the rows of all factors there, `[P' c, k]`: U with x - U U^T x left.

        With rows B' and B'^T B' = V L V^T that is U = B' V L^-1/2, by which x - U U^T x is what the least squares of x
        on B' leave. Of a direction with less than a tenth inside less is taken off: it would explain anything.
        """
        values, vectors = torch.linalg.eigh(factors.T @ factors)
        return factors @ (vectors / values.clamp(min=LEAST_INSIDE).sqrt())

    def forward(self, features: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """The distance at each position, `[N, C, h, w]` -> `[N, 1, grid_size, grid_size]`.

        Computed in float32 whatever the weights' type, and differentiable in `features`; `inside` as for `distance`.
        """
        return self.to_map(self.distance(self.reduce(features), inside))

    def to_map(self, distances: torch.Tensor) -> torch.Tensor:
        """Distances at the positions as a map, `[N, P]` -> `[N, 1, grid_size, grid_size]`."""
        return distances.reshape(-1, 1, self.config.grid_size, self.config.grid_size)

    # ------------------------------------------------------------------------------------------------------- weights

    def unpacked(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean `[P, c]`, W as full matrices `[P, c, c]`, factors `[P c, k]`, in float32; made once for the weights."""
        weights = [self.mean, *self.whitening, *self.factors]
        if any(weight.is_inference() for weight in weights):  # which do not say whether they were changed
            return self._unpack()
        state = tuple((weight.dtype, weight.device, weight.data_ptr(), weight._version) for weight in weights)
        if self._kept is None or self._kept[0] != state:
            # Their memory is held, so that other weights cannot lie where these were.
            self._kept = (state, self._unpack(), [weight.detach() for weight in weights])
        return self._kept[1]

    def _unpack(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size, none = self.config.num_channels, self.mean.new_zeros(self.mean.numel(), 0, dtype=torch.float32)
        rows, columns = torch.tril_indices(size, size, device=self.mean.device)
        whitening = torch.zeros(len(self.mean), size, size, device=self.mean.device)
        whitening[:, rows, columns] = torch.cat([half.float() for half in self.whitening], dim=1)
        return self.mean.float(), whitening, torch.cat([none, *(part.float() for part in self.factors)], dim=1)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the weights, which copies make anew."""
        return {**self.__dict__, "_kept": None}

    @staticmethod
    def whiten(covariance: torch.Tensor) -> torch.Tensor:
        """W, the inverse of the Cholesky factor of Sigma, `[P, c, c]`.

        Raises:
            torch.linalg.LinAlgError: if Sigma is not positive definite.
        """
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)

    @torch.no_grad()
    def set_gaussian(self, mean: torch.Tensor, covariance: torch.Tensor, factors: torch.Tensor) -> None:
        """Stores mean `[P, c]`, covariance `[P, c, c]` of what the factors leave, and orthonormal factors `[P c, k]`.

        Of fewer factors than there is room for, the others do nothing.

        Raises:
            torch.linalg.LinAlgError: if the covariance is not positive definite.
        """
        size = self.config.num_channels
        rows, columns = torch.tril_indices(size, size, device=covariance.device)
        packed = self.whiten(covariance)[:, rows, columns]
        first = self.whitening[0].shape[1]
        self.mean.copy_(mean)
        self.whitening[0].copy_(packed[:, :first])
        self.whitening[1].copy_(packed[:, first:])
        for own in self.factors:
            own.zero_()
        for own, part in zip(self.factors, factors.split(FACTORS_TOGETHER, dim=1), strict=False):
            own[:, : part.shape[1]].copy_(part)


# diffusers runs a file of code anew for every component that names it, here two, and for every checkpoint. One file is
# one class, or what was loaded first could not be given to another process.
if _loaded_before is not None and _loaded_before.source_code == DDADGaussianModel.source_code:
    globals()["DDADGaussianModel"] = _loaded_before
