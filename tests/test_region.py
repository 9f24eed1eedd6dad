"""Where to look: what is black in a region decides nothing, in every way that a verdict is made."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from ddad import DDADPipeline
from ddad.calibration.calibration import recalibrate
from ddad.calibration.observing import CalibrationConfig
from ddad.calibration.synthetic import make_defects
from ddad.cli import main
from ddad.datasets.files import find_images
from ddad.evaluation.metrics import aupimo, pixel_curves
from tests.conftest import create_tiny_pipeline, with_memory

FAINT = 0.2
LEFT = np.zeros((64, 64), bool)
LEFT[:, :32] = True


def part(seed, label=True, dent=None):
    """A striped part whose right half carries a label that is another on every one; `[3, 64, 64]` in [0, 1]."""
    random = np.random.default_rng(seed)
    values = np.tile(0.45 + 0.25 * np.sin(np.arange(64) / 4 + random.normal(0, 0.1)), (64, 1))
    values += random.normal(0, 0.01, values.shape)
    if label:
        values[16:48, 42:58] = np.kron(random.random((4, 2)), np.ones((8, 8)))
    if dent is not None:
        values[24:36, dent : dent + 10] = 1
    return torch.from_numpy(values.clip(0, 1)).float().expand(3, -1, -1).contiguous()


@pytest.fixture(scope="module")
def fitted():
    """Fitted to labelled parts looking everywhere, and looking left of the labels."""
    tiny = create_tiny_pipeline()
    images = [2 * part(seed) - 1 for seed in range(30)]
    return [recalibrate(pipe, images, CalibrationConfig())[0] for pipe in (tiny, tiny.with_region(LEFT))]


def test_a_label_hides_a_defect_until_it_is_left_out(fitted):
    everywhere, left = fitted
    faint = part(100)
    faint[:, 24:36, 8:18] += FAINT * (1 - faint[:, 24:36, 8:18])
    result = left(faint)
    assert result.is_anomalous == [True] and not everywhere(faint, denoise=False).is_anomalous[0]
    assert (result.anomaly_map[0][~result.region[0]] == 0).all() and result.region[0][:, :30].all()
    good = [part(200 + seed) for seed in range(20)]
    assert sum(left(good, denoise=False).is_anomalous) <= 3


def test_what_lies_outside_changes_nothing_and_is_not_repaired(fitted):
    _, left = fitted
    clean, spoilt = part(300, dent=8), part(300, dent=8)
    spoilt[:, :, 56:] = torch.rand(3, 64, 8)  # farther away than features see
    first, second = left(clean), left(spoilt)
    assert second.image_score[0] == pytest.approx(first.image_score[0], abs=0.02)
    before, after = np.asarray(second.overlay[0]), np.asarray(second.denoised_image[0])
    original = np.asarray(left.renderer.to_image(spoilt, "pil"))
    assert (after[:, 34:] == original[:, 34:]).all() and (after[:, :32] != original[:, :32]).any()
    assert (before[:, 34:] != original[:, 34:]).any()  # hatched


def test_a_region_of_a_call_narrows_and_keeps_the_threshold(fitted):
    everywhere, left = fitted
    dented = part(400, label=False, dent=8)
    right = PIL.Image.fromarray(255 * (~LEFT).astype(np.uint8))
    assert everywhere(dented, denoise=False).is_anomalous == [True]
    result = everywhere([dented, dented], region=[LEFT, right], denoise=False)
    assert result.is_anomalous == [True, False] and result.threshold == everywhere.threshold
    assert everywhere(everywhere.score(dented, region=right), denoise=False).is_anomalous == [False]
    upper = torch.zeros(64, 64, dtype=torch.bool)
    upper[:20] = True
    both = left(dented, region=upper, denoise=False).region[0]
    assert both[:18, :30].all() and not both[22:].any() and not both[:, 34:].any()


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (np.ones((64, 40), bool), "40x64 pixels and the image 64x64: another aspect ratio"),
        (np.zeros((64, 64), bool), "black all over"),
        (np.arange(64 * 64).reshape(64, 64) == 0, "too small: 0 of 32x32 cells"),
        ([LEFT, LEFT], "1 images and 2 regions"),
        (np.ones((64, 64, 2), np.uint8), "1, 3 or 4 channels"),
    ],
)
def test_what_is_no_region_is_refused(fitted, region, said):
    with pytest.raises(ValueError, match=said):
        fitted[0](part(0), region=region, denoise=False)


def test_scores_have_their_region(fitted):
    scores = fitted[0].score(part(0))
    with pytest.raises(ValueError, match="comes too late"):
        fitted[0](scores, region=LEFT)


def test_a_region_is_saved_and_can_be_taken_off(fitted, tmp_path):
    everywhere, left = fitted
    left.save_pretrained(tmp_path)
    loaded = DDADPipeline.from_pretrained(tmp_path)
    dented = part(500, dent=8)
    assert loaded.threshold == left.threshold
    assert loaded(dented, denoise=False).image_score == left(dented, denoise=False).image_score
    # Set on a pipeline that looked everywhere it takes effect at once, and the threshold is that of what is inside.
    narrowed = everywhere.with_region(LEFT)
    held_out = narrowed.calibration.held_out_maps(narrowed.judgement())
    assert held_out.shape[1] == 32 * 16 and narrowed.threshold < everywhere.threshold
    assert narrowed.with_region(None).threshold == everywhere.threshold


def test_the_memory_and_every_score_know_it(tiny_pipe):
    pipe = with_memory(tiny_pipe).with_region(LEFT)
    for feature_score in ("appearance", "memory", "gaussians", "residual", "sum"):
        result = pipe(part(0), alpha=0.3, feature_score=feature_score, denoise=False)
        assert (result.anomaly_map[0][:, 33:] == 0).all() and (result.anomaly_map[0][:, :31] != 0).any()


def test_a_fit_takes_statistics_of_what_is_inside(fitted):
    _, left = fitted
    grid = left.appearance.config.grid_size
    mean, _, factors = left.appearance.unpacked()
    outside = torch.arange(grid * grid) % grid >= grid // 2
    assert (mean[outside] == 0).all()
    assert (factors.view(grid * grid, -1, factors.shape[1])[outside] == 0).all()
    inside = torch.from_numpy(LEFT).float()[None, None]
    _, masks, _ = make_defects(torch.stack([2 * part(seed) - 1 for seed in range(4)]), 2, 0, inside)
    assert len(masks) >= 12 and all(2 * (mask & LEFT).sum() >= mask.sum() for mask in masks)


def test_metrics_of_pixels_inside():
    maps, masks = np.random.default_rng(0).random((4, 64, 64)), np.zeros((4, 64, 64), bool)
    masks[:2, 10:20, 10:20], masks[0, 10:20, 50:60] = True, True
    maps[:2, 10:20, 10:20] += 2
    curves, inner = pixel_curves(maps, masks, LEFT), pixel_curves(maps[:, :, :32], masks[:, :, :32])
    assert curves.auroc == pytest.approx(inner.auroc) == 1 and curves.pro() == pytest.approx(inner.pro())
    assert pixel_curves(maps, masks).auroc < 1
    np.testing.assert_allclose(
        aupimo(maps, masks, 1e-3, 1e-2, inside=LEFT), aupimo(maps[..., :32], masks[..., :32], 1e-3, 1e-2)
    )


def test_the_command_line_takes_masks_beside_images_and_one_for_all(fitted, tmp_path, capsys):
    fitted[0].save_pretrained(tmp_path / "checkpoint")
    images, right = tmp_path / "images", PIL.Image.fromarray(255 * (~LEFT).astype(np.uint8))
    images.mkdir()
    for name in ("a", "b"):
        fitted[0].renderer.to_image(part(600, label=False, dent=8), "pil").save(images / f"{name}.png")
    right.save(images / "b_region.png")
    right.save(tmp_path / "right.png")
    assert [path.name for path in find_images(images)] == ["a.png", "b.png"]
    flags = ["predict", str(images), "--checkpoint", str(tmp_path / "checkpoint"), "--no-denoise", "--output"]
    assert main([*flags, str(tmp_path / "own")]) == 0
    assert [json.loads(line)["is_anomalous"] for line in capsys.readouterr().out.splitlines()] == [True, False]
    assert main([*flags, str(tmp_path / "all"), "--region", str(tmp_path / "right.png")]) == 0
    assert [json.loads(line)["is_anomalous"] for line in capsys.readouterr().out.splitlines()] == [False, False]
    PIL.Image.new("L", (64, 64), 255).save(tmp_path / "right.png")  # another mask, so nothing is kept
    assert main([*flags, str(tmp_path / "all"), "--region", str(tmp_path / "right.png")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["is_anomalous"] is True


def test_an_exported_category_looks_at_the_same(fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from ddad.runtime import load
    from ddad.serving.export import compare, export_pipeline

    _, left = fitted
    dented = (part(700, dent=8).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    folder = export_pipeline(left, tmp_path / "exported")
    assert compare(left, folder, [dented]).holds
    found, expected = load(folder).inspect(dented), left(dented, denoise=False)
    difference = np.asarray(found.overlay, float) - np.asarray(expected.overlay[0], float)
    assert np.abs(difference).max() <= 2
    (folder / "region.png").write_bytes(b"changed")
    with pytest.raises(OSError, match=r"region\.png is not the file that was exported"):
        load(folder)


def test_what_a_visitor_sees_of_a_held_out_part_lies_inside(fitted):
    from ddad.app.own_examples import held_out_result

    result = held_out_result(fitted[1], 3, 2.0, (60, 80))
    assert result.anomaly_map[0].shape == (60, 80) and (result.anomaly_map[0][:, 42:] == 0).all()
    assert (result.anomaly_map[0][:, :38] != 0).any() and result.region[0].mean() == pytest.approx(0.5, abs=0.02)
