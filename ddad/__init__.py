"""ddad: finds defects on product images with a diffusion model of good parts, and shows the part without them."""

from ddad.features_ddad import DDADFeatureExtractor
from ddad.normality_ddad import DDADNormalityModel
from ddad.pipeline import DDADPipeline, DDADPipelineOutput, DDADScores
from ddad.scheduling_ddad import DDADScheduler
from ddad.unet_ddad import DDADUNet2DModel

__version__ = "0.1.0"

__all__ = [
    "DDADFeatureExtractor",
    "DDADNormalityModel",
    "DDADPipeline",
    "DDADPipelineOutput",
    "DDADScheduler",
    "DDADScores",
    "DDADUNet2DModel",
]
