"""The model of normality: a Gaussian of residuals, and all that was measured on normal images to judge scores by.

Source: "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization" (Defard et al., 2020),
sections III.B and III.C; "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023).
Gaussians are fitted to the residuals F(x_0) - f(x_t, t) of the U-Net's prediction, less what good images have in
common as a whole: with mean mu, orthonormal factors B of whole feature
images and W^T W = Sigma^-1 at each position, the score is |W (I - B B^T)(r - mu)|, the noise of factor analysis
("Modeling the manifolds of images of handwritten digits", Hinton et al., 1997), its covariance another at each
position.

Score maps of held-out normal images give each score its mean and standard deviation, the threshold, and the level down
to which a defect reaches. The authors' program normalises by each image's own statistics instead, after which two
images cannot be compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


class DDADNormalityModel(ModelMixin, ConfigMixin):
    """A Gaussian N(mu, Sigma) of residuals at every position of a square grid, and calibration.

    Stored is the inverse W of Sigma's Cholesky factor, so that the distance is |W (f - mu)|: a product, no solver,
    differentiable in the features. Of the triangular W only the lower half is kept.

    Args:
        feature_channels: channels of the features that come in.
        num_channels: how many principal components of the features are modelled; `basis` holds their directions.
        grid_size: height and width of the grid; features on a finer grid are averaged down to it.
        timesteps: the noise levels that score images, as timesteps of the training process; about {20, 200, 400} of
            1000 in the paper. One Gaussian serves the residuals at all of them, which hardly differ.
        num_calibration_images: held-out normal images whose calibrated maps are kept, one for each score and level;
            that of appearance is the same at all levels, and kept once.
        calibration_size: height and width of those maps, and of the cells that image scores are made of: at 256x256 a
            cell of 8x8 pixels has the 64 pixels of the authors' image score.
        statistics: mean and standard deviation of each score on held-out normal images, one for each of its maps, as
            `{"kl_mean": [...], "kl_std": [...], "mahalanobis_mean": ...}`. Without them nothing can be judged.
        threshold_quantile: the part of held-out normal images that the measured threshold lets pass.
        num_top_cells: an image's score is the mean of so many of its highest cells.
        num_factors: how many principal components of whole feature images are taken off the residuals before their
            distance is measured: what good parts have in common as a whole is no defect.
        appearance: whether the score of `DDADAppearanceModel` is calibrated too; it is the same at all noise levels.
        prediction_factor: where few images are held out, how many standard deviations above their mean the threshold
            lies at least, with any settings; see `predictive_limit`.

    Raises:
        ValueError: if more dimensions are to be modelled than there are, or statistics do not fit `timesteps`.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    pixel_scores = ("kl",)

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 176,
        num_channels: int = 100,
        grid_size: int = 16,
        timesteps: tuple[int, ...] = (20, 201, 401),  # noqa: ARG002 - kept in the config
        num_calibration_images: int = 0,
        calibration_size: int = 32,
        statistics: dict[str, list[float]] | None = None,
        threshold_quantile: float = 0.95,  # noqa: ARG002 - kept in the config
        num_top_cells: int = 1,
        num_factors: int = 0,
        appearance: bool = False,  # noqa: ARG002 - kept in the config
        prediction_factor: float | None = None,  # noqa: ARG002 - kept in the config
    ):
        super().__init__()
        if num_channels > feature_channels:
            raise ValueError(f"`num_channels` must be at most {feature_channels}, found {num_channels}.")
        if statistics is not None:
            self._check_statistics(statistics)
        if num_top_cells > calibration_size**2:
            raise ValueError(f"`num_top_cells` must be at most {calibration_size**2}, found {num_top_cells}.")
        positions, triangle = grid_size**2, num_channels * (num_channels + 1) // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape), requires_grad=False)

        self.mean = parameter(positions, num_channels)
        self.whitening = parameter(positions, triangle)
        self.basis = parameter(feature_channels, num_channels)
        if num_factors:
            self.factors = parameter(positions * num_channels, num_factors)
        num_maps = sum(map(self.num_maps, self.scores))
        self.calibration_maps = parameter(num_calibration_images, num_maps, calibration_size, calibration_size)
        self._kept: tuple[Any, tuple[torch.Tensor, ...], list[torch.Tensor]] | None = None

    # ---------------------------------------------------------------------------------------------------- Gaussians

    def to_grid(self, features: torch.Tensor) -> torch.Tensor:
        """Means over the positions of the grid, `[N, C, h, w]` -> `[N, positions, C]`."""
        return F.adaptive_avg_pool2d(features, (self.config.grid_size,) * 2).flatten(2).transpose(1, 2)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Averages to the grid and projects: `[N, C, h, w]` -> `[N, positions, num_channels]`."""
        pooled = self.to_grid(features)
        return pooled @ self.basis.to(pooled.dtype)

    def unpacked(self) -> tuple[torch.Tensor, ...]:
        """Mean, W as full matrices, and factors, in float32; made once for the weights."""
        weights = [self.mean, self.whitening, *([self.factors] if self.config.num_factors else [])]
        if any(weight.is_inference() for weight in weights):  # which do not say whether they were changed
            return self._unpack()
        state = tuple((weight.dtype, weight.device, weight.data_ptr(), weight._version) for weight in weights)
        if self._kept is None or self._kept[0] != state:
            # Their memory is held, so that other weights cannot lie where these were.
            self._kept = (state, self._unpack(), [weight.detach() for weight in weights])
        return self._kept[1]

    def _unpack(self) -> tuple[torch.Tensor, ...]:
        factors = (self.factors.float(),) if self.config.num_factors else ()
        return (self.mean.float(), self.whitening_matrix().float(), *factors)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the weights, which copies make anew."""
        return {**self.__dict__, "_kept": None}

    def whitening_matrix(self) -> torch.Tensor:
        """W as full matrices, `[positions, num_channels, num_channels]`, zero above the diagonal."""
        size = self.config.num_channels
        rows, columns = torch.tril_indices(size, size, device=self.whitening.device)
        matrix = self.whitening.new_zeros(len(self.whitening), size, size)
        matrix[:, rows, columns] = self.whitening
        return matrix

    @torch.no_grad()
    def set_gaussian(self, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        """Stores mean `[P, c]` and covariance `[P, c, c]`, which must be positive definite.

        Raises:
            torch.linalg.LinAlgError: if it is not.
        """
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(self.config.num_channels, dtype=factor.dtype, device=factor.device)
        whitening = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        rows, columns = torch.tril_indices(self.config.num_channels, self.config.num_channels, device=factor.device)
        self.mean.copy_(mean)
        self.whitening.copy_(whitening[:, rows, columns])

    @torch.no_grad()
    def set_factors(self, factors: torch.Tensor) -> None:
        """Stores orthonormal factors, `[P c, k]` with k at most `num_factors`; the others do nothing."""
        if self.config.num_factors:
            self.factors.zero_()
            self.factors[:, : factors.shape[1]].copy_(factors)

    @staticmethod
    def unexplained(centred: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """(I - B B^T) x with orthonormal factors B of whole feature images, `[P c, k]`; x is `[N, P, c]`, less mu."""
        flat = centred.flatten(1)
        return (flat - (flat @ factors) @ factors.T).view_as(centred)

    def distance(self, reduced: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance of what the factors leave, `[N, P, c]` as `reduce` gives them -> `[N, 1, g, g]`.

        Computed in float32 whatever the weights' type.
        """
        mean, whitening, *factors = self.unpacked()
        centred = reduced.float() - mean  # [N, P, c]
        if factors:
            centred = self.unexplained(centred, factors[0])
        whitened = torch.einsum("pcd,npd->npc", whitening, centred)
        # The root has no slope at zero; the constant is far below the distance of any image.
        distance = (whitened.square().sum(dim=-1) + 1e-12).sqrt()
        return distance.view(-1, 1, self.config.grid_size, self.config.grid_size)

    def forward(self, residuals: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance at each position, `[N, C, h, w]` -> `[N, 1, grid_size, grid_size]`.

        Differentiable in `residuals`; see `distance`.
        """
        return self.distance(self.reduce(residuals))

    # -------------------------------------------------------------------------------------------------- calibration

    @property
    def feature_scores(self) -> tuple[str, ...]:
        """The names of the feature scores; `sum` is the mean of two, calibrated."""
        return ("mahalanobis", *(("appearance", "sum") if self.config.appearance else ()))

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of all scores that are measured, in the order of the stored maps."""
        return (*self.pixel_scores, "mahalanobis", *(("appearance",) if self.config.appearance else ()))

    def num_maps(self, score: str) -> int:
        """How many maps of a measured score an image has: one for each noise level, but for appearance."""
        return 1 if score == "appearance" else len(self.config.timesteps)

    @staticmethod
    def parts(score: str) -> tuple[str, ...]:
        """The measured scores whose mean a score is."""
        return ("appearance", "mahalanobis") if score == "sum" else (score,)

    def _check_statistics(self, statistics: dict[str, list[float]]) -> None:
        wanted = {f"{score}_{name}": self.num_maps(score) for score in self.scores for name in ("mean", "std")}
        if statistics.keys() != wanted.keys():
            raise ValueError(f"`statistics` must be of {', '.join(sorted(wanted))}, found {', '.join(statistics)}.")
        for name, values in statistics.items():
            if len(values) != wanted[name]:
                raise ValueError(f"`statistics` need {wanted[name]} values of {name}, found {len(values)}.")
            if name.endswith("_std") and min(values) <= 0:
                raise ValueError(f"`statistics` must have positive deviations, found {min(values)} of {name}.")

    def check(self, alpha: float, timesteps: Sequence[int], pixel_score: str, feature_score: str) -> None:
        """Raises a ValueError that names the argument, the rule and the value found."""
        if self.config.statistics is None:
            raise ValueError(
                "This pipeline is not calibrated: train it with `ddad train`, which measures `statistics`."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must lie in [0, 1], found {alpha}.")
        if len(timesteps) == 0 or len(set(timesteps)) != len(timesteps):
            raise ValueError(f"`timesteps` must be one or more different noise levels, found {list(timesteps)}.")
        levels = list(self.config.timesteps)
        unknown = [timestep for timestep in timesteps if timestep not in levels]
        if unknown:
            raise ValueError(f"`timesteps` {unknown} are not calibrated in this pipeline; choose from {levels}.")
        for name, value, allowed in (
            ("pixel_score", pixel_score, self.pixel_scores),
            ("feature_score", feature_score, self.feature_scores),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, found {value!r}.")

    def index(self, timesteps: Sequence[int]) -> list[int]:
        """Positions of noise levels among those that are modelled."""
        return [list(self.config.timesteps).index(timestep) for timestep in timesteps]

    def feature_maps(
        self, residuals: torch.Tensor, timesteps: Sequence[int], scores: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Feature scores before calibration: how large, or how unusual, the error of the predicted features is.

        Args:
            residuals: F(x_0) - f(x_t, t), `[N, K, C, h, w]`.
            timesteps: the K noise levels.
            scores: `mahalanobis`, the distance to the Gaussian of normal residuals at its position, `[N, K, g, g]`.
        """
        if "mahalanobis" not in scores:
            return {}
        distances = [self(residuals[:, k]) for k in range(len(timesteps))]
        return {"mahalanobis": torch.cat(distances, dim=1)}

    def calibrate(self, name: str, maps: torch.Tensor, timesteps: Sequence[int]) -> torch.Tensor:
        """Maps `[N, K, S, S]` in units of normal images: minus their mean, over their standard deviation.

        Those of appearance are `[N, 1, S, S]`.
        """
        index = self.index(timesteps) if self.num_maps(name) > 1 else [0]
        mean, std = (
            torch.tensor(self.config.statistics[f"{name}_{statistic}"], device=maps.device)[index].view(1, -1, 1, 1)
            for statistic in ("mean", "std")
        )
        return (maps - mean) / std

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Means over the cells that image scores are made of, `[..., S, S]` -> `[..., 32, 32]`."""
        return F.adaptive_avg_pool2d(maps, (self.config.calibration_size,) * 2)

    def image_score(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """The mean of the highest cells of each map, `[N, S, S]` -> `[N]`."""
        return self.top_cells(self.pool(anomaly_maps).flatten(1), self.config.num_top_cells)

    @staticmethod
    def top_cells(cells: torch.Tensor, count: int) -> torch.Tensor:
        """The mean of the `count` highest, `[N, cells]` -> `[N]`."""
        return cells.topk(count, dim=1).values.mean(dim=1)

    @staticmethod
    def predictive_limit(scores: np.ndarray, quantile: float, factor: float) -> np.ndarray:
        """Where a threshold lies by the scores of few good images, `[..., M]` -> `[...]`.

        Their quantile lets too many of the next ones fail. So it lies no lower than mean + factor * deviation, with a
        factor of sqrt(1 + 1/M) t_{M-1}(quantile) Student's predictive quantile ("Statistical Intervals",
        Meeker, Hahn and Escobar, 2017, section 4.7).
        """
        predicted = scores.mean(axis=-1) + np.float64(factor) * scores.std(axis=-1, ddof=1)
        return np.maximum(np.quantile(scores, quantile, axis=-1), predicted)

    @staticmethod
    def fuse(pixel_maps: torch.Tensor, feature_maps: torch.Tensor, alpha: float) -> torch.Tensor:
        """A = 1/K sum over noise levels of alpha pixel + (1 - alpha) feature (the paper's map), `[N, S, S]`."""
        return (alpha * pixel_maps + (1 - alpha) * feature_maps).mean(dim=1)

    def normal_maps(
        self, alpha: float, timesteps: Sequence[int], pixel_score: str = "kl", feature_score: str = "mahalanobis"
    ) -> torch.Tensor | None:
        """The anomaly maps of the held-out normal images in cells, `[M, cells]`; None if none are stored.

        `top_cells` of them are those images' scores.
        """
        if not self.config.num_calibration_images:
            return None
        counts = [self.num_maps(score) for score in self.scores]
        by_score = dict(zip(self.scores, self.calibration_maps.float().split(counts, dim=1), strict=True))
        index = self.index(timesteps)
        pixel, feature = (
            torch.stack(
                [by_score[part].expand(-1, len(self.config.timesteps), -1, -1) for part in self.parts(name)]
            ).mean(dim=0)[:, index]
            for name in (pixel_score, feature_score)
        )  # [M, K, 32, 32]
        return self.fuse(pixel, feature, alpha).flatten(1)

    def limits(
        self, alpha: float, timesteps: Sequence[int], pixel_score: str = "kl", feature_score: str = "mahalanobis"
    ) -> tuple[float | None, float | None]:
        """Threshold and mask level, from the stored maps of held-out normal images; None without such maps.

        The threshold is the quantile `threshold_quantile` of their image scores, of few `predictive_limit`. The mask
        level is the 99 % quantile of their cells: how far a defect region grows from the cells above the threshold.
        """
        fused = self.normal_maps(alpha, timesteps, pixel_score, feature_score)  # [M, cells]
        if fused is None:
            return None, None
        scores = self.top_cells(fused, self.config.num_top_cells)
        quantile, factor = self.config.threshold_quantile, self.config.prediction_factor
        threshold = (
            float(torch.quantile(scores, quantile))
            if factor is None
            else float(self.predictive_limit(scores.numpy(), quantile, factor))
        )
        # torch.quantile refuses more than 16 M values.
        cells = fused.flatten().sort().values
        return threshold, float(cells[int(0.99 * (len(cells) - 1))])
