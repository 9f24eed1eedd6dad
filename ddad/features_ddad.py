"""Image -> deep features of a frozen ImageNet backbone, the target that the U-Net predicts for the clean image.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023). The
neighbourhood average is that of "Towards Total Recall in Industrial Anomaly Detection" (Roth et al., 2022).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from timm.models import get_pretrained_cfg
from torch import nn

_loaded_before = globals().get("DDADFeatureExtractor")


class DDADFeatureExtractor(ModelMixin, ConfigMixin):
    """Features of several strides of a timm backbone, on one grid, standardised by channel.

    The weights are those of the checkpoint; nothing is downloaded here. The part of the backbone behind the last
    stride that is used is not built.

    Args:
        backbone: any timm model name that supports `features_only`.
        strides: the strides whose features are taken; each must be one that the backbone has. Of a transformer whose
            blocks all have one stride so many levels are taken, evenly over its depth.
        grid_size: height and width of the grid on which all features are brought together.
        neighborhood: side of the square over which features are averaged first; 1 averages nothing.
        image_mean: mean of the backbone's training images, RGB in [0, 1]; None takes timm's for this backbone.
        image_std: their standard deviation; None takes timm's for this backbone.
        image_size: height and width at which images are looked at; None takes them as they come, or at the only size
            that the backbone takes.

    Raises:
        ValueError: if timm has no such backbone, a stride is not one of its own, or `neighborhood` is even.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        strides: tuple[int, ...] = (4, 8, 16),
        grid_size: int = 32,  # noqa: ARG002 - kept in the config
        neighborhood: int = 3,
        image_mean: tuple[float, ...] | None = None,
        image_std: tuple[float, ...] | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        if neighborhood % 2 == 0:
            raise ValueError(f"`neighborhood` must be odd, found {neighborhood}.")
        # timm would take a name with a colon or slash from a hub or a folder: a checkpoint brings its weights itself.
        if not timm.is_model(backbone):
            raise ValueError(f"`backbone` must be the name of a model that timm has, found {backbone!r}.")
        options = self.size_options(backbone, image_size)
        with torch.device("cpu" if options else "meta"):  # transformers compute tables when they are built
            getter = timm.create_model(backbone, features_only=True, feature_cls="getter", **options)
            available = getter.feature_info.reduction()
            depth = len(timm.create_model(backbone, **options).feature_info)
        if len(set(available)) == 1:  # a transformer of one stride: as many levels, evenly over its blocks
            indices = [depth * (number + 1) // len(strides) - 1 for number in range(len(strides))]
        else:
            missing = [stride for stride in strides if stride not in available]
            if missing:
                raise ValueError(f"`strides` {missing} are not among those of {backbone}, which are {available}.")
            indices = [available.index(stride) for stride in strides]
        self.network = timm.create_model(
            backbone, features_only=True, feature_cls="getter", out_indices=indices, **options
        )
        if options:
            self.register_to_config(image_size=options["img_size"])
        pretrained = get_pretrained_cfg(backbone)
        self.register_to_config(image_mean=tuple(image_mean or pretrained.mean))
        self.register_to_config(image_std=tuple(image_std or pretrained.std))
        # Parameters and not buffers: offloading and the check for missing weights see parameters only.
        channels = sum(self.network.feature_info.channels())
        self.feature_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.feature_std = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Loads it; built whole first: what transformers compute when they are built is in no checkpoint.

        Raises:
            ValueError: for a `device_map` of more than one device.
        """
        places = options.pop("device_map", None)
        devices = set(places.values()) if isinstance(places, dict) else {places} - {None}
        if len(devices) > 1 or devices & {"auto", "balanced", "balanced_low_0", "sequential"}:
            raise ValueError(
                "`device_map` must be one device, such as 'cuda' or 'cpu': the networks call each other at every step."
            )
        loaded = super().from_pretrained(*arguments, **{**options, "low_cpu_mem_usage": False})
        for device in devices:
            (loaded[0] if isinstance(loaded, tuple) else loaded).to(device)
        return loaded

    @staticmethod
    def size_options(backbone: str, image_size: int | None) -> dict[str, int]:
        """What timm must be told of the size of images: nothing for networks that take any."""
        pretrained = get_pretrained_cfg(backbone)
        return {"img_size": image_size or pretrained.input_size[-1]} if pretrained.fixed_input_size else {}

    @property
    def feature_channels(self) -> int:
        """Number of channels of the features."""
        return len(self.feature_mean)

    def train(self, mode: bool = True) -> "DDADFeatureExtractor":  # noqa: ARG002
        """Stays in evaluation mode: the backbone is frozen, its batch statistics too."""
        return super().train(False)

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """Features before standardisation: images `[N, 3, H, W]` in [-1, 1] -> `[N, C, grid_size, grid_size]`."""
        if len(images) > 1 and images.device.type == "cpu":  # of one image activations stay in the processor's caches
            return torch.cat([self.extract_together(image) for image in images.split(1)])
        return self.extract_together(images)

    def extract_together(self, images: torch.Tensor) -> torch.Tensor:
        """The same in one evaluation of the backbone."""
        images = images.contiguous(memory_format=torch.channels_last)
        wanted = self.config.image_size
        if wanted is not None and images.shape[-1] != wanted:
            images = F.interpolate(images, size=(wanted, wanted), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (
            torch.tensor(v, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
            for v in (self.config.image_mean, self.config.image_std)
        )
        size = (self.config.grid_size, self.config.grid_size)
        grids = []
        for features in self.network(((images + 1) / 2 - mean) / std):
            if self.config.neighborhood > 1:
                features = F.avg_pool2d(
                    features,
                    self.config.neighborhood,
                    stride=1,
                    padding=self.config.neighborhood // 2,
                    count_include_pad=False,
                )
            if features.shape[-1] > self.config.grid_size:
                grids.append(F.adaptive_avg_pool2d(features, size))
            else:
                grids.append(F.interpolate(features, size=size, mode="bilinear", align_corners=False))
        return torch.cat(grids, dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised features: images `[N, 3, H, W]` in [-1, 1] -> `[N, C, grid_size, grid_size]`."""
        return self.standardise(self.extract(images))

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """`[N, C, h, w]` in standard deviations of each channel on normal images."""
        return (features - self.feature_mean.view(1, -1, 1, 1)) / self.feature_std.view(1, -1, 1, 1)

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Measures mean and standard deviation of each channel on normal images, batches of `[N, 3, H, W]`."""
        count, total, squares = 0, 0.0, 0.0
        for images in batches:
            features = self.extract(images).double()
            count += features.numel() // features.shape[1]
            total = total + features.sum(dim=(0, 2, 3))
            squares = squares + features.square().sum(dim=(0, 2, 3))
        if count == 0:
            raise ValueError("`batches` is empty: features cannot be standardised without images.")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=1e-3 * float(std.max())))


# diffusers runs a file of code anew for every component that names it, here two, and for every checkpoint. One file is
# one class, or what was loaded first could not be given to another process.
if _loaded_before is not None and _loaded_before.source_code == DDADFeatureExtractor.source_code:
    globals()["DDADFeatureExtractor"] = _loaded_before
