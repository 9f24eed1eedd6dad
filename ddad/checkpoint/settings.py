"""What the settings of a checkpoint may be: one that makes no sense is refused in a sentence.

Who loads with `trust_remote_code` runs the repository's own code, and needs no bounds.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Strict, ValidationError, create_model

from ddad.pipeline import FeatureScore, Tolerance


def whole(low: int, high: int) -> Any:
    """A whole number within bounds."""
    return Annotated[int, Strict(), Field(ge=low, le=high)]


def number(low: float, high: float) -> Any:
    """A finite number within bounds."""
    return Annotated[float, Strict(), Field(ge=low, le=high, allow_inf_nan=False)]


def several(kind: Any) -> Any:
    """A list that is not empty."""
    return Annotated[tuple[kind, ...], Field(min_length=1)]


TEXT, SWITCH = Annotated[str, Strict()], Annotated[bool, Strict()]
ANY = number(-1e9, 1e9)
NUMBERS: Any = several(ANY)

# By class, what each setting must be; what is None by default may be None.
BOUNDS: dict[str, dict[str, Any]] = {
    "DDADPipeline": {
        "category": TEXT,
        "alpha": number(0, 1),
        "threshold": ANY,
        "blur_sigma": number(0, 64),
        "feature_score": FeatureScore,
        "tolerance": Tolerance,
    },
    "DDADUNet2DModel": {
        "sample_size": whole(16, 2048),
        "patch_size": whole(1, 64),
        "block_out_channels": several(whole(1, 8192)),
        "layers_per_block": whole(1, 16),
        "down_block_types": several(TEXT),
        "up_block_types": several(TEXT),
        "downsample_type": Literal["conv", "resnet"],
        "upsample_type": Literal["conv", "resnet"],
        "attention_head_dim": whole(1, 8192),
        "num_attention_heads": whole(1, 1024),
        "time_channels": whole(2, 8192),
        "resnet_time_scale_shift": Literal["default", "scale_shift"],
        "norm_num_groups": whole(1, 8192),
        "feature_channels": whole(1, 65_536),
        "feature_block": whole(0, 15),
        "feature_layer": whole(0, 16),
    },
    "DDADScheduler": {
        "num_train_timesteps": whole(2, 100_000),
        "beta_start": number(1e-9, 0.5),
        "beta_end": number(1e-9, 0.5),
        "prediction_type": Literal["epsilon", "sample", "v_prediction"],
        "detail_std": number(0, 2),
        "clip_sample": SWITCH,
        "variance_type": Literal["learned_range"],
        "num_inference_steps": whole(2, 100_000),
    },
    "DDADFeatureExtractor": {
        "backbone": TEXT,
        "strides": several(whole(1, 64)),
        "grid_size": whole(1, 512),
        "neighborhood": whole(1, 31),
        "image_mean": several(number(-10, 10)),
        "image_std": several(number(1e-6, 10)),
        "image_size": whole(16, 4096),
    },
    "DDADGaussianModel": {
        "feature_channels": whole(1, 65_536),
        "num_channels": whole(1, 4096),
        "grid_size": whole(1, 128),
        "num_factors": whole(0, 4096),
    },
    "DDADMemory": {"num_channels": whole(1, 4096), "num_patches": whole(1, 1_000_000)},
    "DDADCalibration": {
        "timesteps": several(whole(0, 100_000)),
        "num_calibration_images": whole(0, 1_000_000),
        "num_changed_images": whole(0, 1_000_000),
        "calibration_size": whole(1, 512),
        "statistics": dict[str, NUMBERS],
        "threshold_quantile": number(0, 1),
        "num_top_cells": whole(1, 262_144),
        "region_size": whole(0, 4096),
    },
    "DDADRenderer": {"opacity": number(0, 1)},
    "DDADDenoiser": {
        "inpainting_steps": several(whole(0, 100_000)),
        "grain_step": whole(0, 100_000),
        "denoising_step": whole(0, 100_000),
        "denoise_every": whole(1, 1_000_000),
        "most_gradient_steps": whole(1, 100_000),
        "most_refined_steps": whole(1, 100_000),
        "step_size": number(1e-9, 2),
        "momentum": number(0, 1),
        "growth": number(1, 10),
        "decay": number(0, 1),
        "smallest_step": number(1e-9, 2),
        "check_every": whole(1, 1_000_000),
        "least_progress": number(0, 1),
        "gradient_sigma": number(0, 64),
        "whole_step_size": number(0, 1),
    },
    "DDADImageProcessor": {
        "max_pixels": whole(256, 10**10),
        "min_side": whole(1, 10_000),
        "max_value": number(1e-9, 1e12),
    },
    "DDADRefiner": {
        "channels": several(whole(1, 1024)),
        "middle_blocks": whole(1, 64),
        "image_size": whole(64, 4096),
    },
}


@functools.cache
def model_of(built: type) -> type[BaseModel]:
    """The table of a class's settings, with its own defaults."""
    parameters = inspect.signature(built.__init__).parameters  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, kind in BOUNDS.get(built.__name__, {}).items():
        default = parameters[name].default
        fields[name] = (kind | None if default is None else kind, default)
    return create_model(built.__name__, **fields)


def check_settings(built: type, name: str, settings: Mapping[str, Any]) -> None:
    """Checks the settings of the pipeline or a component.

    Args:
        built: the class that will be built of them.
        name: what to call it in a message.
        settings: they; those without a bound are not looked at.

    Raises:
        ValueError: for a setting of another type or out of bounds; it names setting, rule and value.
    """
    try:
        model_of(built).model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        setting, *within = map(str, first["loc"])
        shown = repr(first["input"])
        shown = shown if len(shown) < 80 else f"{shown[:80]}..."
        rule = first["msg"].replace("Input should be", "must be", 1)
        if first["type"] == "too_short":
            rule = "must not be empty"
        place = f" (at {'.'.join(within)})" if within else ""
        raise ValueError(f"The setting `{setting}` of {name} {rule}, found {shown}{place}.") from None
