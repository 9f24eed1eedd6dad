"""Patches of good images that are remembered; see `DDADMemory`."""

import torch

from ddad.calibration.factors import Views
from ddad.calibration.gaussians import REGULARISATION
from ddad.memory_ddad import DDADMemory

# Half as many lose half a point of image AUROC on textures; all of them cost a tenth of a second an image.
NUM_PATCHES = 20_000
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


def remember(views: Views, chosen: torch.Tensor | None = None, most: int = NUM_PATCHES) -> DDADMemory:
    """A memory of patches drawn at random, exact in float16.

    Copies under other light or focus are not remembered: what looks like a bad photograph would be normal anywhere.
    But distances are measured by how features vary among copies too, or noise and compression lie far from everything.
    Copies of parts that lie in any orientation are remembered: they stand for photographs that are not there.

    Args:
        views: principal components of good images and copies of them.
        chosen: which of them count, `[V]` bool; None takes all.
        most: patches.
    """
    chosen = torch.ones_like(views.original) if chosen is None else chosen
    where = slice(None) if views.inside is None else views.inside
    whitening = whiten_pooled(views.values[chosen][:, where]).half().float()
    remembered = chosen if views.turned else chosen & views.original
    values, image = views.values[remembered][:, where], views.image[remembered]
    patches = values.flatten(0, 1)
    drawn = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:most]
    patches = (patches[drawn] @ whitening).half().float()
    memory = DDADMemory(patches.shape[1], len(patches))
    memory.whitening.copy_(whitening)
    memory.patches.copy_(patches)
    radius = nearest_of_others(patches, image.repeat_interleave(values.shape[1])[drawn])
    memory.radius.copy_((RADIUS_WEIGHT * radius).half())
    return memory


def distances_by_others(views: Views, reduced: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
    """The distances of images, each by what is not in its fold, `[N, P, c]` and `[N]` -> `[N, P]`."""
    found = torch.empty(reduced.shape[:-1])
    for fold in folds.unique().tolist():
        memory = remember(views, views.fold != fold)
        found[folds == fold] = memory.distance(reduced[folds == fold])
    return found
