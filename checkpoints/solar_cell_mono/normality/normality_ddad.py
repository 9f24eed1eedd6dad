"""The model of normality: a Gaussian at every position of a feature grid, and the Mahalanobis distance to it.

Source: "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization" (Defard et al., 2020),
sections III.B and III.C; "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023).
Beside the features F(x_0) themselves, Gaussians are fitted to the residuals F(x_0) - f(x_t, t) of the U-Net's
prediction at each noise level.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


class DDADNormalityModel(ModelMixin, ConfigMixin):
    """Several models of normality, each a Gaussian N(mu, Sigma) at every position of a square grid.

    Stored is the inverse W of Sigma's Cholesky factor, so that the distance is |W (f - mu)|: a product, no solver,
    differentiable in the features. Of the triangular W only the lower half is kept.

    Args:
        feature_channels: channels of the features that come in.
        num_channels: size of the random subset of channels that is modelled (100 in PaDiM for ResNet-18).
        grid_size: height and width of the grid; features on a finer grid are averaged down to it.
        num_gaussians: how many models are held, one for each kind of feature or residual.
        num_calibration_images: held-out normal images whose calibrated maps are kept.
        num_calibration_maps: maps kept of each, one for each score and noise level.
        calibration_size: height and width of those maps.
        channel_seed: seed of the random subset.

    Raises:
        ValueError: if the subset is larger than the features.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    epsilon = 0.01  # PaDiM's regularisation of the covariance (Defard et al., equation 1)

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 176,
        num_channels: int = 100,
        grid_size: int = 16,
        num_gaussians: int = 4,
        num_calibration_images: int = 0,
        num_calibration_maps: int = 12,
        calibration_size: int = 32,
        channel_seed: int = 0,  # noqa: ARG002 - kept in the config
    ):
        super().__init__()
        if num_channels > feature_channels:
            raise ValueError(f"`num_channels` must be at most {feature_channels}, found {num_channels}.")
        positions, triangle = grid_size**2, num_channels * (num_channels + 1) // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        # One parameter a model, and not one for all: files of a checkpoint are split between parameters.
        self.mean = nn.ParameterList([parameter(positions, num_channels) for _ in range(num_gaussians)])
        self.whitening = nn.ParameterList([parameter(positions, triangle) for _ in range(num_gaussians)])
        self.calibration_maps = parameter(
            num_calibration_images, num_calibration_maps, calibration_size, calibration_size
        )

    @property
    def channels(self) -> torch.Tensor:
        """Indices of the modelled channels, `[num_channels]`, in ascending order."""
        generator = torch.Generator().manual_seed(self.config.channel_seed)
        order = torch.randperm(self.config.feature_channels, generator=generator)
        return order[: self.config.num_channels].sort().values

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Picks the modelled channels and averages to the grid: `[N, C, h, w]` -> `[N, positions, num_channels]`."""
        features = features[:, self.channels.to(features.device)]
        size = (self.config.grid_size, self.config.grid_size)
        return F.adaptive_avg_pool2d(features, size).flatten(2).transpose(1, 2)

    def whitening_matrix(self, index: int) -> torch.Tensor:
        """W of one model as full matrices, `[positions, num_channels, num_channels]`, zero above the diagonal."""
        size = self.config.num_channels
        whitening = self.whitening[index]
        rows, columns = torch.tril_indices(size, size, device=whitening.device)
        matrix = whitening.new_zeros(len(whitening), size, size)
        matrix[:, rows, columns] = whitening
        return matrix

    @torch.no_grad()
    def fit(self, index: int, batches: Iterable[torch.Tensor]) -> None:
        """Fits model `index` to features (or residuals) of normal images, batches of `[N, C, h, w]`.

        Sums run in float64 over one pass, so that any number of images fits in memory.

        Raises:
            ValueError: if there are fewer than two images: a covariance needs two.
        """
        count, total, products = 0, 0.0, 0.0
        for features in batches:
            values = self.reduce(features).double()  # [N, P, c]
            count += len(values)
            total = total + values.sum(dim=0)
            products = products + torch.einsum("npc,npd->pcd", values, values)
        if count < 2:
            raise ValueError(f"A model of normality needs at least 2 normal images, found {count}.")
        mean = total / count  # [P, c]
        covariance = (products - count * torch.einsum("pc,pd->pcd", mean, mean)) / (count - 1)
        identity = torch.eye(self.config.num_channels, dtype=torch.float64, device=mean.device)
        factor = torch.linalg.cholesky(covariance + self.epsilon * identity)
        whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        rows, columns = torch.tril_indices(self.config.num_channels, self.config.num_channels, device=mean.device)
        self.mean[index].copy_(mean)
        self.whitening[index].copy_(whitening[:, rows, columns])

    def forward(self, features: torch.Tensor, index: int) -> torch.Tensor:
        """Mahalanobis distance to model `index` at each position, `[N, C, h, w]` -> `[N, 1, grid_size, grid_size]`.

        Differentiable in `features`. Computed in float32 whatever the weights' type.
        """
        centred = self.reduce(features).float() - self.mean[index].float()  # [N, P, c]
        whitened = torch.einsum("pcd,npd->npc", self.whitening_matrix(index).float(), centred)
        # The root has no slope at zero; the constant is far below the distance of any image.
        distance = (whitened.square().sum(dim=-1) + 1e-12).sqrt()
        return distance.view(-1, 1, self.config.grid_size, self.config.grid_size)
