"""From what the pipeline found to what the page shows. Nothing here evaluates a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch

from ddad.checkpoint.installed import DDADPipeline
from ddad.images_ddad import DDADImageProcessor
from ddad.pipeline import DDADPipelineOutput, DDADScores
from ddad.rendering_ddad import DDADRenderer
from ddad.report import drawing
from ddad.report.regions import Region, regions_of
from ddad.report.size import far_too_small

RENDERER = DDADRenderer()
SHOWN_PIXELS = 4_000_000
LEAST_DRAWN_SIDE = 900
MOSTLY = 0.6
REGION_HEADERS = ["Region", "Peak score", "% of the picture", "Left, top, width, height"]
REGION_TYPES = ["number", "number", "number", "str"]


@dataclass
class Inspection:
    """One visitor's image, scored.

    Attributes:
        category: the category it was scored as.
        scores: the score maps; their image is at the size that the page shows.
        size: width and height of the image as it came.
        frames: the steps of denoising, empty before it is denoised.
        normal: the normal version, None before.
    """

    category: str
    scores: DDADScores
    size: tuple[int, int]
    frames: list[PIL.Image.Image] = field(default_factory=list)
    normal: PIL.Image.Image | None = None

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


@dataclass(frozen=True)
class Finding:
    """What is said of one image; all of it can be stored beside an example.

    Attributes:
        is_anomalous, image_score, threshold: the verdict.
        regions: the defect regions; none on an image that is judged good.
        unusual: part of the picture, or of the region looked at, whose score is above the threshold, in [0, 1].
        size: width and height of the image as it came.
        shown_size: width and height of what the page shows.
    """

    is_anomalous: bool
    image_score: float
    threshold: float
    regions: tuple[Region, ...]
    unusual: float
    size: tuple[int, int]
    shown_size: tuple[int, int]

    @classmethod
    def of(cls, result: DDADPipelineOutput, size: tuple[int, int], shown_size: tuple[int, int]) -> "Finding":
        """What a result says of an image of a size, which is shown at another."""
        unusual = float(np.mean(result.anomaly_map[0][result.region[0]] > result.threshold))
        return cls(
            result.is_anomalous[0],
            result.image_score[0],
            result.threshold,
            tuple(regions_of(result)),
            unusual if result.is_anomalous[0] else 0.0,
            size,
            shown_size,
        )

    @property
    def is_another_part(self) -> bool:
        """Whether most of the picture is unlike good parts: it seems to show something else."""
        return self.unusual >= MOSTLY

    @property
    def headline(self) -> str:
        """The verdict in a line; whether the picture shows such a part comes first."""
        if self.is_another_part:
            return "## ⚠ Not such a part?"
        return "## ⚠ Defect found" if self.is_anomalous else "## ✓ No defect found"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Finding":
        """What `dataclasses.asdict` was made of."""
        regions = tuple(Region(**region) for region in values["regions"])
        return cls(
            **values | {"regions": regions, "size": tuple(values["size"]), "shown_size": tuple(values["shown_size"])}
        )


def verdict(finding: Finding, pipe: DDADPipeline, chosen: bool, false_alarms: float | None = None) -> str:
    """The result in words.

    Args:
        finding: the result.
        pipe: what judged.
        chosen: whether the visitor chose the threshold.
        false_alarms: the part of good parts that it lets fail; None is the pipeline's own.
    """
    passing = 100 * (1 - (pipe.calibration.false_alarms if false_alarms is None else false_alarms))
    relation = "above" if finding.is_anomalous else "not above"
    source = "which you chose" if chosen else f"which lets {passing:.3g}% of good parts pass"
    lines = [
        finding.headline,
        f"Score **{finding.image_score:.1f}**, {relation} the threshold of **{finding.threshold:.1f}**, {source}. The"
        " score says how far the most unusual place lies from good parts, counted in their own standard deviations.",
    ]
    if finding.is_another_part:
        lines.insert(
            1,
            f"**Most of this picture ({finding.unusual:.0%}) is unlike the good parts that this category knows**, so"
            " the verdict says little. Choose its category above; or, if it is such a part, and good, then the lamp,"
            " the camera or the distance has changed: the tab *Your part* fits the category to a few photographs of"
            " your good parts. A normal version is made only if you ask for it, under *What if*.",
        )
    if (small := far_too_small(finding.size, pipe)) is not None:
        lines.insert(1, "**{}** {}".format(*small))
    if finding.shown_size != finding.size:
        lines.append(
            "Your image has {}x{} pixels; the page shows it at {}x{}. *Many images* and Python keep the full"
            " size.".format(*finding.size, *finding.shown_size)
        )
    return "\n\n".join(lines)


def region_rows(regions: Sequence[Region]) -> list[list[float | str]]:
    """The table of the defect regions."""
    return [
        [
            number,
            round(region.peak_score, 1),
            round(region.area_percent, 2),
            f"{region.left}, {region.top}, {region.width}, {region.height}",
        ]
        for number, region in enumerate(regions, start=1)
    ]


def draw_heatmap(
    image: torch.Tensor,
    result: DDADPipelineOutput,
    regions: Sequence[Region],
    opacity: float,
    truth: PIL.Image.Image | None = None,
) -> PIL.Image.Image:
    """The image under its heatmap, with the outlines of the regions found and, if given, of the true defects.

    A small image is enlarged, so that lines and numbers are sharp.

    Raises:
        ValueError: if the ground truth belongs to another image.
    """
    anomaly_map = torch.from_numpy(result.anomaly_map[0])
    limit = result.threshold
    if not result.is_anomalous[0]:  # the score is a mean over cells: single pixels of a good part may lie above it
        limit = max(limit, float(anomaly_map.max()))
    drawn = RENDERER.overlay(image, anomaly_map, limit, opacity)
    picture = RENDERER.to_image(RENDERER.hatch(drawn, torch.from_numpy(result.region[0])), "pil")
    scale = LEAST_DRAWN_SIDE / max(picture.size)
    if scale > 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    picture = drawing.draw_regions(picture, result.anomaly_map[0], result.threshold, list(regions))
    return picture if truth is None else drawing.draw_truth(picture, truth)


def draw_maps(result: DDADPipelineOutput) -> list[tuple[PIL.Image.Image, str]]:
    """The maps behind the heatmap, all on one scale, with captions."""
    return [
        (drawing.colour_map(values, result.threshold), caption)
        for values, caption in (
            *([] if result.pixel_map is None else [(result.pixel_map[0], "Pixel score (KL)")]),
            (result.feature_map[0], "Feature score"),
            (result.anomaly_map[0], "Combined"),
        )
    ]
