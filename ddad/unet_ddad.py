"""The denoising U-Net: one evaluation gives the denoising prediction, the learned variance and the clean features.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023).
The features of the clean image are predicted from an activation of the decoder by GroupNorm, SiLU and a 1x1
convolution.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

# The activation that feeds the feature head, in the thread that evaluates the network.
ACTIVATION: ContextVar[torch.Tensor] = ContextVar("activation")


def keep_activation(*arguments: Any) -> None:
    """Keeps what a layer gives; a forward hook, called with the layer, its inputs and its output."""
    ACTIVATION.set(arguments[-1])


@dataclass
class DDADUNet2DOutput(BaseOutput):
    """What the U-Net makes of a noisy image.

    Attributes:
        sample: `[N, 6, H, W]`: the denoising prediction (3 channels) and the variance value v (3 channels), laid out
            as learned-variance models of diffusers do.
        features: `[N, feature_channels, h, w]`: the predicted features of the clean image.
    """

    sample: torch.Tensor
    features: torch.Tensor


class DDADUNet2DModel(ModelMixin, ConfigMixin):
    """A `UNet2DModel` on pixel-unshuffled images with a second head that predicts the features of the clean image.

    Args:
        sample_size: height and width of the image in pixels, a multiple of `patch_size`.
        patch_size: side of the square patches that become channels; 1 is the paper's U-Net on pixels.
        block_out_channels: channels of each resolution, from the finest to the coarsest.
        layers_per_block: residual blocks at each resolution on the way down.
        down_block_types: diffusers' block names from the finest to the coarsest resolution.
        up_block_types: diffusers' block names from the coarsest to the finest resolution.
        downsample_type: `"conv"` or `"resnet"`, for blocks with attention.
        upsample_type: `"conv"` or `"resnet"`, for blocks with attention.
        attention_head_dim: channels of an attention head.
        num_attention_heads: heads of every attention, whatever its channels (guided-diffusion's 128x128 model); None
            divides by `attention_head_dim`.
        time_channels: channels of the sinusoidal embedding of t, a quarter of what it becomes; None takes the first
            of `block_out_channels` (guided-diffusion's 512x512 model has twice as many).
        resnet_time_scale_shift: how the time embedding enters: `"default"` (added) or `"scale_shift"`.
        norm_num_groups: groups of each GroupNorm.
        feature_channels: channels of the predicted features.
        feature_block: index of the up block, from the coarsest, whose activation feeds the feature head.
        feature_layer: index of the residual block inside it.

    Raises:
        ValueError: if `sample_size` does not divide into patches and resolutions.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        patch_size: int = 8,
        block_out_channels: tuple[int, ...] = (96, 160, 224),
        layers_per_block: int = 1,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        attention_head_dim: int = 32,
        num_attention_heads: int | None = None,
        time_channels: int | None = None,
        resnet_time_scale_shift: str = "default",
        norm_num_groups: int = 16,
        feature_channels: int = 176,
        feature_block: int = 2,
        feature_layer: int = 1,
    ):
        super().__init__()
        multiple = patch_size * 2 ** (len(block_out_channels) - 1)
        if sample_size % multiple:
            raise ValueError(
                f"`sample_size` must be a multiple of {multiple} (`patch_size` times the halvings), found"
                f" {sample_size}."
            )
        time_channels = time_channels or block_out_channels[0]
        self.unet = UNet2DModel(
            sample_size=sample_size // patch_size,
            in_channels=3 * patch_size**2,
            out_channels=6 * patch_size**2,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            attention_head_dim=attention_head_dim if num_attention_heads is None else None,
            resnet_time_scale_shift=resnet_time_scale_shift,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=norm_num_groups,  # else the middle attention has none beside "scale_shift"
            time_embedding_dim=4 * time_channels,
        )
        if time_channels != block_out_channels[0]:
            self.unet.time_proj = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.unet.time_embedding = TimestepEmbedding(time_channels, 4 * time_channels)
        if num_attention_heads is not None:
            for module in self.unet.modules():
                if isinstance(module, Attention):
                    module.heads = num_attention_heads
        block = self.unet.up_blocks[feature_block]
        channels = block.resnets[feature_layer].out_channels
        layers = getattr(block, "attentions", None) or block.resnets
        layers[feature_layer].register_forward_hook(keep_activation)
        self.feature_head = nn.Sequential(
            nn.GroupNorm(norm_num_groups, channels), nn.SiLU(), nn.Conv2d(channels, feature_channels, kernel_size=1)
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        return_dict: bool = True,
    ) -> DDADUNet2DOutput | tuple[torch.Tensor, torch.Tensor]:
        """Predicts noise or image, variance and clean features from a noisy image.

        Args:
            sample: x_t, `[N, 3, H, W]`.
            timestep: t in the training process, `[N]` or one number for all.
            return_dict: whether to return a `DDADUNet2DOutput` or a tuple.
        """
        patches = F.pixel_unshuffle(sample, self.config.patch_size)
        output = self.unet(patches, timestep).sample
        output = F.pixel_shuffle(output, self.config.patch_size)  # [N, 6, H, W]
        features = self.feature_head(ACTIVATION.get())  # [N, feature_channels, h, w]
        if not return_dict:
            return output, features
        return DDADUNet2DOutput(sample=output, features=features)
