"""A new part from a handful of good photographs: what it finds, what it says, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from ddad import DDADCalibration, DDADPipeline
from ddad.app.categories import Categories
from ddad.calibration.advice import PartReport, find_other_kind, pooled_features
from ddad.calibration.part import load_base
from ddad.calibration.promise import expect_false_alarms
from ddad.cli import main
from ddad.evaluation.metrics import auroc
from ddad.images_ddad import DDADImageProcessor
from ddad.refining_ddad import DDADRefiner
from ddad.training.config import TrainConfig
from ddad.training.run import train
from tests.conftest import ROOT, create_tiny_pipeline
from tests.helpers import striped_images

DATASETS = ROOT.parent / "shared" / "datasets"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base network of a few thousand weights."""
    folder = tmp_path_factory.mktemp("base")
    pipe = create_tiny_pipeline()
    for name in ("unet", "scheduler", "feature_extractor"):
        getattr(pipe, name).save_pretrained(folder / name)
    pipe.feature_extractor.save_pretrained(folder / "appearance_extractor")
    DDADRefiner(channels=(4, 8), middle_blocks=1).save_pretrained(folder / "refiner")
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return sorted(striped_images(tmp_path_factory.mktemp("photographs"), 8, seed=3).rglob("*.png"))


@pytest.fixture(scope="module")
def fitted(base, photographs):
    return DDADPipeline.fit(photographs, "stripes", base=base, image_size=64)


def stained(path):
    values = np.array(PIL.Image.open(path).convert("RGB"))
    side = values.shape[0]
    values[side // 3 : side // 2, side // 3 : side // 2] = (200, 30, 30)
    return values


def test_a_few_photographs_are_enough_to_find_a_stain(fitted, photographs):
    pipe, report = fitted
    assert pipe.config.category == "stripes" and pipe.config.alpha == 0
    assert pipe.config.feature_score == "appearance" and pipe.refiner.config.middle_blocks == 1
    result = pipe([PIL.Image.open(photographs[0]), stained(photographs[0])])
    assert result.is_anomalous == [False, True]
    y, x = np.unravel_index(result.anomaly_map[1].argmax(), result.anomaly_map[1].shape)
    side = result.anomaly_map[1].shape[0]
    assert side / 4 < y < side / 1.8 and side / 4 < x < side / 1.8
    assert result.denoised_image[1].size == PIL.Image.open(photographs[0]).size
    assert report.images == 8 and sorted(report.found) == [3, 4, 8]
    assert all(0 <= share <= 100 for share in report.found.values())
    assert report.threshold == pipe.threshold > 0


@pytest.mark.slow
def test_it_is_a_checkpoint_like_any_other(base, photographs, tmp_path, capsys):
    output = tmp_path / "stripes"
    flags = ["fit", str(photographs[0].parent), "--output", str(output), "--base", str(base)]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "Of defects pasted into your images as a test, with 3 images" in said and "good parts to be called" in said
    card = (output / "README.md").read_text()
    assert "No network was trained on this part" in card and "stripes" in card
    record = json.loads((output / "training.json").read_text())
    assert record["config"]["steps"] == 0 and record["fitted"]["images"] == 8
    assert str(tmp_path) not in json.dumps(record)
    pipe = DDADPipeline.from_pretrained(output)
    assert pipe(stained(photographs[0]), denoise=False).is_anomalous == [True]
    assert Categories(tmp_path, "cpu").get("stripes").pipe.config.category == "stripes"
    assert main(flags) == 2 and "is not empty" in capsys.readouterr().err


@pytest.mark.slow  # fits and trains
def test_a_network_of_the_parts_own_may_come_later_into_the_same_folder(base, photographs, tmp_path, capsys):
    output, data = tmp_path / "stripes", str(photographs[0].parent)
    assert main(["fit", data, "--output", str(output), "--base", str(base)]) == 0
    train = ["train", "--data", data, "--output", str(output), "--steps", "2", "--batch-size", "2"]
    small = ["--image-size", "64", "--base", "none", "--appearance-size", "64", "--calibration-fraction", "0.4"]
    assert main([*train, *small]) == 0
    trained = json.loads((output / "training.json").read_text())
    assert trained["config"]["steps"] == 2 and "fitted" not in trained
    assert DDADPipeline.from_pretrained(output).unet.config.sample_size == 64
    assert main([*train, *small]) == 2 and "already holds a finished checkpoint" in capsys.readouterr().err


@pytest.mark.slow  # fits and trains
@pytest.mark.skipif(not DATASETS.is_dir(), reason="the data sets lie beside the project alone")
def test_a_network_of_its_own_never_makes_the_verdict_worse(tmp_path):
    good = sorted((DATASETS / "capsule" / "train" / "good").iterdir())[:32]
    tested = sorted((DATASETS / "capsule" / "test").rglob("*.*"))[::5]
    defective = np.array([path.parent.name != "good" for path in tested])
    (tmp_path / "good").mkdir()
    for path in good:
        shutil.copy(path, tmp_path / "good")
    fitted, _ = DDADPipeline.fit(good, "capsule", image_size=256)
    train(
        TrainConfig(
            data=str(tmp_path / "good"),
            output=str(tmp_path / "trained"),
            base=str(ROOT / "checkpoints" / "base"),
            appearance_size=256,
            steps=2,
        )
    )
    found = {}
    for name, pipe in ("fitted", fitted), ("trained", DDADPipeline.from_pretrained(tmp_path / "trained")):
        scores = np.array([pipe(path, denoise=False).image_score[0] for path in tested])
        found[name] = auroc(scores[~defective], scores[defective])
    assert found["fitted"] > 0.6 and found["trained"] > found["fitted"] - 0.02


def test_what_cannot_be_fitted_is_refused(base, photographs, tmp_path):
    with pytest.raises(ValueError, match="3 good images are too few"):
        DDADPipeline.fit(photographs[:3], base=base)
    with pytest.raises(OSError, match="is no base network: its folder unet is missing"):
        DDADPipeline.fit(photographs, base=tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(photographs[0].read_bytes()[:300])
    with pytest.raises(ValueError, match="broken.png is damaged or cut off"):
        DDADPipeline.fit([*photographs, broken], base=base, image_size=64)


def test_few_scores_make_a_cautious_threshold():
    """What lies above it is, on average, as much as was asked for; above a plain quantile of few it is far more."""
    random = np.random.default_rng(0)
    scores = random.standard_normal((3000, 8))
    further = random.standard_normal(3000)
    limits = DDADCalibration.limit(scores, 0.05)
    assert (further > limits).mean() == pytest.approx(0.05, abs=0.015)
    assert (further > np.quantile(scores, 0.95, axis=1)).mean() > 0.1
    few, many = expect_false_alarms(8, 0.05), expect_false_alarms(100, 0.05)
    assert few[0] == pytest.approx(5, abs=1) and many[0] == pytest.approx(5.5, abs=1)
    assert few[2] - few[1] > 2 * (many[2] - many[1])


REPORT = PartReport(30, 99.0, {8: 90.0, 15: 92.0, 30: 93.0}, (5.0, 1.0, 12.0), [], [], 2.0, 30.0)


def test_one_headline_by_what_matters_most():
    """In this order: cannot be relied on, photographs to look at, more parts needed, learnt."""
    poor = {"found": {15: 30.0, 30: 40.0}}
    suspects, few = {"unlike": ["c.jpg"]}, {"same_part": [[f"{n}" for n in range(15)]]}
    cases = [(poor | suspects | few, "unreliable"), (suspects | few, "suspects"), (few, "few"), ({}, "learnt")]
    for changes, state in cases:
        assert dataclasses.replace(REPORT, **changes).state == state
    assert dataclasses.replace(REPORT, **poor).headline("Bolt") == "⚠ Bolt cannot be relied on yet"
    assert dataclasses.replace(REPORT, **suspects).headline("Bolt") == "⚠ Look at 1 photograph of Bolt first"
    assert REPORT.headline("Bolt") == "✓ Bolt is learnt from 30 photographs"
    assert "more parts" in dataclasses.replace(REPORT, **few).headline("Bolt")


def test_the_report_says_what_to_do_and_nothing_that_is_not_known():
    said = " ".join(REPORT.sentences())
    assert "with 8 images 90 %, with 15 images 92 %, with 30 images 93 % are found." in said
    assert "Expect 5 % of good parts to be called defective (90 % interval: 1 to 12 %)." in said
    assert "More" not in said and "hardly" not in said
    grown = dataclasses.replace(REPORT, found={15: 80.0, 30: 93.0})
    assert "More photographs will help: with half as many clearly fewer are found." in grown.sentences()
    copies = dataclasses.replace(REPORT, images=4, same_part=[["a", "b", "c", "d"]])
    assert not copies.works and copies.state == "unreliable"
    assert copies.sentences()[0].startswith("The 4 photographs seem to show 1 part: give photographs of at least 4")
    some = dataclasses.replace(REPORT, same_part=[["a", "b"]], unlike=["c.jpg"], other_kind=["d.jpg", "c.jpg"])
    assert some.suspects == ["d.jpg", "c.jpg"] and "two kinds of part; d.jpg, c.jpg" in some.sentences()[0]
    assert "2 photographs seem to show the same part as another (a, b)" in some.sentences()[-1]


def test_two_kinds_of_part_are_told_apart():
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (12, 40)), random.normal(0, 1, (5, 40)) + 6
    names = [f"{number}" for number in range(17)]
    assert find_other_kind(np.concatenate([one, other]), names) == names[12:]
    assert find_other_kind(random.normal(0, 1, (17, 40)), names) == []
    assert find_other_kind(np.concatenate([one, other[:1]]), names[:13]) == []  # one that is unlike the rest
    assert find_other_kind(np.zeros((8, 4)), names[:8]) == []


@pytest.mark.skipif(not DATASETS.is_dir(), reason="the data sets lie beside the project alone")
def test_bottles_among_toys_are_named():
    extractor = load_base(None)["feature_extractor"]
    paths = [
        *sorted((DATASETS / "bottle").rglob("train/good/*"))[:9],
        *sorted((DATASETS / "alien").rglob("train/good/*"))[:4],
    ]
    images = [DDADImageProcessor().preprocess(DDADImageProcessor().read_image(path), 256)[0] for path in paths]
    pooled = pooled_features(extractor, images)
    assert find_other_kind(pooled, [path.parts[-4] for path in paths]) == ["alien"] * 4
    assert find_other_kind(pooled[:9], [path.name for path in paths[:9]]) == []


def test_a_photograph_unlike_the_rest_is_named(base, photographs):
    images = [np.array(PIL.Image.open(path)) for path in photographs]
    images.insert(2, np.repeat(images[0][:, ::-1, None].T, 3, axis=0).transpose(1, 2, 0))  # turned by a quarter
    _, report = DDADPipeline.fit(images, base=base, image_size=64)
    assert report.unlike[0] == "image 3" and report.state in ("suspects", "unreliable")
    assert "image 3" in " ".join(report.sentences()[:2])


def test_parts_in_any_position_are_said_to_be_too_few(base):
    """Noise has no normal place: synthetic defects drown in it, and the report says so."""
    images = [torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    smooth = [torch.nn.functional.avg_pool2d(image[None], 9, 1, 4)[0] for image in images]
    spread = [(image - image.min()) / (image.max() - image.min()) for image in smooth]
    _, report = DDADPipeline.fit(spread, base=base, image_size=64)
    assert not report.works


@pytest.mark.slow
def test_a_fit_and_a_training_look_where_a_mask_says(base, photographs, tmp_path, capsys):
    width, height = PIL.Image.open(photographs[0]).size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    PIL.Image.fromarray(mask[: height // 2]).save(tmp_path / "flat.png")
    data, output = str(photographs[0].parent), str(tmp_path / "stripes")
    fit = ["fit", data, "--output", output, "--base", str(base), "--region"]
    assert main([*fit, str(tmp_path / "flat.png")]) == 2 and "another aspect ratio" in capsys.readouterr().err
    assert main([*fit, str(tmp_path / "mask.png")]) == 0
    assert float(DDADPipeline.from_pretrained(output).inside.mean()) == pytest.approx(0.5, abs=0.02)
    train = ["train", "--data", data, "--output", output, "--steps", "2", "--batch-size", "2", "--image-size", "64"]
    small = ["--base", "none", "--appearance-size", "64", "--calibration-fraction", "0.4"]
    assert main([*train, *small, "--region", str(tmp_path / "mask.png")]) == 0
    assert float(DDADPipeline.from_pretrained(output).inside.mean()) == pytest.approx(0.5, abs=0.02)
    assert json.loads((tmp_path / "stripes" / "training.json").read_text())["config"]["region"] == "mask.png"
