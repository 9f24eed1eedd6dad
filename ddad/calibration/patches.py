"""Patches of good images that are remembered; see `DDADMemory`."""

import torch

from ddad.calibration.factors import Views
from ddad.calibration.gaussians import REGULARISATION
from ddad.memory_ddad import DDADMemory

# More find no more; fewer miss what is rare among good parts.
NUM_PATCHES = 10_000
# How much of its own distance to the nearest patch of another image a patch takes off: with none of it what is rare
# among good parts is called unusual, with all of it defects near such places are missed.
RADIUS_WEIGHT = 0.5
TOGETHER = 1000


def whiten_pooled(values: torch.Tensor) -> torch.Tensor:
    """W with W^T (mean over positions of Sigma + 0.01 I) W = I, `[V, P, c]` -> `[c, c]`."""
    centred = (values - values.mean(dim=0)).flatten(0, 1).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return (vectors / (variances.clamp(min=0) + REGULARISATION).sqrt()).float()


def nearest_of_others(patches: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The distance of each patch to the nearest one of another image, `[M, c]` and `[M]` -> `[M]`; 0 without any."""
    found = torch.zeros(len(patches))
    for chosen in torch.arange(len(patches)).split(TOGETHER):
        distances = torch.cdist(patches[chosen], patches)
        distances[image[chosen, None] == image] = torch.inf
        nearest = distances.min(dim=1).values
        found[chosen] = torch.where(nearest.isfinite(), nearest, 0.0)
    return found


def remember(values: torch.Tensor, image: torch.Tensor) -> DDADMemory:
    """A memory of patches drawn at random, exact in float16.

    Args:
        values: principal components of views, `[V, P, c]`.
        image: the image that each view is of, `[V]`.
    """
    whitening = whiten_pooled(values).half().float()
    patches = values.flatten(0, 1)
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:NUM_PATCHES]
    patches = (patches[chosen] @ whitening).half().float()
    memory = DDADMemory(patches.shape[1], len(patches))
    memory.whitening.copy_(whitening)
    memory.patches.copy_(patches)
    radius = nearest_of_others(patches, image.repeat_interleave(values.shape[1])[chosen])
    memory.radius.copy_((RADIUS_WEIGHT * radius).half())
    return memory


def remember_some(views: Views, images: torch.Tensor) -> DDADMemory:
    """Of some images alone, given by number."""
    chosen = torch.isin(views.image, images)
    return remember(views.values[chosen], views.image[chosen])


def distances_by_others(views: Views, reduced: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
    """The distances of images, each by what is not in its fold, `[N, P, c]` and `[N]` -> `[N, P]`."""
    found = torch.empty(reduced.shape[:-1])
    for fold in folds.unique().tolist():
        others = views.fold != fold
        memory = remember(views.values[others], views.image[others])
        found[folds == fold] = memory.distance(reduced[folds == fold])
    return found
