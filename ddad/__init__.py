"""ddad: finds defects on product images with a diffusion model of good parts, and shows the part without them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddad.calibration_ddad import DDADCalibration
    from ddad.checkpoint.installed import DDADPipeline
    from ddad.denoising_ddad import DDADDenoiser
    from ddad.features_ddad import DDADFeatureExtractor
    from ddad.gaussians_ddad import DDADGaussianModel
    from ddad.images_ddad import DDADImageProcessor
    from ddad.memory_ddad import DDADMemory
    from ddad.pipeline import DDADPipelineOutput, DDADScores
    from ddad.rendering_ddad import DDADRenderer
    from ddad.scheduling_ddad import DDADScheduler
    from ddad.unet_ddad import DDADUNet2DModel

__version__ = "0.2.0"

__all__ = [
    "DDADCalibration",
    "DDADDenoiser",
    "DDADFeatureExtractor",
    "DDADGaussianModel",
    "DDADImageProcessor",
    "DDADMemory",
    "DDADPipeline",
    "DDADPipelineOutput",
    "DDADRenderer",
    "DDADScheduler",
    "DDADScores",
    "DDADUNet2DModel",
]

# Imported when they are asked for: torch and diffusers take seconds, which `ddad --help` and `ddad list` do not need.
_MODULES = {
    "DDADCalibration": "calibration_ddad",
    "DDADDenoiser": "denoising_ddad",
    "DDADFeatureExtractor": "features_ddad",
    "DDADGaussianModel": "gaussians_ddad",
    "DDADImageProcessor": "images_ddad",
    "DDADMemory": "memory_ddad",
    "DDADPipeline": "checkpoint.installed",
    "DDADPipelineOutput": "pipeline",
    "DDADRenderer": "rendering_ddad",
    "DDADScheduler": "scheduling_ddad",
    "DDADScores": "pipeline",
    "DDADUNet2DModel": "unet_ddad",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
