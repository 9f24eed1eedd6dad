"""What the networks see of good images, their copies, and images with defects: features before any statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from ddad.calibration.factors import Views
from ddad.calibration.gaussians import principal_components
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline
from ddad.datasets.folder import ImagesInMemory
from ddad.datasets.nuisance import Nuisance, change_one, vary
from ddad.gaussians_ddad import DDADGaussianModel

# Images that the principal components are found on.
COMPONENT_IMAGES = 64
# Copies are made until there are about so many views, at least one of an image: each takes a quarter of a second.
VIEWS, MOST_COPIES = 900, 6
# Of parts that lie in any orientation, turned by any angle, more of each.
MOST_TURNED_COPIES, ANY_ANGLE = 24, 180.0
# The U-Net, which takes longer, is asked about so many copies of each.
RESIDUAL_COPIES = 1
# More good images than these are not looked at by the statistics: they would fill the memory and add little.
MOST_IMAGES_SEEN = 2000
BATCH_SIZE = 4

# What hands out images by number, `[3, L, L]` in [-1, 1]: a list, an ImageFolder, a part of one.
Images = Sequence[torch.Tensor] | Dataset[torch.Tensor]


@dataclass(frozen=True)
class CalibrationConfig:
    """How a pipeline is calibrated.

    Attributes:
        rotation_degrees: the largest rotation of the copies that the Gaussians see too.
        seed: of everything random.
        nuisance: how much of what is no defect copies of good images show.
        tolerance: what the threshold makes room for; see `DDADJudgement`.
    """

    rotation_degrees: float = 5.0
    seed: int = 0
    nuisance: Nuisance = "mild"
    tolerance: Literal["strict", "tolerant"] = "strict"

    @classmethod
    def of(cls, record: dict[str, Any] | None) -> "CalibrationConfig":
        """As a checkpoint with this training record was calibrated."""
        settings = record["config"] if record else {}
        return cls(settings.get("rotation_degrees", cls.rotation_degrees))


def spread(count: int, most: int) -> list[int]:
    """The numbers below `count`, or `most` of them evenly."""
    return list(range(count)) if count <= most else torch.linspace(0, count - 1, most).long().tolist()


def count_copies(images: int, degrees: float = 0.0) -> int:
    """Copies of each image, turned by so many degrees at most: the fewer images, the more."""
    most = MOST_TURNED_COPIES if degrees >= ANY_ANGLE else MOST_COPIES
    return max(1, min(most, round(VIEWS / images) - 1))


def shrink_to_unet(pipe: DDADPipeline, images: torch.Tensor) -> torch.Tensor:
    """What the U-Net sees of images at the size of appearance, `[N, 3, L, L]` -> `[N, 3, S, S]`."""
    size = (pipe.unet.config.sample_size,) * 2
    return pipe.image_processor.resize(images, size).clamp(-1, 1)


def positions_inside(pipe: DDADPipeline, model: DDADGaussianModel) -> torch.Tensor | None:
    """Which positions of a component's grid a pipeline looks at, `[P]` bool; None for all."""
    inside = pipe.calibration.inside(model.config.grid_size)
    return None if inside is None else inside.flatten() > 0


def reduced_inside(pipe: DDADPipeline, model: DDADGaussianModel, features: torch.Tensor) -> torch.Tensor:
    """As `model.reduce`, on the CPU; zero at positions that are not looked at, which then explain nothing."""
    reduced, inside = model.reduce(features).cpu(), positions_inside(pipe, model)
    return reduced if inside is None else reduced * inside.cpu()[:, None]


@torch.no_grad()
def residuals_of(pipe: DDADPipeline, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """The residuals' mean over the noise levels, of `[N, 3, S, S]`; `[N, C, h, w]`.

    Gaussians are fitted to that mean: the residuals of the levels hardly differ.
    """
    features = pipe.extract_features(images)
    predicted = pipe.predict_at(images, pipe.timesteps, pipe.get_noise(pipe.timesteps, generator))[-1]
    return features - predicted.unflatten(0, (len(images), -1)).mean(dim=1)


@torch.no_grad()
def fit_components(pipe: DDADPipeline, images: Images) -> None:
    """Finds the directions of features and of residuals that are modelled, on some of the good images."""
    looks, residuals = [], []
    for index in spread(len(images), COMPONENT_IMAGES):
        image = images[index][None].to(pipe.device)
        looks.append(pipe.appearance.to_grid(pipe.extract_appearance(image)))
        residuals.append(pipe.residual.to_grid(residuals_of(pipe, shrink_to_unet(pipe, image), None)))
    for model, values in ((pipe.appearance, looks), (pipe.residual, residuals)):
        inside = positions_inside(pipe, model)
        chosen = torch.cat(values)[:, slice(None) if inside is None else inside]
        model.basis.copy_(principal_components(chosen, model.config.num_channels).half())


@torch.no_grad()
def view_images(
    pipe: DDADPipeline,
    images: Images,
    folds: torch.Tensor,
    config: CalibrationConfig,
    ask_network: bool,
    report: Report | None,
) -> Views:
    """The features of good images and their copies, or the residuals of the images and fewer copies.

    Every image has noise of its own: statistics hold under any.

    Args:
        pipe: the pipeline, whose components have their directions.
        images: good.
        folds: the fold of each.
        config: how.
        ask_network: residuals of the U-Net, or features.
        report: called with the progress.
    """
    model = pipe.residual if ask_network else pipe.appearance
    copies = RESIDUAL_COPIES if ask_network else count_copies(len(images), config.rotation_degrees)
    what = "Asking the network about good images" if ask_network else "Looking at good images"
    found = []
    for number, index in enumerate(track(range(len(images)), what, report)):
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
        image = images[index][None]
        varied = (vary(image, config.rotation_degrees, config.nuisance, generator) for _ in range(copies))
        views = torch.cat([image, *varied]).to(pipe.device)
        if ask_network:
            features = residuals_of(pipe, shrink_to_unet(pipe, views), generator)
        else:
            features = pipe.extract_appearance(views)
        found.append(reduced_inside(pipe, model, features))
    return Views(
        torch.cat(found),
        folds.repeat_interleave(1 + copies),
        torch.arange(len(images) * (1 + copies)) % (1 + copies) == 0,
        config.rotation_degrees >= ANY_ANGLE,
        positions_inside(pipe, model),
    )


@dataclass(frozen=True)
class Observed:
    """Images as the networks see them.

    Attributes:
        appearance: principal components of their features, `[N, 1, P, c]`.
        residual: of their residuals at each noise level, `[N, K, P, c]`; None where the U-Net was not asked.
        kl: the pixel score, not smoothed, `[N, K, S, S]`; None likewise.
    """

    appearance: torch.Tensor
    residual: torch.Tensor | None
    kl: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.appearance)

    def select(self, index: Sequence[int]) -> "Observed":
        """Some of them."""
        parts = (self.appearance, self.residual, self.kl)
        return Observed(*(None if part is None else part[list(index)] for part in parts))

    def __add__(self, other: "Observed") -> "Observed":
        """Both; the U-Net's part is left out if one lacks it."""
        pairs = ((self.appearance, other.appearance), (self.residual, other.residual), (self.kl, other.kl))
        return Observed(*(None if own is None or one is None else torch.cat([own, one]) for own, one in pairs))


@torch.no_grad()
def observe(pipe: DDADPipeline, images: Images, ask_network: bool, what: str, report: Report | None) -> Observed:
    """Evaluates the networks on images, `[3, L, L]` in [-1, 1], each under the noise that all images are scored under.

    Args:
        pipe: the pipeline, whose components have their directions.
        images: the images.
        ask_network: whether the U-Net is asked too.
        what: is being done, for the progress.
        report: called with it.
    """
    timesteps, noise = pipe.timesteps, pipe.get_noise(pipe.timesteps)
    looks, residuals, kl = [], [], []
    for first in track(range(0, len(images), BATCH_SIZE), what, report, unit="batch"):
        chosen = range(first, min(first + BATCH_SIZE, len(images)))
        batch = torch.stack([images[index] for index in chosen]).to(pipe.device)
        looks.append(reduced_inside(pipe, pipe.appearance, pipe.extract_appearance(batch)))
        if ask_network:
            small = shrink_to_unet(pipe, batch)
            originals, noisy, levels, output, predicted = pipe.predict_at(small, timesteps, noise)
            maps = pipe.scheduler.pixel_maps(originals, noisy, output, levels, ["kl"])["kl"]  # [N K, 1, S, S]
            kl.append(maps.float().cpu().view(len(batch), len(timesteps), *maps.shape[2:]))
            features = pipe.extract_features(small).repeat_interleave(len(timesteps), dim=0)
            residuals.append(reduced_inside(pipe, pipe.residual, features - predicted).unflatten(0, (len(batch), -1)))
    seen = torch.cat(looks)[:, None]
    return Observed(seen, torch.cat(residuals), torch.cat(kl)) if ask_network else Observed(seen, None, None)


def vary_half(images: Images, nuisance: Nuisance, seed: int) -> ImagesInMemory:
    """Held-out images as they judge: every other one moved and changed, as tomorrow's photographs may be."""
    judged = ImagesInMemory()
    for index in range(len(images)):
        generator = torch.Generator().manual_seed(7_000_003 * (seed + 1) + index)
        image = images[index]
        judged.append(image if index % 2 == 0 else change_one(image[None], index // 2, nuisance, generator)[0])
    return judged
