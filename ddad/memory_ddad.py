"""What good parts look like wherever it lies: the distance of features to the nearest remembered patch.

Source: "Towards Total Recall in Industrial Anomaly Detection" (Roth et al., CVPR 2022), section 3: a memory M of
patches of good images, and the distance min_{m in M} |f - m|. Two things differ. Distances are measured in units of
how features vary at a position, W^T W = (mean over positions of Sigma)^-1, as a Gaussian measures them. And patches
that are rare among good images lie far from each other, so that good parts would seem unusual there: a part of each
patch's own distance to its nearest neighbour in other good images is taken off, as the density of a place is in "LOF:
Identifying Density-Based Local Outliers" (Breunig et al., 2000).

A Gaussian at every position (`DDADGaussianModel`) knows where on the part something may be; this knows what may be
anywhere, and finds its way where parts are moved, turned or many kinds of one.
"""

from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


class DDADMemory(ModelMixin, ConfigMixin):
    """Patches of good images' features.

    Args:
        num_channels: c, principal components of the features, as `DDADGaussianModel.reduce` gives them.
        num_patches: M, how many patches are remembered.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(self, num_channels: int = 64, num_patches: int = 20_000):
        super().__init__()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.whitening = parameter(num_channels, num_channels)
        self.patches = parameter(num_patches, num_channels)
        self.radius = parameter(num_patches)

    @staticmethod
    def nearest(
        values: torch.Tensor, patches: torch.Tensor, lengths: torch.Tensor, radius: torch.Tensor
    ) -> torch.Tensor:
        """|f - m| - r_m of the nearest patch m, `[N, c]`, `[M, c]` and |m|^2 and r_m `[M]` -> `[N]`."""
        # |f - m|^2 - |f|^2, which has its least where the distance has.
        least = torch.addmm(lengths, values, patches.T, alpha=-2).min(dim=-1)
        distance = (least.values + values.square().sum(dim=-1)).clamp(min=1e-12).sqrt()
        return distance - radius[least.indices]

    def distance(self, reduced: torch.Tensor) -> torch.Tensor:
        """The distance at each position, `[N, P, c]` -> `[N, P]`; in float32 whatever the weights' type."""
        patches, radius = self.patches.float(), self.radius.float()
        lengths, white = patches.square().sum(dim=1), reduced.float() @ self.whitening.float()
        # Some positions at a time: the distances of a whole image to all patches fill 80 MB, and no cache.
        parts = [self.nearest(some, patches, lengths, radius) for some in white.flatten(0, 1).split(128)]
        return torch.cat(parts).view(reduced.shape[:-1])

    def forward(self, reduced: torch.Tensor) -> torch.Tensor:
        """As `distance`."""
        return self.distance(reduced)
