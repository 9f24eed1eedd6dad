"""The settings of a training run, and the presets of the U-Net."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddad.datasets.layouts import DataFormat

PRESETS: dict[str, dict[str, Any]] = {
    # 11 M parameters on 4x4 patches, fewer values than the first layer has channels: no detail is lost on the way in.
    "cpu": {
        "patch_size": 4,
        "block_out_channels": (64, 96, 160, 224),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 32,
        "norm_num_groups": 16,
        "feature_block": 2,
        "feature_layer": 1,
    },
    # The paper's U-Net: guided-diffusion at 256x256; the features come from the second block at 64x64.
    "paper": {
        "patch_size": 1,
        "block_out_channels": (256, 256, 512, 512, 1024, 1024),
        "layers_per_block": 2,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 32,
        "feature_block": 3,
        "feature_layer": 1,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Every field is a flag of `ddad train`; all are saved with the checkpoint.

    Raises:
        ValueError: for a value that cannot be trained with; the message says what is expected.
    """

    data: str = dataclasses.field(metadata={"help": "folder of good images, or of a data set"})
    output: str = dataclasses.field(metadata={"help": "folder that the pipeline is saved to"})
    data_format: DataFormat = dataclasses.field(default="auto", metadata={"help": "layout of --data"})
    good: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"help": "folders below --data that hold good images, where names do not say so"}
    )
    category: str = dataclasses.field(default="", metadata={"help": "name of the product (default: name of --output)"})
    license: str = dataclasses.field(default="", metadata={"help": "licence of the images, as the Hub names it"})
    data_source: str = dataclasses.field(default="", metadata={"help": "a sentence on the images, for the card"})
    preset: Literal["cpu", "paper"] = dataclasses.field(default="cpu", metadata={"help": "size of the U-Net"})
    base: str = dataclasses.field(
        default="auto",
        metadata={
            "help": "folder or USER/NAME of a network to start from; none: random weights; auto: a clone's"
            " checkpoints/base, which is not for commercial use, where it is of the preset's shape"
        },
    )
    backbone: str = dataclasses.field(
        default="tf_efficientnet_lite0", metadata={"help": "timm model whose features are predicted"}
    )
    image_size: int = dataclasses.field(default=256, metadata={"help": "side of the images that the U-Net sees"})
    appearance_size: int | None = dataclasses.field(
        default=None,
        metadata={"help": "size at which appearance is looked at (default: 512)"},
    )
    appearance_backbone: str | None = dataclasses.field(
        default=None, metadata={"help": "timm model that appearance is judged by (default: Lite2, else --backbone)"}
    )
    backbone_weights: str | None = dataclasses.field(
        default=None, metadata={"help": "file of its weights: safetensors, or a state dict"}
    )
    strides: tuple[int, ...] = dataclasses.field(
        default=(4, 8, 16), metadata={"help": "strides of its layers that are looked at; a ViT's are all alike"}
    )
    nuisance: Literal["none", "mild", "strong"] = dataclasses.field(
        default="mild", metadata={"help": "how much noise, light, blur and shift is no defect"}
    )
    tolerance: Literal["strict", "tolerant"] = dataclasses.field(
        default="strict",
        metadata={
            "help": "what the threshold makes room for: photographs as they are; tolerant: other light and place too"
        },
    )
    steps: int | None = dataclasses.field(
        default=None, metadata={"help": "optimisation steps (default: 1000 from a base, 2000 from random weights)"}
    )
    batch_size: int = dataclasses.field(default=8, metadata={"help": "images a step and process"})
    learning_rate: float = dataclasses.field(
        default=1e-3, metadata={"help": "peak learning rate of AdamW; 1e-4 suits the paper's size"}
    )
    warmup_steps: int = dataclasses.field(default=100, metadata={"help": "steps until the peak learning rate"})
    ema_decay: float = dataclasses.field(default=0.995, metadata={"help": "decay of the averaged weights"})
    rotation_degrees: float = dataclasses.field(default=5.0, metadata={"help": "largest random rotation"})
    corruption_probability: float = dataclasses.field(
        default=0.7, metadata={"help": "part of the images that are damaged before noise is added"}
    )
    max_timestep: int = dataclasses.field(default=500, metadata={"help": "noise levels trained: 0 to this, of 1000"})
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = dataclasses.field(
        default="sample", metadata={"help": "what the U-Net predicts"}
    )
    detail_std: float = dataclasses.field(
        default=0.03, metadata={"help": "standard deviation of the detail that a prediction of patches leaves out"}
    )
    max_snr: float = dataclasses.field(default=10.0, metadata={"help": "bound of the pixel loss's weight"})
    pixel_weight: float = dataclasses.field(default=10.0, metadata={"help": "weight of the pixel loss"})
    timesteps: tuple[int, ...] = dataclasses.field(
        default=(20, 201, 401), metadata={"help": "noise levels that score images, of the 1000"}
    )
    calibration_fraction: float = dataclasses.field(
        default=0.15, metadata={"help": "part of the images held out to calibrate scores and threshold"}
    )
    region: str = dataclasses.field(
        default="", metadata={"help": "mask of the images' aspect ratio, white where is looked; black decides nothing"}
    )
    threshold_quantile: float = dataclasses.field(
        default=0.95, metadata={"help": "part of the held-out good images that the threshold lets pass"}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = dataclasses.field(
        default="auto", metadata={"help": "auto: bf16 where GPU or processor computes in it, else float32"}
    )
    memory: Literal["full", "low"] = dataclasses.field(
        default="full",
        metadata={"help": "low computes activations twice (gradient checkpointing): for the paper's size"},
    )
    save_every: int = dataclasses.field(default=200, metadata={"help": "steps between two saved states"})
    seed: int = dataclasses.field(default=0, metadata={"help": "seed of everything random"})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "image_size", "learning_rate", "max_snr", "save_every"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, found {getattr(self, name)}.")
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {sorted(PRESETS)}, found {self.preset!r}.")
        if not 1 < self.max_timestep <= 1000:
            raise ValueError(f"`max_timestep` must lie in 2...1000, found {self.max_timestep}.")
        if not self.timesteps or not all(0 <= t < self.max_timestep for t in self.timesteps):
            raise ValueError(
                f"`timesteps` must lie below `max_timestep` ({self.max_timestep}), found {self.timesteps}."
            )
        if len(set(self.timesteps)) != len(self.timesteps):
            raise ValueError(f"`timesteps` must be different noise levels, found {self.timesteps}.")
        for name in ("calibration_fraction", "ema_decay"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, found {getattr(self, name)}.")
        if not 0 < self.threshold_quantile <= 1:
            raise ValueError(f"`threshold_quantile` must lie in (0, 1], found {self.threshold_quantile}.")
        if not 0 <= self.corruption_probability <= 1:
            raise ValueError(f"`corruption_probability` must lie in [0, 1], found {self.corruption_probability}.")
        if not self.category:
            object.__setattr__(self, "category", Path(self.output).name)
