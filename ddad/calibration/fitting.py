"""The statistics of good images' residuals: components, factors, Gaussians, and how many of which.

Every good image counts, with copies of it where there are few. What is chosen here is chosen by the likelihood of
images that had no part in it, in folds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedGroupKFold
from torch.utils.data import Dataset

from ddad.calibration.factors import Factors, Views, candidates, cross_fit, moments_of, unexplained
from ddad.calibration.gaussians import Moments, choose_shrinkage, principal_components
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline
from ddad.datasets.folder import rotate
from ddad.datasets.lookalikes import group_lookalikes, shrink_image
from ddad.datasets.nuisance import Nuisance

FOLDS = 5
# Of fewer images than this each, or a tenth of them, is a fold.
HANDFUL, MOST_FOLDS = 20, 10
# Images that the principal components are found on.
COMPONENT_IMAGES = 64
# Copies are made until there are about so many views, at least one and at most eight of an image.
VIEWS = 1200
MOST_COPIES = 8
LARGEST_SHIFT = 4
# More good images than these are not looked at by the statistics: they would fill the memory and add little.
MOST_IMAGES_SEEN = 2000

# More factors must raise the log likelihood of a channel at a position by so much.
LEAST_GAIN = 0.01

# What hands out images by number, `[3, S, S]` in [-1, 1]: a list, an ImageFolder, a part of one.
Images = Sequence[torch.Tensor] | Dataset[torch.Tensor]


@dataclass(frozen=True)
class CalibrationConfig:
    """How a pipeline is calibrated.

    Attributes:
        rotation_degrees: the largest rotation of the copies that the Gaussians see too.
        seed: of everything random.
        choose_settings: whether alpha, blur and cells are chosen on synthetic defects; else they stay as they are.
        nuisance: how much of what is no defect copies of good images show.
        ask_network: whether the U-Net's scores are candidates; not where it never saw the part.
        defects_per_type: synthetic defects of each kind that settings are chosen on.
        measure_growth: whether it is measured what fewer images would find.
    """

    rotation_degrees: float = 5.0
    seed: int = 0
    choose_settings: bool = True
    nuisance: Nuisance = "mild"
    ask_network: bool = True
    defects_per_type: int = 16
    measure_growth: bool = False

    @classmethod
    def of(cls, record: dict[str, Any] | None) -> "CalibrationConfig":
        """As a checkpoint with this training record was calibrated."""
        settings = record["config"] if record else {}
        return cls(settings.get("rotation_degrees", cls.rotation_degrees))


def count_copies(images: int, appearance: bool) -> int:
    """Rotated and shifted copies of each image: the fewer images, the more; one where appearance is judged as well."""
    return 1 if appearance else max(1, min(MOST_COPIES, round(VIEWS / images) - 1))


def count_factors(images: int, appearance: bool) -> int:
    """The most factors that so many images with their copies can speak for, when a fold of them is left out."""
    views = min(images, MOST_IMAGES_SEEN) * (1 + count_copies(images, appearance))
    return max(candidates(views * (FOLDS - 1) // FOLDS))


def vary(image: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """A copy of `[1, 3, S, S]`, rotated and shifted at random; what comes in at the border is mirrored."""
    turned = rotate(image, (2 * torch.rand(1, generator=generator) - 1) * degrees)
    top, left = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(turned, (LARGEST_SHIFT,) * 4, mode="reflect")
    return padded[..., top : top + image.shape[-2], left : left + image.shape[-1]]


@torch.no_grad()
def extract_residuals(pipe: DDADPipeline, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The residuals' mean over the noise levels, of `[N, 3, S, S]`; `[N, C, h, w]`.

    Gaussians are fitted to that mean: the residuals of the levels hardly differ.
    """
    features = pipe.extract_features(images)
    predicted = pipe.predict_at(images, pipe.timesteps, pipe.get_noise(pipe.timesteps, generator))[-1]
    return features - predicted.unflatten(0, (len(images), -1)).mean(dim=1)


@torch.no_grad()
def fit_components(pipe: DDADPipeline, images: Images) -> None:
    """Finds the directions of the residuals that are modelled, on some of the good images."""
    normality = pipe.normality
    step = max(1, len(images) // COMPONENT_IMAGES)
    chosen = [images[index][None].to(pipe.device) for index in range(0, len(images), step)]
    residuals = torch.cat([extract_residuals(pipe, image, None) for image in chosen])
    normality.basis.copy_(principal_components(normality.to_grid(residuals), normality.config.num_channels))


@torch.no_grad()
def gather(
    pipe: DDADPipeline, train: Images, held_out: Images, copies: int, config: CalibrationConfig, report: Report | None
) -> Views:
    """The residuals of all images and their copies.

    Every image has noise of its own: statistics hold under any.
    """
    normality = pipe.normality
    images = [(train, index, False) for index in spread(len(train), MOST_IMAGES_SEEN)]
    images += [(held_out, index, True) for index in range(len(held_out))]
    values, small = [], []
    for number, (source, index, _) in enumerate(track(images, "Fitting normality", report)):
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
        image = source[index][None]
        small.append(shrink_image(image[0]))
        views = [image, *(vary(image, config.rotation_degrees, generator) for _ in range(copies))]
        residuals = extract_residuals(pipe, torch.cat(views).to(pipe.device), generator)
        values.append(normality.reduce(residuals).cpu())  # [V, P, c]
    judges = torch.tensor([judge for *_, judge in images])
    fold = torch.tensor(assign_folds(group_lookalikes(small), judges.tolist()))
    original = torch.arange(len(images) * (1 + copies)) % (1 + copies) == 0
    return Views(torch.cat(values), fold.repeat_interleave(1 + copies), judges.repeat_interleave(1 + copies), original)


def assign_folds(groups: Sequence[int], judges: Sequence[bool]) -> list[int]:
    """The fold of each image: groups stay together, and the folds get about as many judges and images each.

    With fewer groups than folds single images are dealt out: then what is measured holds for these very parts.

    Args:
        groups: the group of each image; see `group_lookalikes`.
        judges: whether the image is held out to judge.
    """
    if len(set(groups)) < FOLDS:
        groups = range(len(groups))
    most = min(MOST_FOLDS, len(set(groups))) if len(groups) < HANDFUL else FOLDS
    folds = [0] * len(groups)
    splitter = StratifiedGroupKFold(min(most, sum(judges)))
    for fold, (_, members) in enumerate(splitter.split(groups, judges, groups)):
        for member in members:
            folds[member] = fold
    return folds


def spread(count: int, most: int) -> list[int]:
    """The numbers below `count`, or `most` of them evenly."""
    return list(range(count)) if count <= most else torch.linspace(0, count - 1, most).long().tolist()


@dataclass(frozen=True)
class Fit:
    """The residuals of good images, modelled.

    Attributes:
        num_factors: how many factors make held-out images most likely.
        shrinkage: and which shrinkage of the covariances of what they leave.
        log_likelihoods: of each number of factors at its best shrinkage.
        factors: for each fold those of all other images.
        everything: moments of what they leave of each view.
        rest: for each fold the moments of all that is not in it.
    """

    num_factors: int
    shrinkage: float
    log_likelihoods: dict[int, float]
    factors: dict[int, Factors]
    everything: Moments
    rest: dict[int, Moments]


def fit_residuals(views: Views) -> Fit:
    """Chooses number of factors and shrinkage by the likelihood of images that neither has seen."""
    counts = candidates(min(int((views.fold != fold).sum()) for fold in views.folds))
    factors = cross_fit(views, max(counts))
    best: Fit | None = None
    likelihoods: dict[int, float] = {}
    for count in counts:
        left = unexplained(views, factors, count)
        moments = {fold: moments_of(left[views.fold == fold]) for fold in views.folds}
        first, *others = moments.values()
        everything = sum(others, first)
        rest = {fold: everything - own for fold, own in moments.items()}
        originals = [left[(views.fold == fold) & views.original] for fold in views.folds]
        shrinkage, by_shrinkage = choose_shrinkage(rest.values(), originals)
        # Any k directions taken off D dimensions make what is left smaller by k / D; that alone explains nothing.
        freedom = math.log1p(-count / views.values[0].numel()) / 2
        likelihoods[count] = by_shrinkage[shrinkage] / int(views.original.sum()) + freedom
        if best is None or likelihoods[count] > likelihoods[best.num_factors] + LEAST_GAIN:
            best = Fit(count, shrinkage, likelihoods, factors, everything, rest)
    assert best is not None
    return best
