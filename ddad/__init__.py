"""ddad: finds defects on product images with a diffusion model of good parts, and shows the part without them."""

from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.normality_ddad import DDADNormalityModel, DDADScores
from ddad.pipeline import DDADPipeline, DDADPipelineOutput
from ddad.scheduling_ddad import DDADScheduler
from ddad.unet_ddad import DDADUNet2DModel

__version__ = "0.2.0"

__all__ = [
    "DDADDenoiser",
    "DDADFeatureExtractor",
    "DDADImageProcessor",
    "DDADNormalityModel",
    "DDADPipeline",
    "DDADPipelineOutput",
    "DDADScheduler",
    "DDADScores",
    "DDADUNet2DModel",
]
