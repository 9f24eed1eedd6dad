"""Methods without training that are short enough to write on our backbone."""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.methods import Images, network_size
from ddad import DDADPipeline


class Spade:
    """The nearest good images by their pooled features, then the nearest positions in them.

    Source: "Sub-Image Anomaly Detection with Deep Pyramid Correspondences" (Cohen and Hoshen, 2020): K = 50 images,
    one nearest position each way, a Gaussian of sigma 4; on the features that our U-Net predicts.
    """

    name = "SPADE"
    slow = True
    note = "K = 50 images, positions of a 32x32 grid"
    neighbours = 50

    def __init__(self, pipe: DDADPipeline):
        self.pipe = pipe

    def fit(self, images: Images) -> None:
        """Keeps the features of all good images."""
        self.bank = torch.cat([self.pipe.extract_features(batch).half() for batch in images.batches()])  # [M, C, h, w]
        self.pooled = self.bank.float().mean(dim=(2, 3))  # [M, C]

    def score(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Maps of distances to the nearest position, image scores of distances to the nearest images."""
        features = self.pipe.extract_features(images)
        distances = torch.cdist(features.mean(dim=(2, 3)), self.pooled)  # [N, M]
        nearest = distances.topk(min(self.neighbours, len(self.bank)), largest=False)
        maps = []
        for one, chosen in zip(features, nearest.indices, strict=True):
            gallery = self.bank[chosen].float().permute(0, 2, 3, 1).flatten(0, 2)  # [K h w, C]
            found = torch.cdist(one.flatten(1).T, gallery).amin(dim=1)
            maps.append(found.view(1, 1, *one.shape[1:]))
        size = images.shape[-1]
        smooth = self.pipe.smooth(F.interpolate(torch.cat(maps), size=(size, size), mode="bilinear"), size)
        return smooth[:, 0].numpy(), nearest.values.mean(dim=1).numpy()

    def size(self) -> int:
        """The features of all good images."""
        return self.bank.nbytes + network_size(self.pipe.feature_extractor)
