"""Statistics of good parts' features themselves, fitted in folds: each image is judged by what all others say.

What is fitted is immutable: one set of statistics for each fold, and one that is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ddad.appearance_ddad import DDADAppearanceModel
from ddad.calibration.factors import Factors, Views, candidates, fit_factors, moments_of
from ddad.calibration.fitting import Fit, Images, fit_residuals, spread
from ddad.calibration.gaussians import Moments, principal_components, shrink
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline
from ddad.datasets.folder import ImagesInMemory
from ddad.datasets.nuisance import Nuisance, change_one, vary

COMPONENT_IMAGES = 48
NUM_PATCHES = 20_000
# Views, images and their copies, that are looked at: each takes a quarter of a second and 130 KB.
VIEWS = 900
MOST_COPIES = 6


@dataclass(frozen=True)
class Statistics:
    """What good parts look like, by some of them.

    Attributes:
        mean: `[P, c]`.
        whitening: W of what the factors leave, `[P, c, c]`.
        factors: orthonormal, `[P c, k]`.
        patches: `[M, C]`.
        covariance: of what the factors leave, shrunk, `[P, c, c]`.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    factors: torch.Tensor
    patches: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, factors: Factors, moments: Moments, shrinkage: float, patches: torch.Tensor) -> "Statistics":
        """From factors, and moments of what they leave of images that they have not seen."""
        covariance = shrink(moments.gaussian()[1], shrinkage)
        whitening = DDADAppearanceModel.whiten(covariance).float()
        return cls(factors.mean, whitening, factors.basis, patches, covariance)

    def gaussian(self, reduced: torch.Tensor) -> torch.Tensor:
        """The distance to the Gaussian at each position, `[N, P, c]` -> `[N, P]`."""
        return DDADAppearanceModel.gaussian_distance(reduced, self.mean, self.whitening, self.factors)

    def memory(self, values: torch.Tensor) -> torch.Tensor:
        """The distance to the nearest patch, `[N, P, C]` -> `[N, P]`."""
        return DDADAppearanceModel.memory_distance(values, self.patches)


@dataclass(frozen=True)
class Looks:
    """The features of good images and their copies.

    Attributes:
        views: their principal components, a row a view.
        patches: features at random positions, `[n, C]`.
        owner: the fold of each patch's image, `[n]`.
        judged: features of the held-out images, as they are judged, on the grid, `[M, P, C]` in half precision.
        reduced: their principal components, `[M, P, c]`.
        folds: the fold of each, `[M]`.
    """

    views: Views
    patches: torch.Tensor
    owner: torch.Tensor
    judged: torch.Tensor
    reduced: torch.Tensor
    folds: torch.Tensor

    def choose_patches(self, mask: torch.Tensor) -> torch.Tensor:
        """At most `NUM_PATCHES` of some, as they are stored."""
        chosen = self.patches[mask]
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:NUM_PATCHES]
        return chosen[order].half().float()


def count_copies(images: int) -> int:
    """Copies of each image: the fewer images, the more."""
    return max(1, min(MOST_COPIES, round(VIEWS / images) - 1))


@torch.no_grad()
def gather_looks(
    pipe: DDADPipeline,
    train: Images,
    held_out: Images,
    judged: Images,
    folds: torch.Tensor,
    degrees: float,
    nuisance: Nuisance,
    seed: int,
    report: Report | None,
) -> Looks:
    """Looks at all good images, and at copies of them.

    Args:
        pipe: the pipeline, whose `appearance` is new; its basis is set here.
        train: good images, `[3, L, L]` in [-1, 1], as many as have a fold.
        held_out: likewise, that judge.
        judged: these as they are judged: half of them varied.
        folds: the fold of each, those of `train` first.
        degrees: the largest rotation of copies.
        nuisance: what else copies show.
        seed: of everything random.
        report: told of the progress.
    """
    model = pipe.appearance
    numbers = spread(len(train), len(folds) - len(held_out))
    sources = [(train, index) for index in numbers] + [(held_out, index) for index in range(len(held_out))]
    some = [sources[index] for index in spread(len(sources), COMPONENT_IMAGES)]
    grids = torch.cat(
        [model.to_grid(pipe.extract_appearance(source[index][None].to(pipe.device))) for source, index in some]
    )
    model.basis.copy_(principal_components(grids.cpu(), model.config.num_channels))
    copies = count_copies(len(sources))
    each = -(-5 * NUM_PATCHES // (4 * len(sources)))  # a quarter more than are kept: a fold is left out of some
    reduced, patches = [], []
    for number, (source, index) in enumerate(track(sources, "Looking at good images", report)):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        image = source[index][None]
        views = [image, *(vary(image, degrees, nuisance, generator) for _ in range(copies))]
        values = model.to_grid(pipe.extract_appearance(torch.cat(views).to(pipe.device))).cpu()  # [V, P, C]
        reduced.append(values @ model.basis.float().cpu())
        flat = values.flatten(0, 1)
        patches.append(flat[torch.randint(len(flat), (each,), generator=generator)].half())
    judge = torch.arange(len(sources)) >= len(numbers)
    views = Views(
        torch.cat(reduced),
        folds.repeat_interleave(1 + copies),
        judge.repeat_interleave(1 + copies),
        torch.arange(len(sources) * (1 + copies)) % (1 + copies) == 0,
    )
    features = [
        model.to_grid(pipe.extract_appearance(judged[index][None].to(pipe.device))).cpu()
        for index in range(len(held_out))
    ]
    return Looks(
        views,
        torch.cat(patches).float(),
        folds.repeat_interleave(each),
        torch.cat(features).half(),
        torch.cat([image_features @ model.basis.float().cpu() for image_features in features]),
        folds[len(numbers) :],
    )


def vary_half(images: Images, nuisance: Nuisance, seed: int) -> ImagesInMemory:
    """Held-out images as they judge: every other one moved and changed, as tomorrow's photographs may be."""
    judged = ImagesInMemory()
    for index in range(len(images)):
        generator = torch.Generator().manual_seed(7_000_003 * (seed + 1) + index)
        image = images[index]
        judged.append(image if index % 2 == 0 else change_one(image[None], index // 2, nuisance, generator)[0])
    return judged


@dataclass(frozen=True)
class Appearance:
    """What was seen of good images, and the statistics of parts of them.

    Attributes:
        looks: what was seen.
        fit: factors and moments, of all and of all but a fold.
    """

    looks: Looks
    fit: Fit

    @classmethod
    def of(cls, looks: Looks) -> "Appearance":
        """Chooses the number of factors, and the likeliest shrinkage."""
        return cls(looks, fit_residuals(looks.views))

    def of_all(self, shrinkage: float) -> Statistics:
        """By all images: what is stored."""
        factors = fit_factors(self.looks.views.values, self.fit.num_factors)
        everything = torch.ones(len(self.looks.patches), dtype=torch.bool)
        return Statistics.of(factors, self.fit.everything, shrinkage, self.looks.choose_patches(everything))

    def of_others(self, fold: int, shrinkages: Sequence[float]) -> dict[float, Statistics]:
        """By all images that are not in a fold, with each shrinkage; factors and moments are the same for all."""
        factors, moments = self.fit.factors[fold].first(self.fit.num_factors), self.fit.rest[fold]
        patches = self.looks.choose_patches(self.looks.owner != fold)
        return {shrinkage: Statistics.of(factors, moments, shrinkage, patches) for shrinkage in shrinkages}

    def of_some(self, images: torch.Tensor, shrinkage: float) -> Statistics:
        """By some images alone, given by number."""
        views, patches = self.looks.views, self.looks.patches
        count = int(views.original.sum())
        rows = torch.isin(torch.arange(len(views.values)) // (len(views.values) // count), images)
        allowed = max(number for number in candidates(int(rows.sum())) if number <= self.fit.num_factors)
        factors = fit_factors(views.values[rows], allowed)
        moments = moments_of(factors.unexplained(views.values[rows]))
        own = torch.isin(torch.arange(len(patches)) // (len(patches) // count), images)
        return Statistics.of(factors, moments, shrinkage, self.looks.choose_patches(own))

    def judge_held_out(self, shrinkage: float) -> dict[str, torch.Tensor]:
        """Both kinds of distance of the held-out images, each by the statistics of others, `[M, P]`."""
        looks = self.looks
        distances = {kind: torch.zeros(looks.reduced.shape[:2]) for kind in ("gaussian", "memory")}
        for fold in looks.folds.unique().tolist():
            statistics = self.of_others(fold, [shrinkage])[shrinkage]
            for number in (looks.folds == fold).nonzero()[:, 0].tolist():
                one = slice(number, number + 1)
                distances["gaussian"][one] = statistics.gaussian(looks.reduced[one])
                distances["memory"][one] = statistics.memory(looks.judged[one].float())
        return distances


def store(model: DDADAppearanceModel, statistics: Statistics) -> None:
    """Puts statistics into the model that is saved."""
    model.set_gaussian(statistics.mean, statistics.covariance, statistics.factors)
    model.patches.zero_()
    model.patches[: len(statistics.patches)].copy_(statistics.patches)
