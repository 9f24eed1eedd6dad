"""anomalib's methods without training, with our backbone's weights and our image size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from torch import nn

from benchmarks.methods import Images, backbone_input, judged_by, look, network_size
from ddad import DDADPipeline
from ddad.calibration.backbone import load_packaged_weights

# Random patches that PatchCore's greedy selection starts from, and the part that it keeps: all patches of hundreds of
# images would take it days on a CPU.
PATCHES, PATCHES_KEPT = 50_000, 0.1


@contextmanager
def packaged_backbones() -> Iterator[None]:
    """Where anomalib asks timm for ImageNet weights, it gets those that a package carries: no download."""
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        model = create(name, pretrained=False, **options)
        if pretrained:
            source = load_packaged_weights(name).state_dict()
            model.load_state_dict({key: source[key] for key in model.state_dict()})
        return model

    with mock.patch.object(timm, "create_model", create_model):
        yield


def layer_names(pipe: DDADPipeline, strides: tuple[int, ...]) -> list[str]:
    """The backbone's layers of some strides, as timm names them."""
    with torch.device("meta"):
        info = timm.create_model(judged_by(pipe).config.backbone, features_only=True).feature_info
    return [info.module_name()[info.reduction().index(stride)] for stride in strides]


class Rival:
    """A network of anomalib, that sees what the backbone was trained to see."""

    slow = False
    pipe: DDADPipeline
    model: nn.Module

    @torch.no_grad()
    def score(self, images: list[torch.Tensor]) -> tuple[np.ndarray | None, np.ndarray]:
        """Its own maps and image scores."""
        seen = look(self.pipe, images)
        output = self.model(backbone_input(judged_by(self.pipe), seen))
        return output.anomaly_map.reshape(len(seen), *seen.shape[2:]).numpy(), output.pred_score.flatten().numpy()

    def size(self) -> int:
        """All of it at half precision."""
        return network_size(self.model)


class FeatureRival(Rival):
    """PaDiM or PatchCore of anomalib: features of all good images, then one fit."""

    def __init__(self, pipe: DDADPipeline):
        self.pipe = pipe
        with packaged_backbones():
            self.model = self.create()

    def create(self) -> nn.Module:
        """Anomalib's network."""
        raise NotImplementedError

    def finish(self) -> None:
        """What follows when all features were seen."""
        raise NotImplementedError

    def fit(self, images: Images) -> None:
        """Shows it all good images."""
        torch.manual_seed(0)
        self.model.train()
        self.model.feature_extractor.eval()
        for batch in images.looks():
            self.model(backbone_input(judged_by(self.pipe), batch))
        self.finish()
        self.model.eval()


class Padim(FeatureRival):
    """A Gaussian at each position: "PaDiM: a Patch Distribution Modeling Framework" (Defard et al., 2020)."""

    name = "PaDiM (anomalib)"
    note = "strides 4, 8, 16, 100 random channels, a Gaussian at each position of stride 4"

    def create(self) -> nn.Module:
        """PaDiM on our strides."""
        from anomalib.models.image.padim.torch_model import PadimModel

        torch.manual_seed(0)
        config = judged_by(self.pipe).config
        return PadimModel(config.backbone, layer_names(self.pipe, tuple(config.strides)), n_features=100)

    def finish(self) -> None:
        """Fits the Gaussians."""
        self.model.fit()

    def size(self) -> int:
        """Means and inverse covariances at half precision."""
        gaussian = self.model.gaussian
        return 2 * (gaussian.mean.numel() + gaussian.inv_covariance.numel()) + network_size(
            self.model.feature_extractor
        )


class Patchcore(FeatureRival):
    """Nearest patches: "Towards Total Recall in Industrial Anomaly Detection" (Roth et al., 2022)."""

    name = "PatchCore (anomalib)"
    note = f"strides 8, 16; a coreset of {PATCHES_KEPT:.0%} of {PATCHES:,} random patches"

    def create(self) -> nn.Module:
        """PatchCore on strides 8 and 16, as its authors chose them."""
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        return PatchcoreModel(layer_names(self.pipe, (8, 16)), judged_by(self.pipe).config.backbone)

    def finish(self) -> None:
        """Selects the patches that it keeps."""
        patches = torch.vstack(list(self.model.embedding_store))
        chosen = torch.randperm(len(patches))[:PATCHES]
        self.model.embedding_store.clear()
        self.model.embedding_store.append(patches[chosen])
        self.model.subsample_embedding(PATCHES_KEPT)

    def size(self) -> int:
        """The kept patches at half precision."""
        return 2 * self.model.memory_bank.numel() + network_size(self.model.feature_extractor)


class Dfm(FeatureRival):
    """Principal components of deep features.

    Source: "Probabilistic Modeling of Deep Features for Out-of-Distribution and Adversarial Detection" (Ahuja et al.,
    2019).
    """

    name = "DFM (anomalib)"
    note = "stride 16 pooled by 2; principal components, reconstruction error of the features"

    def create(self) -> nn.Module:
        """DFM on stride 16."""
        from anomalib.models.image.dfm.torch_model import DFMModel

        (layer,) = layer_names(self.pipe, (16,))
        backbone = judged_by(self.pipe).config.backbone
        return DFMModel(backbone, layer, pre_trained=True, pooling_kernel_size=2, n_comps=0.97, score_type="fre")

    def finish(self) -> None:
        """Fits the principal components."""
        self.model.fit()
