"""How good parts look: statistics of a backbone's features themselves, on a fine grid, without any diffusion.

Two kinds, alone or as the mean of both in standard deviations of held-out good images:

- a Gaussian at every position, less what good images have in common as a whole: with mean mu, orthonormal factors B of
  whole feature images and W^T W = Sigma^-1, the distance is |W (I - B B^T)(f - mu)| ("PaDiM", Defard et al., 2020,
  sections III.B and III.C; factors as in `normality_ddad`);
- a memory of patches of good images, anywhere in them: the distance to the nearest ("Towards Total Recall in
  Industrial Anomaly Detection", Roth et al., 2022, section 3.3).

The first knows where things belong, the second forgives where they lie.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

# Factors in one parameter: a file of a checkpoint holds whole parameters and must stay below 10 MB.
FACTORS_TOGETHER = 32
# Rows of features that are compared with the memory at once: their products with 20,000 patches take 160 MB.
ROWS_AT_ONCE = 2048


class DDADAppearanceModel(ModelMixin, ConfigMixin):
    """Statistics of good parts' features, `[N, C, h, w]` as `DDADFeatureExtractor` gives them.

    Args:
        feature_channels: C.
        grid_size: height and width of the grid of positions; features on a finer grid are averaged down to it.
        kind: `"gaussian"`, `"memory"`, or `"both"`.
        num_channels: principal components of the features that the Gaussians model.
        num_factors: principal components of whole feature images that are taken off first.
        num_patches: patches in the memory.
        scales: mean and standard deviation of each kind's distance on held-out good images, which make the two
            comparable; as `{"gaussian": [mean, std], "memory": [mean, std]}`.

    Raises:
        ValueError: if more components are to be modelled than there are channels.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 192,
        grid_size: int = 32,
        kind: str = "both",  # noqa: ARG002 - kept in the config
        num_channels: int = 64,
        num_factors: int = 0,
        num_patches: int = 20_000,
        scales: dict[str, list[float]] | None = None,  # noqa: ARG002 - kept in the config
    ):
        super().__init__()
        if num_channels > feature_channels:
            raise ValueError(f"`num_channels` must be at most {feature_channels}, found {num_channels}.")
        positions, triangle = grid_size**2, num_channels * (num_channels + 1) // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.basis = parameter(feature_channels, num_channels)
        self.mean = parameter(positions, num_channels)
        # Half of the triangular matrices; files of a checkpoint are split between parameters.
        self.whitening = nn.ParameterList(
            [parameter(positions, triangle // 2), parameter(positions, -(-triangle // 2))]
        )
        counts = (min(FACTORS_TOGETHER, num_factors - first) for first in range(0, num_factors, FACTORS_TOGETHER))
        self.factors = nn.ParameterList([parameter(positions * num_channels, count) for count in counts])
        self.patches = parameter(num_patches, feature_channels)
        self._kept: tuple[Any, tuple[torch.Tensor, ...], list[torch.Tensor]] | None = None

    def trimmed(self) -> "DDADAppearanceModel":
        """A model that gives the same and stores nothing that its kind does not use."""
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        used = [part.any(dim=0).nonzero().flatten() for part in self.factors]
        count = sum(len(columns) for columns in used)
        if self.config.kind == "gaussian":
            settings |= {"num_patches": 0, "num_factors": count}
        elif self.config.kind == "memory":
            settings |= {"num_channels": 1, "num_factors": 0}
        else:
            settings |= {"num_factors": count}
        model = type(self)(**settings).to(self.basis.device)
        if self.config.kind != "memory":
            for name in ("basis", "mean"):
                getattr(model, name).copy_(getattr(self, name))
            for own, part in zip(model.whitening, self.whitening, strict=True):
                own.copy_(part)
            factors = torch.cat([part[:, columns] for part, columns in zip(self.factors, used, strict=True)], dim=1)
            model.set_factors(factors)
        if self.config.kind != "gaussian":
            model.patches.copy_(self.patches)
        return model

    # ---------------------------------------------------------------------------------------------------- Gaussians

    def to_grid(self, features: torch.Tensor) -> torch.Tensor:
        """Means over the positions of the grid, `[N, C, h, w]` -> `[N, P, C]`."""
        return F.adaptive_avg_pool2d(features, (self.config.grid_size,) * 2).flatten(2).transpose(1, 2)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """The principal components at each position, `[N, C, h, w]` -> `[N, P, num_channels]`."""
        return self.to_grid(features) @ self.basis.float()

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
        """Stores mean `[P, c]`, covariance `[P, c, c]` of what the factors leave, and factors `[P c, k]`."""
        size = self.config.num_channels
        rows, columns = torch.tril_indices(size, size, device=covariance.device)
        packed = self.whiten(covariance)[:, rows, columns].float()
        first = self.whitening[0].shape[1]
        self.mean.copy_(mean)
        self.whitening[0].copy_(packed[:, :first])
        self.whitening[1].copy_(packed[:, first:])
        self.set_factors(factors)

    @torch.no_grad()
    def set_factors(self, factors: torch.Tensor) -> None:
        """Stores factors, `[P c, k]` with k at most `num_factors`; the others do nothing."""
        for number, part in enumerate(self.factors):
            part.zero_()
            own = factors[:, FACTORS_TOGETHER * number : FACTORS_TOGETHER * number + part.shape[1]]
            part[:, : own.shape[1]].copy_(own)

    @staticmethod
    def gaussian_distance(
        reduced: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """|W (I - B B^T)(f - mu)|, `[N, P, c]` -> `[N, P]`; W is `[P, c, c]`, B `[P c, k]`."""
        flat = (reduced - mean).flatten(1)
        left = (flat - (flat @ factors) @ factors.T).view_as(reduced)
        return torch.bmm(whitening, left.permute(1, 2, 0)).square().sum(dim=1).sqrt().T  # [P, c, N] -> [N, P]

    def unpacked(self) -> tuple[torch.Tensor, ...]:
        """Basis, mean, W as full matrices, and factors, in float32; made once for the weights."""
        weights = [self.basis, self.mean, *self.whitening, *self.factors]
        if any(weight.is_inference() for weight in weights):  # which do not say whether they were changed
            return self._unpack()
        state = tuple((weight.dtype, weight.device, weight.data_ptr(), weight._version) for weight in weights)
        if self._kept is None or self._kept[0] != state:
            # Their memory is held, so that other weights cannot lie where these were.
            self._kept = (state, self._unpack(), [weight.detach() for weight in weights])
        return self._kept[1]

    def _unpack(self) -> tuple[torch.Tensor, ...]:
        none = self.mean.new_zeros(self.mean.numel(), 0, dtype=torch.float32)
        factors = torch.cat([none, *(part.float() for part in self.factors)], dim=1)
        return self.basis.float(), self.mean.float(), self.whitening_matrix(), factors

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the weights, which copies make anew."""
        return {**self.__dict__, "_kept": None}

    def whitening_matrix(self) -> torch.Tensor:
        """W as full matrices, `[P, c, c]`, zero above the diagonal."""
        size = self.config.num_channels
        rows, columns = torch.tril_indices(size, size, device=self.mean.device)
        matrix = torch.zeros(len(self.mean), size, size, device=self.mean.device)
        matrix[:, rows, columns] = torch.cat([part.float() for part in self.whitening], dim=1)
        return matrix

    # ------------------------------------------------------------------------------------------------------- memory

    @staticmethod
    def memory_distance(values: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """The distance of features to the nearest patch, `[N, P, C]` and `[M, C]` -> `[N, P]`."""
        flat, squares = values.flatten(0, 1), patches.square().sum(dim=1)
        nearest = [
            (squares - 2 * rows @ patches.T).amin(dim=1) + rows.square().sum(dim=1)
            for rows in flat.split(ROWS_AT_ONCE)
        ]
        return torch.cat(nearest).clamp(min=0).sqrt().view(values.shape[:2])

    # --------------------------------------------------------------------------------------------------------- both

    def combine(
        self, distances: dict[str, torch.Tensor], scales: dict[str, Sequence[float]] | None = None
    ) -> torch.Tensor:
        """One of the two kinds, or the mean of both in standard deviations of held-out good images.

        Args:
            distances: by kind.
            scales: mean and standard deviation of each; None takes those that are stored.
        """
        if self.config.kind != "both":
            return distances[self.config.kind]
        scaled = [(distances[kind] - mean) / std for kind, (mean, std) in (scales or self.config.scales).items()]
        return torch.stack(scaled).mean(dim=0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """How unusual each position is, `[N, C, h, w]` -> `[N, 1, grid_size, grid_size]`, in float32."""
        values, distances = self.to_grid(features.float()), {}
        if self.config.kind != "memory":
            basis, mean, whitening, factors = self.unpacked()
            distances["gaussian"] = self.gaussian_distance(values @ basis, mean, whitening, factors)
        if self.config.kind != "gaussian":
            distances["memory"] = self.memory_distance(values, self.patches.float())
        return self.combine(distances).view(-1, 1, self.config.grid_size, self.config.grid_size)
