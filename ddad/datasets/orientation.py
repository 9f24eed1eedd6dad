"""Whether parts lie in any orientation: then a copy turned by any angle is one more good part."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ddad.datasets.folder import rotate

SIDE = 32
ANGLES = range(15, 360, 15)
# So many images are enough.
MOST_IMAGES = 64
# Of parts that lie the same way 0 to 50 % are more alike to a turned other than to any as it lies (bottle, capsule,
# alien, circuit board, tiles, cells), of the same turned by random angles 78 to 100 %, of cookies on a tray 71 %. A
# regular texture passes too: whether turned copies are likely is asked after this.
LEAST_PART = 0.6


def lie_in_any_orientation(images: Iterable[torch.Tensor]) -> bool:
    """Whether most images are more alike to another one once that is turned than to any other as it lies.

    Args:
        images: good, `[3, S, S]` in [-1, 1], in any order; `MOST_IMAGES` are enough.
    """
    small = torch.stack([F.adaptive_avg_pool2d(image.mean(dim=0, keepdim=True), SIDE) for image in images])
    upright = in_disc(small)
    turned = [nearest(upright, in_disc(rotate(small, torch.full((len(small),), float(angle))))) for angle in ANGLES]
    closer = torch.stack(turned).amax(dim=0) > nearest(upright, upright)
    return float(closer.float().mean()) > LEAST_PART


def in_disc(images: torch.Tensor) -> torch.Tensor:
    """The pixels that stay in the picture however it is turned, of mean 0 and norm 1, `[N, 1, S, S]` -> `[N, P]`."""
    axis = torch.linspace(-1, 1, images.shape[-1])
    values = images.flatten(1)[:, (axis[:, None] ** 2 + axis**2 <= 0.95).flatten()]
    centred = values - values.mean(dim=1, keepdim=True)
    normed: torch.Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return normed


def nearest(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The correlation of each image with the most alike of the others, which are by number the same parts; `[N]`."""
    alike: torch.Tensor = images @ others.T
    return alike.fill_diagonal_(-1.0).amax(dim=1)
