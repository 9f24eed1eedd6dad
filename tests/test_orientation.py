"""Parts in any orientation: seen as such, and learnt from turned copies where that makes good images more likely."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from ddad.calibration.calibration import recalibrate
from ddad.calibration.observing import CalibrationConfig, count_copies
from ddad.datasets.folder import rotate
from ddad.datasets.orientation import lie_in_any_orientation
from tests.conftest import create_tiny_pipeline


def parts(count: int, turned: bool) -> list[torch.Tensor]:
    """A bracket on a grey ground, as it lies or turned by any angle, with noise of its own; `[3, 64, 64]` each."""
    random, images = np.random.default_rng(0), []
    for _ in range(count):
        picture = PIL.Image.new("RGB", (64, 64), (90, 90, 90))
        draw = PIL.ImageDraw.Draw(picture)
        draw.rectangle((18, 14, 26, 50), fill=(230, 220, 200))
        draw.rectangle((18, 42, 46, 50), fill=(200, 40, 40))
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        if turned:
            image = rotate(image[None], torch.tensor([random.uniform(0, 360)]))[0]
        images.append((image + 0.03 * torch.from_numpy(random.standard_normal(image.shape)).float()).clamp(-1, 1))
    return images


def test_it_is_seen_whether_parts_lie_the_same_way():
    assert lie_in_any_orientation(parts(24, turned=True))
    assert not lie_in_any_orientation(parts(24, turned=False))
    assert not lie_in_any_orientation([torch.zeros(3, 64, 64)] * 6)  # nothing is to be seen


@pytest.mark.parametrize("turned", [True, False])
def test_turned_copies_are_learnt_where_they_are_likely(turned):
    images = parts(24, turned)
    pipe, record = recalibrate(create_tiny_pipeline(), images, CalibrationConfig())
    assert record["orientation"]["turned"] is turned
    shown = parts(25, turned)[-1]
    upside_down = pipe(((rotate(shown[None], torch.tensor([180.0]))[0] + 1) / 2), denoise=False)
    assert upside_down.is_anomalous[0] is not turned
    if turned:
        upright, any_angle = record["orientation"]["log_likelihoods"]
        assert any_angle > upright
        assert record["appearance"]["views"] == 24 * (1 + count_copies(24, 180.0))
        lying = CalibrationConfig(rotation_degrees=0.0)
        assert not recalibrate(create_tiny_pipeline(), images, lying)[1]["orientation"]["seems_any"]
