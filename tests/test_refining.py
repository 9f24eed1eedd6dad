"""The second stage of a repair: what it may change, and that it comes with the pipeline wherever that goes."""

import json

import numpy as np
import pytest
import torch

from ddad import DDADPipeline, DDADRenderer
from ddad.evaluation.restoration import gradient_energy
from ddad.images_ddad import DDADImageProcessor
from ddad.refining_ddad import DDADRefiner
from ddad.training.base_network import load_refiner
from tests.conftest import CHECKPOINT, create_tiny_pipeline
from tools.refiner import PATCH, POWER_FLOOR, power

BASE = CHECKPOINT.parent / "base"


@pytest.fixture
def refiner():
    """A small network whose last layer, which starts at zero, does something."""
    torch.manual_seed(0)
    refiner = DDADRefiner(channels=(4, 8), middle_blocks=2, image_size=96).eval().requires_grad_(False)
    torch.nn.init.normal_(refiner.leave.weight, std=0.5)
    return refiner


@pytest.fixture
def photograph():
    return torch.rand(3, 80, 61, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def region(photograph):
    mask = torch.zeros_like(photograph[:1])
    mask[:, 20:40, 10:30] = 1
    return mask


@pytest.mark.parametrize("size", [(80, 61), (64, 64), (33, 200), (301, 150)])
def test_only_the_region_changes_at_any_size(refiner, size):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, *size)
    mask[:, 10:30, 20:50] = 0.7
    refined = refiner.add_detail(image, mask, 0)
    outside = mask.expand(3, -1, -1) == 0
    assert torch.equal(refined[outside], image[outside])
    assert (refined - image).abs()[~outside].mean() > 1e-3
    assert refined.min() >= 0 and refined.max() <= 1


def test_detail_is_drawn_by_its_seed(refiner, photograph, region):
    first, again, other = (refiner.add_detail(photograph, region, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nothing_to_refine_is_the_image_itself(refiner, photograph, region):
    assert torch.equal(refiner.add_detail(photograph, 0 * region, 0), photograph)


def test_what_came_without_colour_gets_none(refiner, photograph, region):
    grey = photograph[:1].expand(3, -1, -1).contiguous()
    refined = refiner.add_detail(grey, region, 0, grey=True)
    assert torch.equal(refined[0], refined[1]) and torch.equal(refined[0], refined[2])
    assert torch.equal(refined[:, region[0] == 0], grey[:, region[0] == 0])


def test_of_a_large_photograph_the_surroundings_alone_are_looked_at(refiner):
    """What lies far from the region costs nothing: the network sees a piece."""
    refiner.register_to_config(image_size=400)
    seen = []
    refiner.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[-2:]))
    image, mask = torch.rand(3, 400, 300), torch.zeros(1, 400, 300)
    mask[:, 200:220, 290:300] = 1
    refiner.add_detail(image, mask, 0)
    assert seen == [(20 + 2 * 64, 10 + 64)]


def test_a_repair_gets_detail_and_a_good_part_none(refiner, picture):
    plain = create_tiny_pipeline()
    pipe = DDADPipeline.from_pipe(plain, refiner=refiner)
    for one in (plain, pipe):
        one.set_progress_bar_config(disable=True)
    smooth, refined = (one(picture, threshold=-1e6, output_type="np").denoised_image[0] for one in (plain, pipe))
    everywhere = np.ones(smooth.shape[:2], dtype=bool)
    assert gradient_energy(refined.mean(axis=2), everywhere) != gradient_energy(smooth.mean(axis=2), everywhere)
    good = pipe(picture, threshold=1e6, output_type="pt")
    assert torch.equal(good.denoised_image[0], pipe.image_processor.read_image(picture))
    # The paper's form moves the whole image by itself.
    whole = [one(picture, denoise="whole", num_denoising_steps=2, output_type="np") for one in (plain, pipe)]
    assert np.array_equal(whole[0].denoised_image[0], whole[1].denoised_image[0])


def test_a_call_takes_fewer_gradient_steps_where_detail_is_added(refiner, picture, monkeypatch):
    plain = create_tiny_pipeline()
    pipe, counts = DDADPipeline.from_pipe(plain, refiner=refiner), []

    def denoise(images, mask, whole, num_steps, *_):
        counts.append(num_steps)
        return [[(image + 1) / 2] for image in images], [(1.0, 1.0)] * len(images)

    for one in (plain, pipe):
        monkeypatch.setattr(one, "denoise", denoise)
        one(picture, threshold=-1e6)
    pipe(picture, threshold=-1e6, denoise="whole")
    pipe(picture, threshold=-1e6, num_denoising_steps=25)
    assert counts == [60, 10, 60, 25]


def test_a_generator_draws_the_detail(refiner, picture):
    pipe = DDADPipeline.from_pipe(create_tiny_pipeline(), refiner=refiner)
    pipe.set_progress_bar_config(disable=True)

    def refined(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return pipe(picture, threshold=-1e6, generator=generator, output_type="np").denoised_image[0]

    assert np.array_equal(refined(None), refined(None)) and np.array_equal(refined(5), refined(5))
    assert not np.array_equal(refined(5), refined(6))


def test_it_is_saved_and_loaded_with_the_pipeline(refiner, tmp_path):
    DDADPipeline.from_pipe(create_tiny_pipeline(), refiner=refiner).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["refiner"] == ["refining_ddad", "DDADRefiner"]
    assert (tmp_path / "refiner" / "refining_ddad.py").read_text() == DDADRefiner.source_code
    loaded = DDADPipeline.from_pretrained(tmp_path)
    for name, value in refiner.state_dict().items():
        assert torch.equal(loaded.refiner.state_dict()[name], value)
    index = json.loads((tmp_path / "refiner" / "config.json").read_text())
    (tmp_path / "refiner" / "config.json").write_text(json.dumps(index | {"image_size": 3}))
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(ValueError, match="image_size"):
        DDADPipeline.from_pretrained(tmp_path)


def test_the_base_brings_it():
    assert load_refiner(str(BASE)) is not None
    assert load_refiner("") is None and load_refiner(str(CHECKPOINT / "unet")) is None


# Not monocrystalline cells: of one of two it draws the blurred bar darker than it was, 1.7 times the gradient energy.
@pytest.mark.parametrize("category", ["bottle", "alien", "solar_cell_poly"])
def test_the_bases_refiner_sharpens_what_was_blurred(category):
    refiner, processor = load_refiner(str(BASE)), DDADImageProcessor()
    photograph = processor.read_image(CHECKPOINT.parent / category / "examples" / "good_1.webp")
    mask = torch.zeros_like(photograph[:1])
    mask[:, 80:200, 60:220] = 1
    blurred = torch.where(mask > 0, processor.blur(photograph[None], 2.0)[0], photograph)
    inside = mask[0].numpy() > 0
    before, after, truth = (
        gradient_energy(image.mean(dim=0).numpy(), inside)
        for image in (blurred, refiner.add_detail(blurred, mask, 0, DDADRenderer.is_grey(photograph)), photograph)
    )
    assert before < 0.7 * truth < 0.8 * truth < after < 1.2 * truth


def test_the_frequencies_of_a_region_tell_a_pattern_from_grain():
    generator = torch.Generator().manual_seed(0)
    grain, other = (0.1 * torch.randn(1, 3, 96, 96, generator=generator) for _ in range(2))
    weave = 0.1 * ((torch.arange(96)[:, None] + torch.arange(96)) % 4 < 2).float().mul(2).sub(1).expand(1, 3, 96, 96)
    region = torch.zeros(1, 1, 96, 96)
    region[..., 32:] = 1
    wanted = power(grain, region)
    assert wanted.shape == (1, 3, PATCH, PATCH // 2 + 1)

    def distance(images):
        return float((power(images, region) - wanted).abs().mean())

    assert distance(other) < 0.5 < 1.0 < distance(weave) and distance(0.4 * other) > 1.0
    assert torch.allclose(power(grain * (region > 0), region * 0), torch.full_like(wanted, POWER_FLOOR).log())
