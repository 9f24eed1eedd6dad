"""Methods without training that are short enough to write on our backbone."""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.methods import Images, judged_by, look, network_size
from ddad import DDADPipeline


class Spade:
    """The nearest good images by their pooled features, then the nearest positions in them.

    Source: "Sub-Image Anomaly Detection with Deep Pyramid Correspondences" (Cohen and Hoshen, 2020): K = 50 images,
    one nearest position each way, a Gaussian of sigma 4; on the features that our verdict rests on.
    """

    name = "SPADE"
    slow = True
    note = "K = 50 images, positions of a 32x32 grid"
    neighbours = 50

    def __init__(self, pipe: DDADPipeline):
        self.pipe = pipe

    def fit(self, images: Images) -> None:
        """Keeps the features of all good images."""
        self.bank = torch.cat([self.features(batch).half() for batch in images.looks()])  # [M, C, h, w]
        self.pooled = self.bank.float().mean(dim=(2, 3))  # [M, C]

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of `[N, 3, L, L]` in [-1, 1], `[N, C, h, w]`."""
        extractor = judged_by(self.pipe)
        return extractor(images.to(extractor.dtype)).float()

    def score(self, images: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Maps of distances to the nearest position, image scores of distances to the nearest images."""
        seen = look(self.pipe, images)
        features = self.features(seen)
        distances = torch.cdist(features.mean(dim=(2, 3)), self.pooled)  # [N, M]
        nearest = distances.topk(min(self.neighbours, len(self.bank)), largest=False)
        maps = []
        for one, chosen in zip(features, nearest.indices, strict=True):
            gallery = self.bank[chosen].float().permute(0, 2, 3, 1).flatten(0, 2)  # [K h w, C]
            found = torch.cdist(one.flatten(1).T, gallery).amin(dim=1)
            maps.append(found.view(1, 1, *one.shape[1:]))
        size = self.pipe.unet.config.sample_size
        smooth = self.pipe.smooth(F.interpolate(torch.cat(maps), size=(size, size), mode="bilinear"))
        return smooth[:, 0].numpy(), nearest.values.mean(dim=1).numpy()

    def size(self) -> int:
        """The features of all good images."""
        return self.bank.nbytes + network_size(judged_by(self.pipe))
