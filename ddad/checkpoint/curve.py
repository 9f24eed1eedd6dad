"""The training log as a picture for the card."""

import math
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 90, 16, 36
SMOOTHED = 10  # records; the noise level drawn decides much of a single step's loss
COLOURS = {"feature": (214, 39, 40), "pixel": (31, 119, 180), "variance": (110, 110, 110)}


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and up to nine before it, `[M]`."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    first = np.maximum(0, np.arange(len(values)) - SMOOTHED + 1)
    return np.asarray((sums[1:] - sums[first]) / (np.arange(len(values)) + 1 - first))


def draw_losses(losses: list[dict[str, Any]]) -> PIL.Image.Image:
    """The terms of the loss over the steps, on a logarithmic scale.

    Args:
        losses: of a training record: `step`, and each term by name.
    """
    steps = np.array([loss["step"] for loss in losses], dtype=float)
    terms = {
        name: smooth(np.array([max(1e-6, loss[name]) for loss in losses])) for name in COLOURS if name in losses[0]
    }
    low = math.floor(math.log10(min(values.min() for values in terms.values())))
    high = math.ceil(math.log10(max(values.max() for values in terms.values())) + 1e-9)
    last = float(steps[-1])
    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = PIL.ImageDraw.Draw(picture), PIL.ImageFont.load_default(13)

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / max(1, high - low)

    for power in range(low, high + 1):
        y = down(10.0**power)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=(225, 225, 225))
        draw.text((LEFT - 8, y), f"{10.0**power:g}", fill="black", font=font, anchor="rm")
    for part in range(5):
        step = last * part / 4
        label = f"{step:.0f}" if part < 4 else f"{step:.0f} steps"
        draw.text((across(step), HEIGHT - BOTTOM + 8), label, fill="black", font=font, anchor="ma")
    for name, values in terms.items():
        draw.line([(across(x), down(y)) for x, y in zip(steps, values, strict=True)], fill=COLOURS[name], width=2)
        draw.text((WIDTH - RIGHT + 8, down(values[-1])), name, fill=COLOURS[name], font=font, anchor="lm")
    return picture
