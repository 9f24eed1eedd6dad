"""Weights of OpenAI's guided-diffusion -> the U-Net of the paper, which starts from them.

Source of the names on the left side: github.com/openai/guided-diffusion, `unet.py` (MIT); of the released models'
settings: its README. On the right side are diffusers' names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ddad.scheduling_ddad import DDADScheduler
from ddad.unet_ddad import DDADUNet2DModel

# The released 128x128 model (five resolutions) has four heads at every attention, all others heads of 64 channels.
LEVELS_OF_128, HEADS_OF_128 = 5, 4
RELEASED_HEAD_DIM = 64
# All released models halve the image down to 8x8.
COARSEST_SIZE = 8
# The paper predicts features at 64x64 of 256x256: after two halvings.
FEATURE_LEVEL = 2

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, `.safetensors` or `.pt`; no code in it is run.

    Raises:
        ValueError: if it is no file of tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} holds no weights that can be read without running code of it: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a file of weights by name, as guided-diffusion saves them.")
    return state


def read_settings(shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """The settings of our U-Net that its tensors' names and shapes tell.

    Args:
        shapes: of every tensor, by guided-diffusion's name.

    Raises:
        ValueError: for networks of another kind: classifiers, upsamplers, models without learned variance, the 64x64
            model (another noise schedule), and up- and downsampling by plain convolutions.
    """
    kind = "The weights are not those of a guided-diffusion U-Net that ddad can start from"
    if "input_blocks.0.0.weight" not in shapes or "out.2.weight" not in shapes or "time_embed.0.weight" not in shapes:
        raise ValueError(f"{kind}: input, output or time embedding is missing. A classifier?")
    if shapes["input_blocks.0.0.weight"][1] != 3:
        raise ValueError(f"{kind}: it takes {shapes['input_blocks.0.0.weight'][1]} channels. An upsampler?")
    if shapes["out.2.weight"][0] != 6:
        raise ValueError(f"{kind}: it learned no variance (`learn_sigma`).")
    count = len({name.split(".")[1] for name in shapes if name.startswith("output_blocks.")})
    # The last residual block of a resolution is followed by one that doubles the size.
    resamples = {
        int(name.split(".")[1])
        for name in shapes
        if name.startswith("output_blocks.") and name.endswith("in_layers.2.weight") and name.split(".")[2] != "0"
    }
    if not resamples or count % (min(resamples) + 1):
        raise ValueError(f"{kind}: sizes are not changed by residual blocks (`resblock_updown`).")
    each = min(resamples) + 1
    levels = count // each
    if COARSEST_SIZE * 2 ** (levels - 1) < 128:
        raise ValueError(f"{kind}: the 64x64 model was trained with a cosine noise schedule.")
    firsts = [f"input_blocks.{1 + level * each}" for level in range(levels)]
    attends = [f"{first}.1.qkv.weight" in shapes for first in firsts]
    channels = tuple(int(shapes[f"{first}.0.out_layers.3.weight"][0]) for first in firsts)
    scales = shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * channels[0]
    return {
        "sample_size": COARSEST_SIZE * 2 ** (levels - 1),
        "patch_size": 1,
        "block_out_channels": channels,
        "layers_per_block": each - 1,
        "down_block_types": tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends),
        "up_block_types": tuple(
            "AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends)
        ),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": RELEASED_HEAD_DIM,
        "num_attention_heads": HEADS_OF_128 if levels == LEVELS_OF_128 else None,
        "time_channels": int(shapes["time_embed.0.weight"][1]),
        "resnet_time_scale_shift": "scale_shift" if scales else "default",
        "norm_num_groups": 32,
        "feature_block": levels - 1 - FEATURE_LEVEL,
        "feature_layer": 1,
    }


def block_names(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of a block's name there and its name here, residual blocks and attentions alike."""
    levels, layers = len(settings["block_out_channels"]), settings["layers_per_block"]
    number = 1
    for level, block_type in enumerate(settings["down_block_types"]):
        for layer in range(layers):
            yield f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}"
            if block_type.startswith("Attn"):
                yield f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{layer}"
            number += 1
        if level < levels - 1:
            yield f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0"
            number += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    for level, block_type in enumerate(settings["up_block_types"]):
        attends = block_type.startswith("Attn")
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            yield f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}"
            if attends:
                yield f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            yield f"output_blocks.{number}.{2 if attends else 1}", f"up_blocks.{level}.upsamplers.0"


def split_attention(qkv: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, ...]:
    """Weight `[3C, C, 1]` or bias `[3C]` of a joint projection -> those of query, key and value.

    There each head has its query, key and value side by side (`QKVAttentionLegacy`); here all heads' queries come
    first.
    """
    matrix = qkv.flatten(1) if qkv.ndim > 1 else qkv
    heads = matrix.view(-1, 3, head_dim, *matrix.shape[1:])  # [heads, 3, head_dim, ...]
    return tuple(part.flatten(0, 1).contiguous() for part in heads.unbind(1))


def convert_weights(state: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Renames every tensor for the `UNet2DModel` inside our U-Net; with tensors on meta it allocates nothing.

    Args:
        state: the tensors, by guided-diffusion's names.
        settings: what `read_settings` told of them. An embedding of classes is dropped: one category needs none.

    Raises:
        ValueError: if a tensor is left over.
    """
    left = dict(state)
    left.pop("label_emb.weight", None)
    converted = {}
    names = dict(OUTSIDE)
    for there, here in block_names(settings):
        if f"{there}.qkv.weight" in left:
            names |= {f"{there}.norm": f"{here}.group_norm"}
            for kind in ("weight", "bias"):
                qkv = left.pop(f"{there}.qkv.{kind}")
                channels = len(qkv) // 3
                heads = settings["num_attention_heads"] or channels // settings["attention_head_dim"]
                for name, part in zip("qkv", split_attention(qkv, channels // heads), strict=True):
                    converted[f"{here}.to_{name}.{kind}"] = part
            converted[f"{here}.to_out.0.weight"] = left.pop(f"{there}.proj_out.weight").flatten(1)
            converted[f"{here}.to_out.0.bias"] = left.pop(f"{there}.proj_out.bias")
        else:
            names |= {f"{there}.{theirs}": f"{here}.{ours}" for theirs, ours in RESNET.items()}
    for there, here in names.items():
        for kind in ("weight", "bias"):
            if f"{there}.{kind}" in left:
                converted[f"{here}.{kind}"] = left.pop(f"{there}.{kind}")
    if left:
        raise ValueError(f"{len(left)} tensors have no place in the U-Net, {min(left)} for one.")
    return converted


def convert(
    state: dict[str, torch.Tensor], attention_head_dim: int | None = None
) -> tuple[DDADUNet2DModel, DDADScheduler]:
    """Our U-Net with these weights, an untrained feature head, and the process that they were trained for.

    Args:
        state: the tensors, by guided-diffusion's names.
        attention_head_dim: channels of an attention head of a model that OpenAI did not release.

    Raises:
        ValueError: if a tensor is missing, left over, or the network is of another kind.
    """
    settings = read_settings({name: value.shape for name, value in state.items()})
    if attention_head_dim is not None:
        settings |= {"attention_head_dim": attention_head_dim, "num_attention_heads": None}
    converted = convert_weights(state, settings)
    with torch.device("meta"):
        unet = DDADUNet2DModel(**settings)
    missing = sorted(unet.unet.state_dict().keys() - converted.keys())
    if missing:
        raise ValueError(f"The file is incomplete: it lacks {len(missing)} tensors, {missing[0]} for one.")
    try:
        unet.unet.load_state_dict(converted, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The file's tensors do not fit: {error}") from error
    unet.feature_head.to_empty(device="cpu")
    for module in unet.feature_head.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return unet.float().eval(), DDADScheduler(prediction_type="epsilon")
