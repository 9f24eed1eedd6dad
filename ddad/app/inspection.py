"""From what the pipeline found to what the page shows. Nothing here evaluates a network."""

from dataclasses import dataclass, field

import pandas as pd
import PIL.Image
import torch

from ddad.images_ddad import DDADImageProcessor
from ddad.normality_ddad import DDADScores
from ddad.pipeline import DDADPipelineOutput
from ddad.report import drawing
from ddad.report.export import Record
from ddad.report.regions import Region, find_regions

SHOWN_PIXELS = 4_000_000
LEAST_DRAWN_SIDE = 900
HISTOGRAM_BINS = 24
REGION_HEADERS = ["Region", "Peak score", "% of the picture", "Left, top, width, height"]
REGION_TYPES = ["number", "number", "number", "str"]
GOOD, FLAGGED, THIS = "good parts", "good parts above the threshold", "your image"


@dataclass
class Inspection:
    """One visitor's image, scored.

    Attributes:
        category: the category it was scored as.
        scores: the score maps; their image is at the size that the page shows.
        size: width and height of the image as it came.
        frames: the steps of denoising, empty before it is denoised.
    """

    category: str
    scores: DDADScores
    size: tuple[int, int]
    frames: list[PIL.Image.Image] = field(default_factory=list)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of what the page shows."""
        return self.scores.images[0].shape[2], self.scores.images[0].shape[1]


def shrink(image: torch.Tensor) -> torch.Tensor:
    """An image `[3, H, W]` in [0, 1] at a size that a browser shows at once; scores are not made from it."""
    height, width = image.shape[1:]
    scale = (SHOWN_PIXELS / (height * width)) ** 0.5
    if scale >= 1:
        return image
    return DDADImageProcessor.resize(image[None], (round(height * scale), round(width * scale)))[0]


def verdict(inspection: Inspection, score: float, threshold: float, is_anomalous: bool, quantile: float) -> str:
    """The result in words."""
    found = "## ⚠ Defect found" if is_anomalous else "## ✓ No defect found"
    relation = "above" if is_anomalous else "not above"
    lines = [
        found,
        f"Score **{score:.1f}**, {relation} the threshold of **{threshold:.1f}**. The score says how far the most"
        " unusual place lies from good parts, counted in their own standard deviations; the pipeline's own threshold"
        f" lets {quantile:.0%} of good parts pass.",
    ]
    if inspection.shown_size != inspection.size:
        lines.append(
            "Your image has {}x{} pixels; the page shows it at {}x{}. *Many images* and Python keep the full"
            " size.".format(*inspection.size, *inspection.shown_size)
        )
    return "\n\n".join(lines)


def histogram(normal_scores: list[float], score: float, threshold: float) -> pd.DataFrame:
    """How many good parts have which score, and where this image lies.

    The scale ends at three times the threshold (or at the highest score of a good part): an image far beyond it stands
    at the end, so that the good parts stay apart.

    Args:
        normal_scores: image scores of held-out good parts.
        score: the image's score.
        threshold: the threshold.

    Returns:
        Rows of `score` (middle of a bin), `images` and `kind`.
    """
    low = min([*normal_scores, 0.0])
    high = max([*normal_scores, 3 * threshold, low + 1.0])
    width = (high - low) / HISTOGRAM_BINS

    def middle(value: float) -> float:
        index = min(max(int((value - low) / width), 0), HISTOGRAM_BINS - 1)
        return low + (index + 0.5) * width

    counts: dict[tuple[float, str], int] = {}
    for one in normal_scores:
        key = (middle(one), GOOD if one <= threshold else FLAGGED)
        counts[key] = counts.get(key, 0) + 1
    rows = [(place, count, kind) for (place, kind), count in sorted(counts.items())]
    rows.append((middle(score), max(counts.values(), default=1), THIS))
    return pd.DataFrame(rows, columns=["score", "images", "kind"])


def region_rows(regions: list[Region]) -> list[list[float | str]]:
    """The table of the defect regions."""
    return [
        [
            number,
            round(one.peak_score, 1),
            round(one.area_percent, 2),
            f"{one.left}, {one.top}, {one.width}, {one.height}",
        ]
        for number, one in enumerate(regions, start=1)
    ]


def regions_of(result: DDADPipelineOutput) -> list[Region]:
    """The regions of the first image; none on an image that is judged good."""
    return find_regions(result.anomaly_map[0], result.threshold) if result.is_anomalous[0] else []


def record_of(image: str, result: DDADPipelineOutput) -> Record:
    """The record of the first image, under its name."""
    regions = tuple(regions_of(result))
    return Record(image, result.is_anomalous[0], result.image_score[0], result.threshold, regions)


def draw_heatmap(
    image: torch.Tensor,
    result: DDADPipelineOutput,
    regions: list[Region],
    opacity: float,
    truth: PIL.Image.Image | None = None,
) -> PIL.Image.Image:
    """The image under its heatmap, with the outlines of the regions found and, if given, of the true defects.

    A small image is enlarged, so that lines and numbers are sharp.

    Raises:
        ValueError: if the ground truth belongs to another image.
    """
    anomaly_map = torch.from_numpy(result.anomaly_map[0])
    picture = DDADImageProcessor.to_image(
        DDADImageProcessor.overlay(image, anomaly_map, result.threshold, opacity), "pil"
    )
    scale = LEAST_DRAWN_SIDE / max(picture.size)
    if scale > 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    picture = drawing.draw_regions(picture, result.anomaly_map[0], result.threshold, regions)
    return picture if truth is None else drawing.draw_truth(picture, truth)


def draw_maps(result: DDADPipelineOutput) -> list[tuple[PIL.Image.Image, str]]:
    """The maps behind the heatmap, all on one scale, with captions."""
    return [
        (drawing.colour_map(values, result.threshold), caption)
        for values, caption in (
            (result.pixel_map[0], "Pixel score (KL)"),
            (result.feature_map[0], "Feature score"),
            (result.anomaly_map[0], "Combined"),
        )
    ]
