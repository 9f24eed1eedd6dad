"""Synthetic defects pasted into good images: what choices are made on where no real defect may be looked at.

They are made by other means than the damage that the U-Net trains on (`corruption`): a choice that only suited that
damage would be found out here. Scratches and cracks are drawn; spots, cuts, changed textures, stains, shades and
missing pieces fill irregular blobs, as cut-paste defects do ("CutPaste", Li et al., 2021; "Natural Synthetic
Anomalies", Schlüter et al., 2022). Lengths are parts of the image: a defect is the same at whatever size it is seen.
"""

import math

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
import torch.nn.functional as F
from scipy import ndimage

DEFECT_TYPES = ("scratch", "crack", "spot", "cut", "texture", "stain", "shade", "missing")

# A defect that changes less than this much of the grey scale, or fewer pixels, cannot be asked of anybody to see.
MIN_CHANGE = 0.015
# So often a defect is drawn anew until it lies where is looked at.
MOST_PLACES = 40
MIN_PIXELS = 12


def random_blob(random: np.random.Generator, size: int, area: float) -> np.ndarray:
    """An ellipse with a wavy outline at a random place, about `area` of the image; bool `[size, size]`."""
    cells = int(random.integers(3, 7)) + 1
    waves = PIL.Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
    waves = np.asarray(waves.resize((size, size), PIL.Image.Resampling.BICUBIC))
    y, x = np.mgrid[:size, :size] / size
    y, x = y - random.uniform(0.1, 0.9), x - random.uniform(0.1, 0.9)
    angle, stretch = random.uniform(0, math.pi), math.exp(random.uniform(-0.5, 0.5))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return np.hypot(along * stretch, across / stretch) / math.sqrt(area / math.pi) + 0.25 * waves < 1


def random_scratch(random: np.random.Generator, size: int) -> np.ndarray:
    """A curved line of 1/256 to 4/256 of the image, drawn at twice the size; `[size, size]` in [0, 1]."""
    length, bend, pieces = random.uniform(0.08, 0.5), random.normal(0, 1.5), 24
    angles = random.uniform(0, 2 * math.pi) + np.cumsum(bend / pieces + random.normal(0, 0.08, pieces))
    return draw_lines([walk(random.uniform(0.05, 0.95, 2), angles, length)], random.uniform(1, 4) / 256, size)


def random_crack(random: np.random.Generator, size: int) -> np.ndarray:
    """A jagged line that may branch, of 0.7/256 to 2.5/256 of the image; `[size, size]` in [0, 1]."""
    heading, pieces, length = random.uniform(0, 2 * math.pi), 20, random.uniform(0.15, 0.8)
    trunk = walk(random.uniform(0.15, 0.85, 2), heading + random.normal(0, 0.5, pieces), length)
    lines = [trunk]
    for _ in range(random.integers(0, 3)):
        turned = heading + random.choice([-1, 1]) * random.uniform(0.4, 1.2)
        fork = trunk[random.integers(3, pieces - 3)]
        lines.append(walk(fork, turned + random.normal(0, 0.5, pieces // 2), length * random.uniform(0.2, 0.5)))
    return draw_lines(lines, random.uniform(0.7, 2.5) / 256, size)


def walk(start: np.ndarray, angles: np.ndarray, length: float) -> np.ndarray:
    """The corners of a line of so many equal pieces, `[pieces + 1, 2]` in parts of the image."""
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / len(angles)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def draw_lines(lines: list[np.ndarray], width: float, size: int) -> np.ndarray:
    """Lines of a width in parts of the image, drawn at twice the size for smooth edges; `[size, size]` in [0, 1]."""
    picture = PIL.Image.new("L", (2 * size, 2 * size))
    draw = PIL.ImageDraw.Draw(picture)
    for line in lines:
        corners = [(float(x * 2 * size), float(y * 2 * size)) for x, y in line]
        draw.line(corners, fill=255, width=max(1, round(width * 2 * size)), joint="curve")
    return np.asarray(picture.resize((size, size), PIL.Image.Resampling.BOX), dtype=np.float32) / 255


def surroundings(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What lies around a blob, spread over it: a weighted mean of pixels outside, `[H, W, 3]`."""
    sigma = max(2.0, 0.5 * math.sqrt(mask.sum()))
    outside = soften(~mask, sigma)[..., None]
    return soften(image * ~mask[..., None], sigma) / np.maximum(outside, 1e-3)


def soften(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `[H, W]` or, channel by channel, of `[H, W, 3]`."""
    return ndimage.gaussian_filter(np.asarray(values, dtype=np.float32), (sigma, sigma) + (0,) * (values.ndim - 2))


def _draw(
    image: np.ndarray, other: np.ndarray, defect_type: str, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[0]
    pixel = size / 256
    contrast = max(0.04, float(image.std()))  # a defect is as strong as the part's own structure, and visible on none
    sign = random.choice([-1, 1], p=[0.65, 0.35])  # more real defects are dark than bright
    if defect_type == "scratch":
        line = random_scratch(random, size)
        return image + line[..., None] * sign * random.uniform(0.6, 2) * contrast, line > 0.25
    if defect_type == "crack":
        line = random_crack(random, size)
        dark = np.quantile(image.reshape(-1, 3), 0.02, axis=0)
        opacity = line[..., None] * random.uniform(0.4, 1)
        return image * (1 - opacity) + dark * opacity, line > 0.25
    if defect_type == "spot":
        mask = random_blob(random, size, math.exp(random.uniform(math.log(0.0004), math.log(0.01))))
        opacity = soften(mask, random.uniform(0.5, 1.5) * pixel)[..., None]
        return image + opacity * sign * random.uniform(0.6, 3) * contrast, mask
    if defect_type == "stain":
        mask = random_blob(random, size, random.uniform(0.01, 0.12))
        opacity = soften(mask, random.uniform(2, 5) * pixel)[..., None]
        return image + opacity * random.choice([-1, 1]) * random.uniform(0.35, 1) * contrast, mask
    if defect_type == "shade":  # uneven coating or colour: large, faint, without an edge
        mask = random_blob(random, size, random.uniform(0.1, 0.35))
        opacity = soften(mask, random.uniform(6, 14) * pixel)[..., None]
        return image + opacity * random.choice([-1, 1]) * random.uniform(0.2, 0.6) * contrast, mask
    if defect_type == "missing":
        mask = random_blob(random, size, random.uniform(0.008, 0.1))
        opacity = soften(mask, 0.7 * pixel)[..., None]
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        around = random.random() < 0.5
        content = surroundings(image, mask) if around else np.broadcast_to(np.median(edge, axis=0), image.shape)
        return image * (1 - opacity) + content * opacity, mask
    if defect_type == "cut":
        mask = random_blob(random, size, random.uniform(0.003, 0.06))
        opacity = soften(mask, 0.7 * pixel)[..., None]
        if random.random() < 0.5:
            content = np.roll(other, tuple(random.integers(size // 4, 3 * size // 4, 2)), (0, 1))
        else:
            extreme = random.choice([0.02, 0.98])
            content = np.broadcast_to(np.quantile(image.reshape(-1, 3), extreme, axis=0), image.shape)
        return image * (1 - opacity) + content * opacity, mask
    mask = random_blob(random, size, random.uniform(0.005, 0.06))
    opacity = soften(mask, pixel)[..., None]
    kind = random.random()
    if kind < 0.4:
        content = soften(image, random.uniform(2, 4) * pixel)
    elif kind < 0.7:
        grain = soften(random.standard_normal(image.shape[:2]), random.uniform(0.6, 2.5) * pixel)
        content = image + (grain / grain.std() * random.uniform(0.25, 0.8) * contrast)[..., None]
    else:
        content = np.rot90(other, int(random.integers(1, 4)))
        content = content - soften(content, 8 * pixel) + soften(image, 8 * pixel)
    return image * (1 - opacity) + content * opacity, mask


def paste_defect(
    image: torch.Tensor, other: torch.Tensor, defect_type: str, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pastes one defect into a good image.

    Args:
        image: `[3, S, S]` in [-1, 1].
        other: another good image of the same shape, whose parts are pasted.
        defect_type: one of `DEFECT_TYPES`.
        random: source of what is random.

    Returns:
        The defective image, `[3, S, S]` in [-1, 1], and the mask of the defect, bool `[S, S]`.

    Raises:
        ValueError: for an unknown type, and for an image on which no defect shows (tried 20 times).
    """
    if defect_type not in DEFECT_TYPES:
        raise ValueError(f"`defect_type` must be one of {DEFECT_TYPES}, found {defect_type!r}.")
    good, source = (((picture + 1) / 2).permute(1, 2, 0).numpy() for picture in (image, other))
    for _ in range(20):
        defective, mask = _draw(good, source, defect_type, random)
        defective = np.clip(defective, 0, 1)
        change = np.abs(defective - good).mean(axis=-1)
        if (mask & (change > MIN_CHANGE)).sum() >= MIN_PIXELS and change[mask].mean() > MIN_CHANGE:
            tensor = torch.from_numpy(np.ascontiguousarray(defective, dtype=np.float32)).permute(2, 0, 1)
            return tensor * 2 - 1, torch.from_numpy(mask)
    raise ValueError(f"No {defect_type} shows on this image: is it blank?")


def make_defects(
    images: torch.Tensor, per_type: int, seed: int, inside: torch.Tensor | None = None
) -> tuple[torch.Tensor, np.ndarray, list[int]]:
    """Good images with synthetic defects, every kind alike often.

    Args:
        images: good, `[M, 3, S, S]` in [-1, 1].
        per_type: defects of each kind.
        seed: of everything random.
        inside: where is looked at, `[1, 1, R, R]` of ones and zeros; None for everywhere. Half of a defect lies there.

    Returns:
        `[N, 3, S, S]` in [-1, 1], masks `[N, S, S]` bool, and the number of the good image that each defect is in;
        fewer than asked for where a kind shows on no image.
    """
    random = np.random.default_rng(seed)
    looked_at = None if inside is None else F.interpolate(inside, size=images.shape[-2:])[0, 0] > 0
    defective, masks, sources = [], [], []
    for number in range(per_type * len(DEFECT_TYPES)):
        first, second = random.integers(len(images)), random.integers(len(images))
        kind = DEFECT_TYPES[number % len(DEFECT_TYPES)]
        for _ in range(1 if looked_at is None else MOST_PLACES):
            try:
                image, mask = paste_defect(images[first], images[second], kind, random)
            except ValueError:  # no such defect shows on this image
                mask = torch.zeros(1, dtype=torch.bool)
                break
            if looked_at is None or 2 * int((mask & looked_at).sum()) >= int(mask.sum()):
                break
            mask = torch.zeros_like(mask)
        if not mask.any():
            continue
        defective.append(image)
        masks.append(mask.numpy())
        sources.append(int(first))
    return torch.stack(defective), np.stack(masks), sources
