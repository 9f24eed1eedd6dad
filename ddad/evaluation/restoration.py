"""How normal the normal versions are, and whether good images are left alone."""

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ddad.datasets.layouts import Sample, read_mask
from ddad.pipeline import DDADPipeline


def gradient_energy(image: np.ndarray, region: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels in a region: how sharp it is; NaN of an empty one.

    Args:
        image: `[H, W]` in [0, 1].
        region: `[H, W]` bool.
    """
    right = (image[:-1, 1:] - image[:-1, :-1]) ** 2
    down = (image[1:, :-1] - image[:-1, :-1]) ** 2
    return float((right + down)[region[:-1, :-1]].mean())


def same_place(region: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A region of one image in another image of that size, `[H, W]`: both show the part whole."""
    rows, columns = (np.arange(wanted) * own // wanted for wanted, own in zip(size, region.shape, strict=True))
    return region[rows[:, None], columns]


def evaluate_denoising(pipe: DDADPipeline, good: list[Sample], defective: list[Sample]) -> dict[str, Any]:
    """Scores images again after their defects were removed.

    Returns:
        `good_unchanged`: how many of the good images come out exactly as they went in;
        `good_psnr`: the lowest peak signal-to-noise ratio in dB of those that do not, over the whole image;
        `found`: how many defective images were found, which the rest is about;
        `normal_after`: how many of them score below the threshold once their defects are removed;
        `score_before`, `score_after`: their median image scores;
        `distance_before`, `distance_after`: median of the distance that denoising lowers; `distance_normal`: its mean
        on good images;
        `covered`: median part of the ground truth that was repainted, and `changed_outside`: median part of the rest
        of the image that was, both in percent, of the found images that have a mask; None without;
        `sharpness`: gradient energy inside the repaired region against the median of good images in the same region,
        median over the images.
    """
    report: dict[str, Any] = {}
    unchanged, psnr = 0, []
    references = []
    for sample in tqdm(good, desc="Good images", mininterval=1):
        original = pipe.image_processor.read_image(sample.path)
        references.append(original.mean(dim=0).numpy())
        denoised = pipe(original, output_type="pt").denoised_image[0]
        error = float((denoised - original).square().mean())
        if error == 0:
            unchanged += 1
        else:
            psnr.append(-10 * float(np.log10(error)))
    report |= {
        "good_images": len(good),
        "good_unchanged": unchanged,
        "good_psnr": round(min(psnr), 1) if psnr else None,
    }
    before, after, distances, sharpness = [], [], [], []
    covered, outside = [], []
    for sample in tqdm(defective, desc="Defective images", mininterval=1):
        original = pipe.image_processor.read_image(sample.path)
        output = pipe(original, output_type="pt")
        if not output.is_anomalous[0]:
            continue
        before.append(output.image_score[0])
        denoised = output.denoised_image[0]
        after.append(pipe(denoised, denoise=False).image_score[0])
        distances.append(output.normality_distance[0])
        changed = (denoised - original).abs().amax(dim=0).numpy() > 0
        if sample.mask is not None:
            truth = read_mask(sample, changed.shape)
            if truth.any():  # a defect of a few pixels can fall between those of a smaller image
                covered.append(100 * changed[truth].mean())
            outside.append(100 * changed[~truth].mean())
        if references and changed[:-1, :-1].any():
            usual = [gradient_energy(reference, same_place(changed, reference.shape)) for reference in references]
            sharpness.append(gradient_energy(denoised.mean(dim=0).numpy(), changed) / np.nanmedian(usual))
    if not before:
        return report | {"defective_images": len(defective), "found": 0}
    return report | {
        "defective_images": len(defective),
        "found": len(before),
        "normal_after": int((np.array(after) <= pipe.threshold).sum()),
        "score_before": round(float(np.median(before)), 2),
        "score_after": round(float(np.median(after)), 2),
        "distance_before": round(float(np.median([distance[0] for distance in distances])), 2),
        "distance_after": round(float(np.median([distance[1] for distance in distances])), 2),
        "distance_normal": round(float(torch.tensor(pipe.calibration.config.statistics["residual_mean"]).mean()), 2),
        "covered": round(float(np.median(covered)), 1) if covered else None,
        "changed_outside": round(float(np.median(outside)), 1) if outside else None,
        "sharpness": round(float(np.median(sharpness)), 2) if sharpness else None,
    }
