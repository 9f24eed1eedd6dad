"""What was measured on good images to judge scores by: the units of each score, the image score, the threshold.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023) for the anomaly map.

Score maps of held-out good images give each score its mean and standard deviation, the threshold, and the level down
to which a defect reaches. The authors' program normalises by each image's own statistics instead, after which two
images cannot be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

# Fewer scores of good images than these have no quantiles worth the name.
FEW_SCORES = 50
# So many scores lie above a threshold that is their quantile; beyond, a tail is fitted to at least so many.
LEAST_ABOVE, LEAST_TAIL = 2.5, 10


def student_quantile(above: float, freedom: int) -> float:
    """The value that so large a part of Student's t distribution lies above.

    Source: "Algorithm 396: Student's t-Quantiles" (Hill, Communications of the ACM, 1970); to some 1e-4.
    """
    both, n = 2 * above, freedom
    if n == 1:
        return float(1 / np.tan(np.pi * above))
    if n == 2:
        return float(np.sqrt(2 / (both * (2 - both)) - 2))
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * np.sqrt(a * np.pi / 2) * n
    y = (d * both) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(above)
        y = x**2
        c += 0.3 * (n - 4.5) * (x + 0.6) if n < 5 else 0
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = np.expm1(a * y**2)
    else:
        y = 1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)
        y = (y * (d * both) ** (2 / n) - 1) * (n + 1) / (n + 2) + 1 / (d * both) ** (2 / n)
    return float(np.sqrt(n * y))


@dataclass(frozen=True)
class DDADJudgement:
    """What a verdict is made of.

    Attributes:
        alpha: weight of the pixel score in [0, 1].
        timesteps: the noise levels that score, ascending.
        pixel_score: `"kl"`, or None where it weighs nothing and nobody asked for it: then it is not evaluated.
        feature_score: one of `DDADCalibration.feature_scores`.
        tolerance: `"strict"`: the threshold holds for photographs like the held-out ones; `"tolerant"`: as if every
            other one of these were moved and taken under another lamp, lens or sensor.
    """

    alpha: float
    timesteps: tuple[int, ...]
    pixel_score: str | None
    feature_score: str
    tolerance: str = "strict"

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that are evaluated, the feature score last."""
        return (self.feature_score,) if self.pixel_score is None else (self.pixel_score, self.feature_score)


class DDADCalibration(ModelMixin, ConfigMixin):
    """Noise levels, units of the scores, and the score maps of held-out good images, from which thresholds follow.

    Args:
        timesteps: the noise levels that score images, as timesteps of the training process; about {20, 200, 400} of
            1000 in the paper.
        num_calibration_images: held-out good images whose calibrated maps are kept, one for each score and level;
            those of appearance and memory are the same at all levels, and kept once.
        num_changed_images: so many more maps are kept: of every second one of those images, changed as tomorrow's
            photographs may be; 0 knows one tolerance alone.
        calibration_size: height and width of those maps, and of the cells that image scores are made of: at 256x256 a
            cell of 8x8 pixels has the 64 pixels of the authors' image score.
        statistics: mean and standard deviation of each score on held-out good images, one for each of its maps, as
            `{"kl_mean": [...], "kl_std": [...], "residual_mean": ...}`; those of `memory` may be missing. Without any
            nothing can be judged.
        threshold_quantile: the part of held-out good images that the measured threshold lets pass.
        num_top_cells: an image's score is the mean of so many of its highest cells.
        region_size: height and width of the stored region, outside of which nothing decides; 0 looks everywhere.

    Raises:
        ValueError: if statistics do not fit `timesteps`, or there are fewer cells than make a score.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    pixel_scores = ("kl",)
    feature_scores = ("residual", "appearance", "gaussians", "memory", "sum")  # see `weights`
    network_scores = ("kl", "residual")  # that ask the U-Net
    look_scores = ("appearance", "memory")  # that do not, and are the same at all noise levels
    all_scores = (*network_scores, *look_scores)  # that are measured, in the order of the stored maps
    tolerances = ("strict", "tolerant")

    @register_to_config
    def __init__(
        self,
        timesteps: tuple[int, ...] = (20, 201, 401),  # noqa: ARG002 - kept in the config
        num_calibration_images: int = 0,
        calibration_size: int = 32,
        statistics: dict[str, list[float]] | None = None,
        threshold_quantile: float = 0.95,  # noqa: ARG002 - kept in the config
        num_top_cells: int = 1,
        num_changed_images: int = 0,
        region_size: int = 0,
    ):
        super().__init__()
        if statistics is not None:
            self._check_statistics(statistics)
        if num_top_cells > calibration_size**2:
            raise ValueError(f"`num_top_cells` must be at most {calibration_size**2}, found {num_top_cells}.")
        if num_changed_images not in (0, num_calibration_images // 2):
            raise ValueError(
                f"`num_changed_images` must be 0 or {num_calibration_images // 2}, found {num_changed_images}."
            )
        count = num_calibration_images + num_changed_images
        shape = (count, sum(map(self.num_maps, self.scores)), calibration_size, calibration_size)
        self.calibration_maps = nn.Parameter(torch.zeros(shape), requires_grad=False)
        region = nn.Parameter(torch.ones(region_size, region_size), requires_grad=False) if region_size else None
        self.register_parameter("region", region)

    # -------------------------------------------------------------------------------------------------------- region

    def with_false_alarms(self, rate: float) -> "DDADCalibration":
        """The same with another part of good images that may be called defective, in (0, 0.5]; see `limit`."""
        new = self.with_region(self.region)
        new.register_to_config(threshold_quantile=1 - rate)
        return new

    def with_region(self, region: torch.Tensor | None) -> "DDADCalibration":
        """The same, looking at a part of the picture alone: thresholds follow from the held-out images inside it.

        Args:
            region: `[R, R]`, above zero where it is looked at; None looks everywhere.

        Raises:
            ValueError: if there are fewer cells inside than make an image score.
        """
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        new = type(self)(**settings | {"region_size": 0 if region is None else len(region)})
        new.to(self.calibration_maps)
        new.calibration_maps.copy_(self.calibration_maps)
        if region is not None:
            new.region.copy_(region > 0)
            new.check_region(new.inside(len(region)))
        return new

    def inside(self, size: int) -> torch.Tensor | None:
        """The stored region, `[1, 1, size, size]` of ones and zeros; None looks everywhere."""
        return None if self.region is None else self.covered(self.region.float()[None, None], size)

    @staticmethod
    def covered(inside: torch.Tensor, size: int) -> torch.Tensor:
        """Which cells of another grid lie at least half in a region, `[N, 1, S, S]` -> `[N, 1, size, size]`."""
        if inside.shape[-1] == size:
            return inside
        if inside.shape[-1] % size == 0:
            return (F.adaptive_avg_pool2d(inside, size) >= 0.5).float()
        return (F.interpolate(inside, size=(size, size), mode="bilinear", antialias=True) >= 0.5).float()

    def check_region(self, inside: torch.Tensor) -> None:
        """Raises a ValueError where a region, `[N, 1, S, S]`, holds fewer cells than make an image score."""
        least, size = self.config.num_top_cells, self.config.calibration_size
        found = int(self.covered(inside, size).sum(dim=(1, 2, 3)).min())
        if found < least:
            raise ValueError(
                f"The region is too small: {found} of {size}x{size} cells lie in it, and an image score needs {least}."
                " White is looked at, black is not."
            )

    # -------------------------------------------------------------------------------------------------------- scores

    def num_maps(self, score: str) -> int:
        """How many maps of a measured score an image has: one for each noise level, but for appearance."""
        return 1 if score in self.look_scores else len(self.config.timesteps)

    @property
    def scores(self) -> tuple[str, ...]:
        """Those that are measured here: pipelines that were calibrated before there was a memory have none."""
        statistics = self.config.statistics
        remembers = statistics is None or "memory_mean" in statistics
        return self.all_scores if remembers else self.all_scores[:-1]

    def weights(self, score: str) -> dict[str, float]:
        """The measured scores whose weighted mean a score is, each in units of good images.

        `appearance` is two thirds Gaussians and one third memory; `sum` is the mean of it and the residual.
        """
        looks = {"appearance": 2 / 3, "memory": 1 / 3} if "memory" in self.scores else {"appearance": 1.0}
        if score == "sum":
            return {name: weight / 2 for name, weight in looks.items()} | {"residual": 0.5}
        return {"appearance": looks, "gaussians": {"appearance": 1.0}}.get(score, {score: 1.0})

    @property
    def known_feature_scores(self) -> tuple[str, ...]:
        """Those whose parts are all measured here."""
        return tuple(score for score in self.feature_scores if self.weights(score).keys() <= set(self.scores))

    def combine(self, score: str, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """A score's maps from those of the measured ones, all of one shape."""
        parts = [weight * maps[name] for name, weight in self.weights(score).items()]
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]

    def _check_statistics(self, statistics: dict[str, list[float]]) -> None:
        wanted = {f"{score}_{name}": self.num_maps(score) for score in self.scores for name in ("mean", "std")}
        if statistics.keys() != wanted.keys():
            raise ValueError(f"`statistics` must be of {', '.join(sorted(wanted))}, found {', '.join(statistics)}.")
        for name, values in statistics.items():
            if len(values) != wanted[name]:
                raise ValueError(f"`statistics` need {wanted[name]} values of {name}, found {len(values)}.")
            if name.endswith("_std") and min(values) <= 0:
                raise ValueError(f"`statistics` must have positive deviations, found {min(values)} of {name}.")

    @property
    def known_tolerances(self) -> tuple[str, ...]:
        """Those whose threshold is measured: changed images are needed for any but the strict one."""
        return self.tolerances if self.config.num_changed_images else self.tolerances[:1]

    def judgement(
        self,
        alpha: float,
        timesteps: Sequence[int],
        pixel_score: str | None,
        feature_score: str,
        tolerance: str = "strict",
    ) -> DDADJudgement:
        """A judgement that this calibration knows the scores of.

        Args:
            alpha: weight of the pixel score.
            timesteps: noise levels.
            pixel_score: its name; None evaluates it where it weighs something, or costs nothing more.
            feature_score: its name.
            tolerance: its name.

        Raises:
            ValueError: it names the argument, the rule and the value found.
        """
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
            ("pixel_score", pixel_score or "kl", self.pixel_scores),
            ("feature_score", feature_score, self.feature_scores),
            ("tolerance", tolerance, self.tolerances),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, found {value!r}.")
        if feature_score not in self.known_feature_scores:
            raise ValueError(
                "`feature_score` must not be 'memory': this pipeline remembers no patches; `ddad calibrate` adds them."
            )
        if pixel_score is None and (alpha > 0 or "residual" in self.weights(feature_score)):
            pixel_score = "kl"
        if tolerance not in self.known_tolerances:
            raise ValueError(
                "`tolerance` must be 'strict': this pipeline was calibrated on unchanged photographs alone; `ddad"
                " calibrate` measures both."
            )
        return DDADJudgement(alpha, tuple(sorted(timesteps)), pixel_score, feature_score, tolerance)

    def index(self, timesteps: Sequence[int]) -> list[int]:
        """Positions of noise levels among those that are calibrated."""
        return [list(self.config.timesteps).index(timestep) for timestep in timesteps]

    def standardise(self, score: str, maps: torch.Tensor, timesteps: Sequence[int]) -> torch.Tensor:
        """Maps `[N, K, S, S]` in units of good images: minus their mean, over their standard deviation.

        Those of appearance and memory are `[N, 1, S, S]`.
        """
        index = self.index(timesteps) if self.num_maps(score) > 1 else [0]
        mean, std = (
            torch.tensor(self.config.statistics[f"{score}_{statistic}"], device=maps.device)[index].view(1, -1, 1, 1)
            for statistic in ("mean", "std")
        )
        return (maps - mean) / std

    # -------------------------------------------------------------------------------------- anomaly map, image score

    @staticmethod
    def fuse(pixel_maps: torch.Tensor, feature_maps: torch.Tensor, alpha: float) -> torch.Tensor:
        """A = 1/K sum over noise levels of alpha pixel + (1 - alpha) feature (the paper's map), `[N, S, S]`."""
        return (alpha * pixel_maps + (1 - alpha) * feature_maps).mean(dim=1)

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Means over the cells that image scores are made of, `[..., S, S]` -> `[..., 32, 32]`."""
        return F.adaptive_avg_pool2d(maps, (self.config.calibration_size,) * 2)

    def image_score(self, anomaly_maps: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """The mean of the highest cells of each map, `[N, S, S]` -> `[N]`.

        Args:
            anomaly_maps: of each image.
            inside: where it is looked at, `[N or 1, 1, S, S]` of ones and zeros; None for everywhere.
        """
        if inside is None:
            return self.top_cells(self.pool(anomaly_maps).flatten(1))
        outside = self.covered(inside, self.config.calibration_size)[:, 0] == 0
        return self.top_cells(self.pool_inside(anomaly_maps, inside[:, 0]).masked_fill(outside, -torch.inf).flatten(1))

    def pool_inside(self, maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """As `pool`, means of what lies in a region of ones and zeros, `[N, S, S]`."""
        return self.pool(maps * inside) / self.pool(inside).clamp(min=1e-6)

    def top_cells(self, cells: torch.Tensor, count: int | None = None) -> torch.Tensor:
        """The mean of the highest, `[N, cells]` -> `[N]`; None takes as many as make an image score."""
        return cells.topk(count or self.config.num_top_cells, dim=1).values.mean(dim=1)

    # ----------------------------------------------------------------------------------------------------- threshold

    def held_out_maps(self, judgement: DDADJudgement) -> torch.Tensor | None:
        """The anomaly maps of the held-out good images in cells of the region, `[M, cells]`; None if none are stored.

        Every second one is that of the changed image where the judgement is tolerant.
        """
        count = self.config.num_calibration_images
        if not count:
            return None
        stored = self.calibration_maps.float()
        kept = stored[:count].clone()
        if judgement.tolerance == "tolerant":
            kept[1::2] = stored[count:]
        counts = [self.num_maps(score) for score in self.scores]
        levels = len(self.config.timesteps)
        by_score = {
            name: maps.expand(-1, levels, -1, -1)[:, self.index(judgement.timesteps)]
            for name, maps in zip(self.scores, kept.split(counts, dim=1), strict=True)
        }
        # [M, K, 32, 32]; of weight zero, the first may be any
        pixel, feature = (self.combine(score, by_score) for score in (judgement.scores[0], judgement.feature_score))
        maps, inside = self.fuse(pixel, feature, judgement.alpha), self.inside(self.config.calibration_size)
        return maps.flatten(1) if inside is None else maps[:, inside[0, 0] > 0]

    def held_out_scores(self, judgement: DDADJudgement) -> torch.Tensor | None:
        """The image scores of the held-out good images, each by the statistics of others, `[M]`; None without any."""
        maps = self.held_out_maps(judgement)
        return None if maps is None else self.top_cells(maps)

    @classmethod
    def limit(cls, scores: np.ndarray, rate: float) -> np.ndarray:
        """Where a threshold lies above which so large a part of new good images is expected, `[..., M]` -> `[...]`.

        Of few scores it is `predictive_limit`. Of more it is their quantile where at least `LEAST_ABOVE` of them lie
        above, and else that of an exponential tail, fitted to the highest tenth: the excesses over a high level u have
        the distribution P(s > u + x) = P(s > u) exp(-x / mean excess) (peaks over threshold; "Statistics of Extremes",
        Beirlant et al., 2004, chapter 5, of an index of zero).

        Args:
            scores: of held-out good images.
            rate: the part of good images that may be called defective, in (0, 0.5].
        """
        count = scores.shape[-1]
        if 1 < count < FEW_SCORES and rate > 0:
            return cls.predictive_limit(scores, rate)
        if rate * count >= LEAST_ABOVE or count == 1 or rate <= 0:  # a rate of nothing asks for the highest
            return np.quantile(scores, 1 - rate, axis=-1)
        tail = max(LEAST_TAIL, count // 10)
        ordered = np.sort(scores, axis=-1)
        level = ordered[..., -tail - 1]
        excess = ordered[..., -tail:].mean(axis=-1) - level
        beyond = level + excess * np.log(tail / count / rate)
        return np.maximum(beyond, np.quantile(scores, 1 - LEAST_ABOVE / count, axis=-1))

    @staticmethod
    def predictive_limit(scores: np.ndarray, rate: float) -> np.ndarray:
        """Where a threshold lies by the scores of few good images, `[..., M]` -> `[...]`.

        Their quantile lets too many of the next ones fail. So it lies no lower than mean + factor * deviation, with a
        factor of sqrt(1 + 1/M) t_{M-1}(1 - rate) Student's predictive quantile ("Statistical Intervals",
        Meeker, Hahn and Escobar, 2017, section 4.7).
        """
        count = scores.shape[-1]
        factor = np.sqrt(1 + 1 / count) * student_quantile(rate, count - 1)
        predicted = scores.mean(axis=-1) + factor * scores.std(axis=-1, ddof=1)
        return np.maximum(np.quantile(scores, 1 - rate, axis=-1), predicted)

    def threshold(self, judgement: DDADJudgement, false_alarms: float | None = None) -> float | None:
        """The score above which a part of good images lies; None if no good images are stored.

        A tolerant one is never below the strict one, which half of its images have no part in.

        Args:
            judgement: what the score is made of.
            false_alarms: the part, in (0, 0.5]; see `limit`. None takes what was asked for when this was calibrated,
                1 - `threshold_quantile`.

        Raises:
            ValueError: for a part that is none.
        """
        if false_alarms is not None and not 0 < false_alarms <= 0.5:
            raise ValueError(f"`false_alarms` must lie in (0, 0.5], found {false_alarms}: 0.01 is one of a hundred.")
        if judgement.tolerance == "tolerant":
            both = (judgement, replace(judgement, tolerance="strict"))
            limits = (self._threshold(one, false_alarms) for one in both)
            return max((limit for limit in limits if limit is not None), default=None)
        return self._threshold(judgement, false_alarms)

    def _threshold(self, judgement: DDADJudgement, false_alarms: float | None) -> float | None:
        scores = self.held_out_scores(judgement)
        if scores is None:
            return None
        return float(self.limit(scores.double().numpy(), self.false_alarms if false_alarms is None else false_alarms))

    @property
    def false_alarms(self) -> float:
        """The part of good images that the threshold may call defective."""
        return 1 - self.config.threshold_quantile

    def mask_level(self, judgement: DDADJudgement) -> float | None:
        """The 99 % quantile of the held-out images' cells: how low a region reaches from where it is certain."""
        maps = self.held_out_maps(judgement)
        if maps is None:
            return None
        cells = maps.flatten().sort().values  # torch.quantile refuses more than 16 M values
        return float(cells[int(0.99 * (len(cells) - 1))])
