"""How a picture was taken, in four numbers: what tells a dark lamp or a lens out of focus from more defects."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

# Pictures are measured at no more than this side: it is what verdicts rest on, and it takes milliseconds.
LONGEST = 512
# Where the grey levels hardly differ there is nothing to be sharp or not.
LEAST_CONTRAST = 1e-3


@dataclass(frozen=True)
class Condition:
    """Of one picture.

    Attributes:
        brightness: mean grey level, in [0, 1].
        contrast: standard deviation of the grey levels.
        sharpness: mean absolute second difference of neighbouring pixels over the contrast: a lens out of focus or a
            part that moves lowers it, whatever the lamp.
        distance: median of the anomaly map, in standard deviations of good pixels: how far the picture as a whole lies
            from good ones. Defects, which cover little, hardly move it.
    """

    brightness: float
    contrast: float
    sharpness: float
    distance: float


def measure_condition(pixels: np.ndarray, anomaly_map: np.ndarray) -> Condition:
    """Of a picture `[H, W, 3]`, uint8 or float in [0, 1], and its anomaly map of any size."""
    grey = pixels.mean(axis=2, dtype=np.float32)
    if pixels.dtype == np.uint8:
        grey /= 255
    scale = LONGEST / max(grey.shape)
    if scale < 1:
        size = max(2, round(grey.shape[1] * scale)), max(2, round(grey.shape[0] * scale))
        grey = np.asarray(PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BOX))
    contrast = float(grey.std())
    second = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    sharpness = float(np.abs(second).mean()) / max(contrast, LEAST_CONTRAST)
    return Condition(float(grey.mean()), contrast, sharpness, float(np.median(anomaly_map)))
