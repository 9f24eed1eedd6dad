"""Synthetic defects: on them choices are made where no real defect may be looked at."""

import numpy as np
import pytest
import torch

from ddad.calibration.synthetic import DEFECT_TYPES, paste_defect


@pytest.fixture
def parts():
    """Two good parts with structure: stripes with a little grain."""
    generator = torch.Generator().manual_seed(0)
    stripes = 0.4 * torch.sin(torch.arange(128) / 5).view(1, 1, 128).expand(3, 128, 128)
    return [(stripes + 0.03 * torch.randn(3, 128, 128, generator=generator)).clamp(-1, 1) for _ in range(2)]


@pytest.mark.parametrize("defect_type", DEFECT_TYPES)
def test_a_defect_is_where_its_mask_is_and_can_be_seen(parts, defect_type):
    areas = set()
    for seed in range(12):
        defective, mask = paste_defect(*parts, defect_type, np.random.default_rng(seed))
        change = (defective - parts[0]).abs().mean(dim=0)
        assert mask.dtype == torch.bool and mask.shape == (128, 128) and 12 <= mask.sum() < 0.5 * mask.numel()
        assert change[mask].mean() > 4 * change[~mask].mean() and change[mask].mean() > 0.03
        assert defective.abs().max() <= 1 and defective.dtype == torch.float32
        areas.add(int(mask.sum()))
    assert len(areas) > 6


def test_the_seed_decides(parts):
    first, again, other = (paste_defect(*parts, "cut", np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_cannot_be_made_is_refused(parts):
    with pytest.raises(ValueError, match="must be one of .*'stain'"):
        paste_defect(*parts, "dent", np.random.default_rng(0))
    blank = torch.ones(3, 64, 64)
    with pytest.raises(ValueError, match="No texture shows on this image"):
        paste_defect(blank, blank, "texture", NoGrain(np.random.default_rng(0)))


class NoGrain:
    """A source whose textures are always the image, softened: on a blank image nothing shows."""

    def __init__(self, source):
        self.source = source

    def random(self):
        return 0.0

    def __getattr__(self, name):
        return getattr(self.source, name)
