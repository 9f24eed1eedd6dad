"""Calibration: what is chosen without test images, what is held out of what, and what a changed lamp needs."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddad import DDADPipeline
from ddad.calibration import calibration, fitting, observing
from ddad.calibration.calibration import recalibrate
from ddad.calibration.factors import candidates
from ddad.calibration.observing import CalibrationConfig, count_copies, spread
from ddad.calibration.synthetic import DEFECT_TYPES, make_defects
from ddad.cli import main
from ddad.datasets.folder import ImageFolder
from ddad.datasets.layouts import find_images
from ddad.datasets.lookalikes import group_lookalikes
from tests.conftest import create_tiny_pipeline, random_weights
from tests.helpers import photographs, striped_images
from tests.hub.conftest import RECORD


def looks():
    """Flags that judge appearance by a tiny backbone."""
    weights = str(random_weights("test_efficientnet"))
    return ["--appearance-size", "64", "--appearance-backbone", "test_efficientnet", "--backbone-weights", weights]


def images_of(folder):
    """What the tiny pipeline sees of a folder."""
    return ImageFolder(find_images(folder), 64)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return striped_images(tmp_path_factory.mktemp("good") / "parts", 24)


@pytest.fixture(scope="module")
def adapted(good):
    return recalibrate(create_tiny_pipeline(), images_of(good), CalibrationConfig())


def test_all_of_it_follows_from_good_images(adapted, good):
    pipe, record = adapted
    config = pipe.calibration.config
    assert config.num_calibration_images == 24  # all of them, each by the others
    # What decides is the same for every part.
    decides = (pipe.config.feature_score, pipe.config.alpha, pipe.config.blur_sigma, config.num_top_cells)
    assert decides == ("appearance", 0.0, 2.0, 4)
    assert pipe.memory.config.num_patches == 24 * 64  # of the images themselves
    for name in ("appearance", "residual"):
        fitted = record[name]
        assert fitted["log_likelihoods"][fitted["factors"]] >= max(fitted["log_likelihoods"].values()) - 0.02
        assert 0 <= fitted["shrinkage"] < 1
        assert getattr(pipe, name).config.num_factors == fitted["factors"]
    found = record["synthetic"]
    assert sorted(found["found"]) == [6, 12, 24] and 50 < found["image_auroc"] <= 100
    # The stored cells of held-out images have mean 0 for every score and level.
    assert pipe.calibration.calibration_maps[:24].float().mean(dim=(0, 2, 3)).abs().max() < 0.02
    assert pipe.threshold > 0
    # Every second one is stored changed too: a tolerant threshold counts it so.
    assert config.num_changed_images == 12
    strict, tolerant = (
        pipe.calibration.held_out_scores(pipe.judgement(tolerance=one)) for one in ("strict", "tolerant")
    )
    assert torch.equal(strict[::2], tolerant[::2]) and not torch.isclose(strict[1::2], tolerant[1::2]).any()
    assert strict[1::2].mean() < tolerant[1::2].mean()
    shown = find_images(good)[0]
    assert pipe(shown, denoise=False).threshold == pipe.threshold
    lower = copy.deepcopy(pipe.calibration)
    maps = lower.calibration_maps
    maps[24:] = maps[1:24:2] - 0.5  # changed images that score less
    limits = [lower.threshold(pipe.judgement(tolerance=one)) for one in ("strict", "tolerant")]
    assert limits[0] == limits[1]
    told = pipe(shown, denoise=False, tolerance="tolerant").threshold
    assert told == pipe.calibration.threshold(pipe.judgement(tolerance="tolerant")) != pipe.threshold


def test_what_judges_has_not_been_seen(good, monkeypatch):
    """The distance of held-out images is larger than under Gaussians that have seen them."""
    monkeypatch.setattr(fitting, "choose_shrinkage", lambda *_: (0.0, {0.0: 0.0}))
    monkeypatch.setattr(observing, "RESIDUAL_COPIES", 0)
    tiny = create_tiny_pipeline()
    tiny.feature_extractor.feature_std.fill_(0.02)  # what varies is larger than the regularisation
    pipe, _ = recalibrate(tiny, images_of(good), CalibrationConfig())
    images = pipe.prepare([pipe.image_processor.read_image(path) for path in find_images(good)])
    maps = pipe.score_maps(images, pipe.timesteps, pipe.get_noise(pipe.timesteps), {"residual"})["residual"]
    assert np.mean(pipe.calibration.config.statistics["residual_mean"]) > 1.05 * float(maps.mean())


@pytest.mark.slow  # two calibrations
def test_another_photograph_of_the_same_part_does_not_judge_it(monkeypatch):
    """Where each part was photographed often, its own photographs would make it look normal."""
    images = [2 * F.interpolate(one[None], size=64, mode="area")[0] - 1 for one in photographs(parts=12, shots=4)]
    means = []
    for group in (group_lookalikes, lambda images: range(sum(1 for _ in images))):
        monkeypatch.setattr(calibration, "group_lookalikes", group)
        tiny = create_tiny_pipeline()
        tiny.feature_extractor.feature_std.fill_(0.02)  # what varies is larger than the regularisation
        pipe, _ = recalibrate(tiny, images, CalibrationConfig(nuisance="none"))
        means.append(np.mean(pipe.calibration.config.statistics["residual_mean"]))
    assert means[0] > 1.05 * means[1]


def test_the_pipeline_at_hand_stays_as_it_is(good, picture):
    pipe = create_tiny_pipeline()
    before = pipe(picture, denoise=False).image_score
    recalibrate(pipe, images_of(good), CalibrationConfig())
    assert pipe(picture, denoise=False).image_score == pytest.approx(before, rel=1e-2)  # weights are rounded to half
    assert pipe.residual.config.num_factors == 4


@pytest.mark.slow
def test_the_command_adapts_a_checkpoint_to_a_changed_lamp(good, tmp_path, capsys):
    checkpoint, output = tmp_path / "old", tmp_path / "new"
    pipe, _ = recalibrate(create_tiny_pipeline(), images_of(good), CalibrationConfig())
    pipe.save_pretrained(checkpoint)
    (checkpoint / "training.json").write_text(json.dumps(RECORD))
    bright = striped_images(tmp_path / "bright", 24, offset=60.0, seed=1)
    command = ["calibrate", "--checkpoint", str(checkpoint), "--data", str(bright), "--output", str(output), *looks()]
    assert main(command) == 0
    new = DDADPipeline.from_pretrained(output)
    record = json.loads((output / "training.json").read_text())
    assert record["calibration"]["images"] == 24 and record["threshold"] == pytest.approx(new.threshold)
    assert str(tmp_path) not in (output / "training.json").read_text()
    paths = find_images(striped_images(tmp_path / "later", 6, offset=60.0, seed=2))
    old_alarms = np.mean(DDADPipeline.from_pretrained(checkpoint)(paths, denoise=False).is_anomalous)
    assert np.mean(new(paths, denoise=False).is_anomalous) < old_alarms
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "status", "message"),
    [
        (1, 2, "1 good images are too few"),
        pytest.param(10, 0, "10 good images are few", marks=pytest.mark.slow),  # a whole calibration
    ],
)
def test_few_images_are_warned_of_and_one_is_refused(count, status, message, tmp_path, capsys, caplog):
    checkpoint = tmp_path / "old"
    create_tiny_pipeline().save_pretrained(checkpoint)
    data = striped_images(tmp_path / "data", count)
    assert (
        main(
            [
                "calibrate",
                "--checkpoint",
                str(checkpoint),
                "--data",
                str(data),
                "--output",
                str(tmp_path / "new"),
                *looks(),
            ]
        )
        == status
    )
    assert message in capsys.readouterr().err + caplog.text


def test_synthetic_defects_are_where_their_masks_say():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    defective, masks, sources = make_defects(images, 2, seed=0)
    assert len(defective) == len(masks) == 2 * len(DEFECT_TYPES)
    again, _, _ = make_defects(images, 2, seed=0)
    assert torch.equal(defective, again)
    for image, mask, source in zip(defective, masks, sources, strict=True):
        changed = (image - images).abs().amax(dim=1).flatten(1) > 0.02  # against each good image
        assert int(changed.sum(dim=1).argmin()) == source
        nearest = changed[source].view(64, 64).numpy()
        assert (nearest & mask).sum() > 0.3 * mask.sum()


def test_progress_is_told_and_can_end_the_work(good):
    class EnoughError(Exception):
        pass

    told = []

    def report(what, done, count):
        told.append((what, done, count))
        if what == "Measuring held-out images":
            raise EnoughError

    with pytest.raises(EnoughError):
        recalibrate(create_tiny_pipeline(), images_of(good), CalibrationConfig(), report)
    assert told[:2] == [("Looking at good images", 1, 24), ("Looking at good images", 2, 24)] and len(told) == 49


def test_more_views_speak_for_more_factors():
    assert [max(candidates(number)) for number in (32, 64, 200, 1218)] == [0, 16, 48, 96]
    assert [count_copies(number) for number in (10, 150, 400, 5000)] == [6, 5, 1, 1]
    assert spread(5, 9) == [0, 1, 2, 3, 4] and spread(101, 3) == [0, 50, 100]
