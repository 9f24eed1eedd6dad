"""Metrics against closed forms and against implementations that share nothing with ours."""

import time

import numpy as np
import pytest
from scipy import ndimage

from ddad.evaluation.metrics import (
    aupimo,
    auroc,
    average_precision,
    best_f1,
    integrate_to,
    judge,
    pixel_curves,
)


def test_auroc_counts_the_pairs_in_order_and_half_of_the_ties():
    generator = np.random.default_rng(0)
    good, defective = generator.integers(0, 20, 57), generator.integers(5, 25, 31)
    pairs = [(d > g) + 0.5 * (d == g) for d in defective for g in good]
    assert auroc(good, defective) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([0.0, 1.0]), np.array([2.0])) == 1
    assert auroc(np.ones(4), np.ones(3)) == 0.5


def test_image_metrics_refuse_what_has_no_value():
    for metric in (auroc, average_precision, best_f1):
        with pytest.raises(ValueError, match="found 0 and 2"):
            metric(np.array([]), np.ones(2))
        with pytest.raises(ValueError, match="finite"):
            metric(np.array([np.nan]), np.ones(2))


def test_average_precision_is_the_mean_precision_at_each_hit():
    good, defective = np.array([1.0, 3.0, 5.0]), np.array([2.0, 4.0, 6.0])
    assert average_precision(good, defective) == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)


def test_f1_at_its_best_and_at_a_threshold():
    good, defective = np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0, 6.0, 0.5])
    tried = {
        t: 2 * (defective >= t).sum() / ((defective >= t).sum() + (good >= t).sum() + 4) for t in (*good, *defective)
    }
    f1, threshold = best_f1(good, defective)
    assert f1 == pytest.approx(max(tried.values())) and tried[threshold] == pytest.approx(f1)
    verdicts = judge(good, defective, 3.5)
    assert (verdicts.false_alarms, verdicts.detected) == (1, 2)
    assert (verdicts.false_alarm_rate, verdicts.recall) == (pytest.approx(1 / 3), 0.5)
    assert verdicts.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert judge(good, defective, 5.0).false_alarms == 0  # above, not at


def random_maps(seed=0, count=6, size=48, levels=None):
    """Maps with regions of several sizes, one image without any, some values equal."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for index in range(1, count):
        for _ in range(index % 3 + 1):
            y, x, h, w = (*generator.integers(0, size - 12, 2), *generator.integers(2, 12, 2))
            masks[index, y : y + h, x : x + w] = True
    maps = generator.normal(size=masks.shape) + 1.5 * masks
    return (np.round(maps * levels) / levels if levels else maps).astype(np.float32), masks


def pro(maps, masks, limit=0.3):
    return pixel_curves(maps, masks).pro(limit)


def pro_by_thresholds(maps, masks, limit):
    """PRO as its definition reads: a loop over thresholds and regions."""
    points = []
    for threshold in [np.inf, *np.unique(maps)[::-1]]:
        above = maps >= threshold
        overlaps = []
        for mask, one in zip(masks, above, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [one[labels == region].mean() for region in range(1, count + 1)]
        points.append(((above & ~masks).sum() / (~masks).sum(), np.mean(overlaps)))
    rates, values = np.array(points).T
    grid = np.linspace(0, limit, 200_001)
    return np.trapezoid(np.interp(grid, rates, values), grid) / limit


@pytest.mark.parametrize("limit", [0.3, 0.05])
@pytest.mark.parametrize("levels", [4, 20])
def test_pro_equals_its_definition(limit, levels):
    maps, masks = random_maps(levels=levels)
    assert pro(maps, masks, limit) == pytest.approx(pro_by_thresholds(maps, masks, limit), abs=1e-5)


def test_pro_has_its_closed_forms():
    maps, masks = random_maps()
    assert pro(masks.astype(np.float32), masks) == pytest.approx(1)  # perfect
    assert pro(np.zeros_like(maps), masks) == pytest.approx(0.15)  # chance: the diagonal to 0.3, over 0.3
    assert pro(-masks.astype(np.float32), masks) == 0
    # Of two regions a large one is found at once and a small one never before all else.
    masks = np.zeros((1, 40, 40), dtype=bool)
    masks[0, :20, :20], masks[0, 30, 30] = True, True
    maps = np.zeros((1, 40, 40), dtype=np.float32)
    maps[0, :20, :20], maps[0, 30, 30] = 1, -1
    assert pro(maps, masks) == pytest.approx(0.5) and pixel_curves(maps, masks).auroc > 0.99


def test_regions_that_touch_at_a_corner_are_one():
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 3, 3] = masks[0, 6, 6] = True
    maps = np.zeros((1, 8, 8), dtype=np.float32)
    maps[0, 6, 6] = 1
    curves = pixel_curves(maps, masks)
    assert (
        curves.overlap[1] == pytest.approx(0.5) and curves.false_positive_rate[1] == 0
    )  # one region of two, not one of four


def test_the_last_trapezoid_is_cut_at_the_limit():
    assert integrate_to(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.3) == pytest.approx(0.15)
    assert integrate_to(np.array([0.0, 0.1, 1.0]), np.array([0.0, 1.0, 1.0]), 0.2) == pytest.approx(0.75)


def test_pixel_metrics_are_those_of_images_over_all_pixels():
    maps, masks = random_maps(levels=10)
    curves = pixel_curves(maps, masks)
    assert curves.auroc == pytest.approx(auroc(maps[~masks], maps[masks]))
    assert curves.average_precision == pytest.approx(average_precision(maps[~masks], maps[masks]))
    with pytest.raises(ValueError, match="alike"):
        pixel_curves(maps[:, 1:], masks)
    with pytest.raises(ValueError, match="defective and normal pixels"):
        pixel_curves(maps, np.zeros_like(masks))
    with pytest.raises(ValueError, match="finite maps"):
        pixel_curves(np.where(masks, np.nan, maps), masks)


def test_aupimo_equals_its_definition():
    maps, masks = random_maps(count=8, size=160)
    maps[1] += 6 * masks[1]  # found at once
    values = aupimo(maps, masks)
    assert len(values) == 7 and values[0] == pytest.approx(1)
    normal = maps[0].ravel()
    rates = np.geomspace(1e-5, 1e-4, 2001)
    for value, map_, mask in zip(values, maps[1:], masks[1:], strict=True):
        recall = []
        for rate in rates:
            candidates = np.sort(normal)[::-1]
            threshold = next(one for one in candidates if (normal > one).mean() <= rate < (normal >= one).mean())
            recall.append((map_[mask] > threshold).mean())
        assert value == pytest.approx(np.mean(recall), abs=0.01)
    with pytest.raises(ValueError, match="at least 10000 pixels"):
        aupimo(*random_maps())


def test_pro_of_a_test_set_takes_seconds():
    generator = np.random.default_rng(0)
    masks = np.zeros((60, 256, 256), dtype=bool)
    masks[30:, 100:140, 60:90] = True
    maps = generator.normal(size=masks.shape).astype(np.float32)
    started = time.process_time()
    pro(maps, masks)
    assert time.process_time() - started < 10
