"""Training: what it sees, that it resumes to the same weights, and that its result loads and predicts."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from ddad import DDADPipeline, DDADUNet2DModel
from ddad.calibration.calibration import NUM_TOP_CELLS, RULE
from ddad.cli import main
from ddad.datasets.folder import ImageFolder, rotate
from ddad.datasets.layouts import find_images
from ddad.datasets.lookalikes import group_lookalikes, split_images
from ddad.training import loop, state
from ddad.training.base_network import choose_base
from ddad.training.config import TrainConfig
from ddad.training.corruption import Corruption, fill
from ddad.training.losses import snr_weight
from ddad.training.run import nearest_timesteps
from ddad.training.state import remove_state, state_folder
from tests.conftest import ROOT, random_weights, sign
from tests.helpers import run_without_package


@pytest.fixture(scope="module")
def good_images(tmp_path_factory):
    """Twelve striped pictures, in two folders that are named as good."""
    folder = tmp_path_factory.mktemp("good")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:80, 0:80]
    for index in range(12):
        grey = 127 + 60 * np.sin(x / 5 + generator.normal(0, 0.1)) + generator.normal(0, 4, x.shape)
        target = folder / ("good_1" if index < 7 else "good_2")
        target.mkdir(exist_ok=True)
        PIL.Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(target / f"{index:02d}.png")
    return folder


def tiny_config(data, output, **settings):
    defaults = {"image_size": 64, "steps": 4, "batch_size": 2, "save_every": 2, "warmup_steps": 2, "base": ""}
    return TrainConfig(data=str(data), output=str(output), **(defaults | settings))


def tiny_flags(data, output):
    flags = "--image-size 64 --steps 4 --batch-size 2 --save-every 2 --warmup-steps 2 --base none"
    flags += " --calibration-fraction 0.4"
    appearance = ["--appearance-size", "64", "--appearance-backbone", "test_efficientnet"]
    weights = ["--backbone-weights", str(random_weights("test_efficientnet"))]
    return ["train", "--data", str(data), "--output", str(output), *flags.split(), *appearance, *weights]


@pytest.fixture
def striped(good_images):
    return ImageFolder(find_images(good_images), 64)


def test_images_are_found_in_all_subfolders_and_split_without_overlap(good_images):
    paths = find_images(good_images)
    assert len(paths) == 12
    train, calibration = split_images(paths, range(12), 3, seed=0)
    assert len(calibration) == 3 and sorted(train + calibration) == paths
    assert split_images(paths, range(12), 3, seed=0) == (train, calibration)
    assert (train, calibration) != split_images(paths, range(12), 3, seed=1)


def test_a_dry_run_shows_what_would_train_and_writes_nothing_else(good_images, tmp_path, capsys):
    assert main([*tiny_flags(good_images, tmp_path / "stripes"), "--dry-run"]) == 0
    assert "12 good images to train" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stripes_good_images.webp"]


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no images"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="3 good images are too few"):
        split_images([tmp_path] * 3, [0, 1, 2], 1, seed=0)


def test_rotation_turns_the_image_about_its_centre():
    image = torch.zeros(1, 3, 64, 64)
    image[..., 30:34, 50:54] = 1  # right of the centre
    quarter, still, slight = rotate(image.expand(3, -1, -1, -1), torch.tensor([90.0, 0.0, 5.0]))
    y, x = (quarter[0] > 0.5).nonzero().float().mean(dim=0).tolist()
    assert abs(x - 31.5) < 1 and abs(abs(y - 31.5) - 20) < 1  # now above or below it
    torch.testing.assert_close(still, image[0], atol=1e-4, rtol=0)
    assert (slight - image[0]).abs().max() > 0.5
    back = rotate(slight[None], torch.tensor([-5.0]))
    assert (back - image).abs().mean() < 0.01


def test_images_are_kept_as_bytes_and_grey_ones_in_one_channel(striped, tmp_path):
    store = striped.load()
    assert store.shape == (12, 1, 64, 64) and store.dtype == torch.uint8
    torch.testing.assert_close((store[5] / 127.5 - 1).expand(3, -1, -1), striped[5], atol=0.004, rtol=0)
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    assert ImageFolder([tmp_path / "red.png"], 64).load().shape == (1, 3, 64, 64)


def test_every_epoch_has_each_image_once_in_another_order():
    stream = loop.image_indices(0, 30, 10, seed=0)
    epochs = stream.view(3, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(loop.image_indices(13, 9, 10, seed=0), stream[13:22])


def test_batches_are_really_rotated_and_damaged(striped):
    store, corruption = striped.load(), Corruption(64, pool_size=64)

    def batch(**settings):
        config = tiny_config("data", "output", **settings)
        return loop.load_batch(store, torch.arange(12), corruption, config, torch.Generator().manual_seed(1))

    still, same = batch(rotation_degrees=0.0, corruption_probability=0.0)
    torch.testing.assert_close(still, store.expand(-1, 3, -1, -1) / 127.5 - 1, atol=1e-4, rtol=0)
    assert torch.equal(still, same)
    rotated, same = batch(rotation_degrees=20.0, corruption_probability=0.0)
    assert torch.equal(rotated, same)
    assert ((rotated - still).abs().mean(dim=(1, 2, 3)) > 0.02).sum() >= 10
    clean, damaged = batch(rotation_degrees=0.0, corruption_probability=1.0)
    torch.testing.assert_close(clean, still)  # the target stays clean
    assert ((damaged - clean).abs().amax(dim=(1, 2, 3)) > 0.05).sum() >= 10
    assert torch.equal(damaged, batch(rotation_degrees=0.0, corruption_probability=1.0)[1])
    half = batch(rotation_degrees=0.0, corruption_probability=0.5)[1]
    assert 2 <= int((half == still).all(dim=3).all(dim=2).all(dim=1).sum()) <= 10


def test_damage_is_local_and_within_range(striped):
    generator, corruption = torch.Generator().manual_seed(0), Corruption(64, pool_size=64)
    images = striped[0].expand(30, -1, -1, -1)
    damaged = corruption(images, 1.0, generator)
    parts = ((damaged - images).abs().amax(dim=1) > 1e-3).float().mean(dim=(1, 2))
    assert 0.02 < parts.mean() < 0.7 and parts.max() < 1
    assert damaged.abs().max() <= 1


def test_fill_takes_from_outside_the_mask_alone(striped):
    image = striped[0][None]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 24:44] = 1
    defective = image.clone()
    defective[..., 20:40, 24:44] = -1
    filled = fill(defective, mask)
    assert torch.equal(filled, fill(image, mask))
    assert torch.equal(filled[..., :20, :], image[..., :20, :])
    assert torch.isfinite(fill(image, torch.ones_like(mask))).all()


def test_pixel_weight_is_the_bounded_signal_to_noise_ratio():
    scheduler = loop.create_scheduler(tiny_config("data", "output")).training_process()
    weight = snr_weight(scheduler, torch.tensor([0, 400]), max_snr=10.0).flatten()
    alpha_bar = float(scheduler.alphas_cumprod[400])
    assert weight.tolist() == pytest.approx([10.0, alpha_bar / (1 - alpha_bar)], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_with_the_same_weights(striped, tmp_path, monkeypatch):
    from ddad.calibration.backbone import create_feature_extractor

    features = create_feature_extractor("tf_efficientnet_lite0")
    whole, record = loop.train_unet(tiny_config("data", tmp_path / "whole"), striped, features)

    compute_losses, calls = loop.compute_losses, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute_losses(*arguments)

    config = tiny_config("data", tmp_path / "parts")
    monkeypatch.setattr(loop, "compute_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train_unet(config, striped, features)
    resumed, resumed_record = loop.train_unet(config, striped, features)
    assert len(calls) == 6  # steps 0, 1, 2, the one cut off, and after the state of step 2: steps 2 and 3
    assert record["losses"] == resumed_record["losses"]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(
            whole.parameters(), loop.create_unet(config, features.feature_channels).parameters(), strict=True
        )
    ]
    assert max(moved) > 1e-5
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        loop.train_unet(tiny_config("data", tmp_path / "parts", learning_rate=1.0), striped, features)


def test_the_command_trains_and_saves(good_images, tmp_path, capsys):
    output = tmp_path / "stripes"
    assert main(tiny_flags(good_images, output)) == 0
    assert not state_folder(output).exists()
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "appearance",
        "appearance_extractor",
        "calibration",
        "checksums.json",
        "denoiser",
        "feature_extractor",
        "image_processor",
        "memory",
        "model_index.json",
        "pipeline.py",
        "renderer",
        "residual",
        "scheduler",
        "training.json",
        "training.webp",
        "unet",
        "versions.json",
    ]
    # What decides is what decides for a part that `ddad fit` learnt: a network of its own takes nothing away.
    index, units = (
        json.loads((output / name).read_text()) for name in ("model_index.json", "calibration/config.json")
    )
    assert {name: index[name] for name in RULE} == RULE and units["num_top_cells"] == NUM_TOP_CELLS
    record = json.loads((output / "training.json").read_text())
    assert record["training_images"] == 7 and record["calibration_images"] == 5 and record["images_seen"] == 8
    assert str(tmp_path) not in json.dumps(record) and str(good_images.parent) not in json.dumps(record)
    weights = [tensor for path in (output / "unet").glob("*.safetensors") for tensor in load_file(path).values()]
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    assert all(path.stat().st_size < 10_000_000 for path in output.rglob("*"))
    pipe = DDADPipeline.from_pretrained(output)
    assert pipe.config.category == "stripes"
    # Held-out images were judged by Gaussians that had not seen them; those that are stored have.
    paths = find_images(good_images)
    _, calibration = split_images(paths, group_lookalikes(ImageFolder(paths, 64)), 5, seed=0)
    scores = pipe(calibration, denoise=False).image_score
    assert pipe.threshold == pytest.approx(record["threshold"])
    assert float(np.quantile(scores, 0.95)) <= pipe.threshold
    assert np.mean(pipe(calibration, denoise=False).anomaly_map) < 0.01

    assert main(tiny_flags(good_images, output)) == 2
    assert "already holds a finished checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "strides", "size"),
    [
        pytest.param("test_vit", ("16", "16"), "96", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", ("4", "8"), "224", marks=pytest.mark.slow),
    ],
)
def test_transformers_judge_appearance_where_ddad_is_not_installed(backbone, strides, size, good_images, tmp_path):
    output = tmp_path / "stripes"
    flags = tiny_flags(good_images, output)
    own = {
        "--appearance-size": size,
        "--appearance-backbone": backbone,
        "--backbone-weights": random_weights(backbone),
    }
    for flag, value in own.items():
        flags[flags.index(flag) + 1] = str(value)
    assert main([*flags, "--strides", *strides]) == 0
    settings = json.loads((output / "model_index.json").read_text())
    (output / "model_index.json").write_text(json.dumps(settings | {"feature_score": "appearance", "alpha": 0.0}))
    sign(output)
    pipe = DDADPipeline.from_pretrained(output)
    assert pipe.appearance_extractor.config.backbone == backbone
    image = find_images(good_images)[0]
    [[score, *_]] = run_without_package(np.asarray(PIL.Image.open(image)), output, home=tmp_path)
    assert score == pytest.approx(pipe(image, denoise=False).image_score[0], abs=1e-3)


def test_settings_that_cannot_be_trained_with_are_refused(capsys):
    for flag, value, message in (
        ("--steps", "0", "`steps` must be positive, found 0"),
        ("--timesteps", "700", "below `max_timestep`"),
        ("--calibration-fraction", "1", "between 0 and 1"),
        ("--ema-decay", "1", "between 0 and 1"),
    ):
        assert main(["train", "--data", "x", "--output", "y", flag, value]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--data", "x", "--output", "y", "--no-such-flag", "1"])


def test_a_damaged_training_image_is_named_before_training_starts(good_images, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(good_images, data)
    broken = data / "good_1" / "00.png"
    broken.write_bytes(broken.read_bytes()[:400])
    assert main(tiny_flags(data, tmp_path / "output")) == 2
    assert "00.png is damaged or cut off" in capsys.readouterr().err


@pytest.mark.slow  # three calibrations
def test_an_interruption_while_saving_leaves_no_half_checkpoint(good_images, tmp_path, monkeypatch, capsys):
    output = tmp_path / "stripes"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddad.checkpoint.saving.write_card", interrupt)
        assert main(tiny_flags(good_images, output)) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (output / "model_index.json").exists()
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(os, "replace", lambda a, b: interrupt() if str(b).endswith("unet") else replace(a, b))
        assert main(tiny_flags(good_images, output)) == 130
    assert not (output / "model_index.json").exists()
    with pytest.raises(OSError, match="holds no checkpoint"):
        DDADPipeline.from_pretrained(output)
    assert main(tiny_flags(good_images, output)) == 0  # no step is trained again
    assert DDADPipeline.from_pretrained(output).config.category == "stripes"
    assert not (output / "checkpoint.new").exists()


@pytest.fixture
def unfinished(striped, tmp_path):
    """A run that Ctrl-C ended after two of four steps: its settings, and what continues it."""
    from ddad.calibration.backbone import create_feature_extractor

    features = create_feature_extractor("tf_efficientnet_lite0")
    config = tiny_config("data", tmp_path / "run")

    def go_on(images=striped, **changed):
        return loop.train_unet(tiny_config("data", tmp_path / "run", **changed), images, features)

    compute_losses, calls = loop.compute_losses, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return compute_losses(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_losses", interrupted)
        with pytest.raises(RuntimeError):
            go_on()
    return config, go_on


def flip(path, position=1000):
    content = bytearray(path.read_bytes())
    for place in range(position, position + 4):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: flip(folder / "state.safetensors"), "state.safetensors is damaged or cut off"),
        (lambda folder: (folder / "state.safetensors").write_bytes(b""), "state.safetensors is damaged or cut off"),
        (lambda folder: (folder / "state.safetensors").unlink(), "state.safetensors is missing"),
        (lambda folder: (folder / "state.json").write_text('{"step": 2,'), "state.json is damaged"),
        (lambda folder: (folder / "state.json").write_text("[]"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    ],
)
def test_a_damaged_state_is_refused_in_a_sentence(unfinished, damage, reason):
    config, go_on = unfinished
    damage(state_folder(config.output))
    with pytest.raises(ValueError, match=f"{reason}.*Begin anew with --restart"):
        go_on()
    remove_state(config.output)
    assert go_on()[1]["images_seen"] == 8


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_images(unfinished, striped):
    _, go_on = unfinished
    fewer = ImageFolder(striped.paths[:-1], 64)
    with pytest.raises(ValueError, match="the images in --data are no longer those that it began with"):
        go_on(fewer)
    assert go_on()[1]["images_seen"] == 8


def test_a_full_disk_keeps_the_last_state(unfinished, monkeypatch):
    config, go_on = unfinished
    before = (state_folder(config.output) / "state.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(
            OSError, match=r"state after step 4 cannot be saved.*The last saved state is kept: make room"
        ):
            go_on()
    assert (state_folder(config.output) / "state.safetensors").read_bytes() == before
    assert go_on()[1]["images_seen"] == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_so(striped, tmp_path, monkeypatch, number):
    from ddad.calibration.backbone import create_feature_extractor

    features, compute_losses = create_feature_extractor("tf_efficientnet_lite0"), loop.compute_losses
    before = signal.getsignal(number)

    def signalled(*arguments):
        signal.raise_signal(number)
        return compute_losses(*arguments)

    config = tiny_config("data", tmp_path / "run", save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_losses", signalled)
        with pytest.raises(KeyboardInterrupt, match="saved after step 1 of 4; the same command goes on from there"):
            loop.train_unet(config, striped, features)
    assert signal.getsignal(number) == before
    assert loop.train_unet(config, striped, features)[1]["images_seen"] == 8


def test_a_run_starts_from_the_base_where_its_shape_fits(tmp_path):
    chosen = choose_base(TrainConfig("data", str(tmp_path)))
    assert Path(chosen.base).name == "base" and chosen.steps == 1000
    network = loop.create_unet(dataclasses.replace(chosen, image_size=64), 176)
    stored = DDADUNet2DModel.from_pretrained(Path(chosen.base) / "unet").state_dict()
    assert all(torch.equal(value, stored[name].float()) for name, value in network.state_dict().items())
    for settings in ({"base": "none"}, {"preset": "paper"}, {"prediction_type": "epsilon"}):
        without = choose_base(TrainConfig("data", str(tmp_path), **settings))
        assert without.base == "" and without.steps == 2000
    assert choose_base(TrainConfig("data", str(tmp_path), steps=7)).steps == 7


def test_the_machine_decides_on_its_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, expected in (({}, "no"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert loop.choose_precision("auto") == expected
        assert loop.choose_precision("no") == "no"


@pytest.mark.slow
def test_mixed_precision_takes_a_real_step(striped, tmp_path, request):
    from accelerate.state import AcceleratorState

    from ddad.calibration.backbone import create_feature_extractor

    # A process has one precision; the tests before this one had another.
    AcceleratorState._reset_state(reset_partial_state=True)
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))

    features = create_feature_extractor("tf_efficientnet_lite0")
    config = tiny_config("data", tmp_path / "run", mixed_precision="bf16")
    unet, record = loop.train_unet(config, striped, features)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert all(np.isfinite(value) for value in record["losses"][-1].values())
    output = unet(torch.zeros(1, 3, 64, 64), 20)  # as calibration calls it
    assert output.sample.dtype == torch.float32


def test_the_papers_noise_levels_work_and_equal_ones_are_refused_at_once(tmp_path):
    assert nearest_timesteps(tiny_config("data", tmp_path, timesteps=(20, 200, 400))) == (20, 201, 401)
    with pytest.raises(ValueError, match="too close together: the nearest steps are"):
        nearest_timesteps(tiny_config("data", tmp_path, timesteps=(200, 201)))
    with pytest.raises(ValueError, match="must be different noise levels"):
        tiny_config("data", tmp_path, timesteps=(20, 20))


def test_what_cannot_be_written_is_said_before_training(good_images, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(tiny_flags(good_images, output)) == 2
        assert "cannot be written to" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(tiny_flags(good_images, tmp_path / "full")) == 2
    assert "has 100 MB of room; training needs 450 MB" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_learn_what_one_does(good_images, tmp_path):
    losses, environment = {}, os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for count, batch in ((1, 4), (2, 2)):
        output = tmp_path / f"by {count}"
        flags = [*tiny_flags(good_images, output), "--batch-size", str(batch), "--steps", "10"]
        launch = ["--standalone", "--nproc_per_node", str(count), "-m", "ddad.cli"]  # accelerate launches GPUs alone
        command = [sys.executable, "-m", "torch.distributed.run", *launch, *flags, "--mixed-precision", "no"]
        subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=600)
        record = json.loads((output / "training.json").read_text())
        assert record["images_seen"] == 40
        losses[count] = record["losses"][-1]
    assert losses[1]["step"] == losses[2]["step"] == 10
    for name, value in losses[1].items():
        assert losses[2][name] == pytest.approx(value, rel=1e-3, abs=2e-5), name
