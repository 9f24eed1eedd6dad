import functools
import hashlib
import json
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # beside another, two threads each are slower than one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file

from ddad import (
    DDADCalibration,
    DDADDenoiser,
    DDADFeatureExtractor,
    DDADGaussianModel,
    DDADImageProcessor,
    DDADMemory,
    DDADPipeline,
    DDADRenderer,
    DDADScheduler,
    DDADUNet2DModel,
)
from ddad.calibration.gaussians import Moments, principal_components, shrink
from ddad.cli import main

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "checkpoints" / "solar_cell_mono"


@pytest.fixture(scope="session")
def solar_pipe():
    pipe = DDADPipeline.from_pretrained(CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def solar_cells():
    from ddad.datasets.elpv import load_solar_cells

    return load_solar_cells("mono")


@pytest.fixture(scope="session")
def defective_cell(solar_cells):
    """A cell with cracks and dark corners."""
    return solar_cells.test_defective[78]


@pytest.fixture
def tiny_pipe():
    """An untrained pipeline of a few thousand weights, with random but fixed statistics."""
    return create_tiny_pipeline()


def fit_gaussian(
    model: DDADGaussianModel, features: torch.Tensor, weight: float = 0.0, factors: torch.Tensor | None = None
) -> None:
    """Fits one Gaussian to features `[N, C, h, w]`."""
    values = model.reduce(features)
    moments = Moments.empty(*values.shape[1:])
    moments.add(values)
    mean, covariance = moments.gaussian()
    none = torch.zeros(mean.numel(), 0)
    model.set_gaussian(mean, shrink(covariance, weight), none if factors is None else factors)


def create_tiny_pipeline(seed: int = 0, **settings) -> DDADPipeline:
    torch.manual_seed(seed)
    features = DDADFeatureExtractor(backbone="test_efficientnet", strides=(4, 8), grid_size=16)
    unet = DDADUNet2DModel(
        sample_size=64,
        patch_size=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        feature_channels=features.feature_channels,
        feature_block=1,
    ).eval()
    unet.requires_grad_(False)
    statistics = {
        f"{name}_{statistic}": values
        for name in ("kl", "residual")
        for statistic, values in (("mean", [0.1, 0.2]), ("std", [0.5, 0.6]))
    } | {"appearance_mean": [1.0], "appearance_std": [0.5]}
    calibration = DDADCalibration(timesteps=(20, 201), num_calibration_images=6, statistics=statistics)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(40, features.feature_channels, 8, 8, generator=generator)
    residual = DDADGaussianModel(features.feature_channels, num_channels=12, grid_size=8, num_factors=4)
    residual.basis.copy_(principal_components(residual.to_grid(values), 12))
    shown = torch.randn(40, features.feature_channels, 16, 16, generator=generator)
    fit_gaussian(residual, shown, factors=torch.linalg.qr(torch.randn(64 * 12, 4, generator=generator)).Q)
    calibration.calibration_maps.copy_(torch.randn(calibration.calibration_maps.shape, generator=generator))
    looks = DDADFeatureExtractor(backbone="test_efficientnet", strides=(4, 8), image_size=64, grid_size=8)
    appearance = DDADGaussianModel(looks.feature_channels, num_channels=6, grid_size=8)
    appearance.basis.copy_(principal_components(appearance.to_grid(values), 6))
    fit_gaussian(appearance, shown)
    pipe = DDADPipeline(
        unet=unet,
        scheduler=DDADScheduler(prediction_type="sample", detail_std=0.03),
        feature_extractor=features,
        residual=residual,
        appearance_extractor=looks,
        appearance=appearance,
        calibration=calibration,
        denoiser=DDADDenoiser(),
        image_processor=DDADImageProcessor(),
        renderer=DDADRenderer(),
        category="tiny",
        **settings,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_memory(pipe: DDADPipeline) -> DDADPipeline:
    """The same with remembered patches, and a calibration that was measured with them."""
    generator = torch.Generator().manual_seed(1)
    channels = pipe.appearance.config.num_channels
    memory = DDADMemory(channels, num_patches=200)
    for parameter in memory.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    config = {key: value for key, value in pipe.calibration.config.items() if not key.startswith("_")}
    config["statistics"] = {**config["statistics"], "memory_mean": [2.0], "memory_std": [0.7]}
    calibration = DDADCalibration(**config)
    calibration.calibration_maps.copy_(torch.randn(calibration.calibration_maps.shape, generator=generator))
    return DDADPipeline.from_pipe(pipe, memory=memory, calibration=calibration)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The tiny pipeline as it is saved; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    create_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tiny_checkpoint, tmp_path_factory):
    """The tiny pipeline exported for onnxruntime; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    assert main(["export", str(tiny_checkpoint), "--output", str(folder)]) == 0
    return folder


@functools.cache
def random_weights(backbone: str) -> Path:
    """A file of random weights of a timm backbone: what is tested is the way, and not what it sees."""
    torch.manual_seed(0)
    path = Path(tempfile.mkdtemp(prefix="ddad-tests-")) / f"{backbone}.safetensors"
    save_file(timm.create_model(backbone).state_dict(), path)
    return path


def sign(folder: Path) -> None:
    """Makes the check sums of a checkpoint right, as somebody would who changed it to do harm."""
    path = folder / "checksums.json"
    names = [name for name in json.loads(path.read_text()) if (folder / name).is_file()]
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    path.write_text(json.dumps(sums))


@pytest.fixture
def picture():
    """A smooth grey picture, `[90, 70, 3]` uint8."""
    y, x = np.mgrid[0:90, 0:70]
    grey = 127 + 60 * np.sin(x / 9) * np.cos(y / 13)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def striped_data(tmp_path_factory):
    """Striped parts; bright dents with masks, and a dark stain without one."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    generator = np.random.default_rng(0)

    def write(path, dent=None, mask=None):
        values = 127 + 60 * np.sin(np.arange(96) / 6)[None] + generator.normal(0, 3, (80, 96))
        if dent is not None:
            values[20:40, 30:60] = dent
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
        if mask is not None:
            mask.parent.mkdir(parents=True, exist_ok=True)
            truth = np.zeros((80, 96), dtype=np.uint8)
            truth[20:40, 30:60] = 255
            PIL.Image.fromarray(truth).save(mask)

    for index in range(4):
        write(root / "train" / "good" / f"{index}.png")
        write(root / "test" / "good" / f"{index}.png")
    for index in range(3):
        write(root / "test" / "dent" / f"{index}.png", 255, root / "ground_truth" / "dent" / f"{index}_mask.png")
    write(root / "test" / "stain" / "0.png", 0)
    return root
