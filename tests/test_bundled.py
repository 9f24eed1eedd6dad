"""Every bundled checkpoint: what its folder holds, and what it says of its own examples."""

import json

import PIL.Image
import pytest
import torch

import ddad
from ddad import DDADImageProcessor, DDADPipeline, DDADScheduler
from ddad.app.examples import photographs
from ddad.training.config import TrainConfig
from ddad.training.loop import create_unet
from tests.conftest import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/model_index.json"))
WITH_EXAMPLES = [folder for folder in FOLDERS if (folder / "examples").is_dir()]


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_its_files_are_small_and_safe(folder):
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000 and sum(sizes.values()) < 60_000_000
    assert {path.suffix for path in sizes} <= {".safetensors", ".json", ".py", ".md", ".webp"}


def test_its_code_is_that_of_the_package(folder):
    package = ROOT / "ddad"
    assert ddad.__file__.startswith(str(package))
    assert (folder / "pipeline.py").resolve() == package / "pipeline.py"
    for name, (module, _) in DDADPipeline.component_classes.items():
        if name in DDADPipeline._optional_components and not (folder / name).is_dir():
            continue
        assert (folder / name / f"{module}.py").resolve() == package / f"{module}.py"


def test_its_card_names_licence_source_and_what_was_measured(folder):
    config = json.loads((folder / "training.json").read_text())["config"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    card = (folder / "README.md").read_text()
    assert config["category"] == folder.name and config["data_source"] in card
    assert f"license: {config['license']}" in card and config["license"]
    assert f"| combined | {evaluation['scores']['combined']['image_auroc']:.1f}" in card
    assert "(training.webp)" in card and (folder / "training.webp").is_file()


@pytest.mark.parametrize("folder", WITH_EXAMPLES, ids=lambda folder: folder.name)
def test_its_examples_are_judged_right_and_a_good_part_comes_out_as_it_went_in(folder):
    pipe = DDADPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    paths = photographs(folder)
    assert 2 <= len(paths) <= 6 and {path.stem.rpartition("_")[0] for path in paths} == {"defective", "good"}
    found = pipe(paths, denoise=False)
    assert found.is_anomalous == [path.stem.startswith("defective") for path in paths]
    # Only what is found is repaired: one of each kind is enough.
    for path in (paths[0], paths[-1]):
        result = pipe(path)
        with PIL.Image.open(path) as picture:
            unchanged = result.denoised_image[0].tobytes() == picture.convert("RGB").tobytes()
        assert unchanged == path.stem.startswith("good")
        if not unchanged:
            again = pipe(result.denoised_image[0], denoise=False)
            assert again.image_score[0] < 0.8 * result.image_score[0]


def test_the_base_network_is_what_a_training_starts_from(tmp_path):
    base = ROOT / "checkpoints" / "base"
    unet = create_unet(TrainConfig(data="", output=str(tmp_path), base=str(base)), 176)
    preset = create_unet(TrainConfig(data="", output=str(tmp_path), base=""), 176)
    assert {name: value.shape for name, value in unet.state_dict().items()} == {
        name: value.shape for name, value in preset.state_dict().items()
    }
    assert max(path.stat().st_size for path in base.rglob("*")) < 10_000_000
    # It knows what a clean image is: from noise of t = 201 it comes closer than the noise itself by far.
    image = DDADImageProcessor().preprocess(DDADImageProcessor().read_image(photographs(FOLDERS[0])[-1]), 256)
    scheduler, timesteps = DDADScheduler.from_pretrained(base / "scheduler"), torch.tensor([201])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = scheduler.add_noise(image, noise, timesteps)
    with torch.no_grad():
        clean = scheduler.predict_original_sample(unet(noisy, timesteps).sample, noisy, timesteps)
    assert (clean - image).square().mean() < 0.01 < 0.1 < (noisy - image).square().mean()
