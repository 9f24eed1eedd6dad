"""Images of one part are recognised, and stay on one side of every split."""

import numpy as np
import PIL.Image
import pytest
import torch

from ddad.calibration.fitting import FOLDS, assign_folds
from ddad.cli import main
from ddad.datasets.layouts import read_dataset
from ddad.datasets.lookalikes import choose_judges, group_lookalikes, split_images
from ddad.datasets.splitting import count_seen
from tests.helpers import photographs

SIZE = 96


def test_photographs_of_one_part_are_one_group_under_any_lamp():
    groups = group_lookalikes(photographs(parts=12, shots=4))
    assert groups == [part for part in range(12) for _ in range(4)]


def test_different_parts_of_one_design_are_no_lookalikes():
    assert len(set(group_lookalikes(photographs(parts=20, shots=1)))) == 20


def test_images_without_structure_belong_to_nobody():
    blank = [torch.full((3, SIZE, SIZE), value) for value in (0.0, 0.5, 1.0)]
    assert len(set(group_lookalikes(blank))) == 3
    assert group_lookalikes(blank[:1]) == [0]


def test_a_split_keeps_groups_together():
    names, groups = [f"{number}" for number in range(40)], [number // 4 for number in range(40)]
    train, held_out = split_images(names, groups, 10, seed=0)
    assert len(held_out) == 8 and sorted(train + held_out) == sorted(names)
    assert {groups[int(one)] for one in train}.isdisjoint(groups[int(one)] for one in held_out)
    assert split_images(names, groups, 10, seed=0) == (train, held_out) != split_images(names, groups, 10, seed=1)


def test_where_all_is_one_part_single_images_are_held_out():
    train, held_out = split_images(list(range(10)), [0] * 10, 3, seed=0)
    assert len(held_out) == 3 and sorted(train + held_out) == list(range(10))


def test_folds_keep_groups_together_and_share_the_judges():
    groups = [number // 3 for number in range(60)]
    judges = [group < 8 for group in groups]
    folds = assign_folds(groups, judges)
    assert set(folds) == set(range(FOLDS))
    assert all(len({fold for fold, group in zip(folds, groups, strict=True) if group == one}) == 1 for one in groups)
    judging = np.bincount(np.array(folds)[judges], minlength=FOLDS)
    assert judging.min() >= 3 and judging.max() <= 6 and np.ptp(np.bincount(folds)) <= 3


def test_few_groups_are_dealt_out_image_by_image():
    folds = assign_folds([0] * 12 + [1] * 12, [number % 2 == 0 for number in range(24)])
    assert np.ptp(np.bincount(folds, minlength=FOLDS)) <= 1
    assert max(assign_folds([0, 0, 1], [False, True, True])) == 1  # no more folds than judges


@pytest.fixture
def leaking(tmp_path):
    """A data set in which every part of the test also trains."""
    for number, image in enumerate(photographs(parts=15, shots=4)):
        folder = tmp_path / "tiles" / ("test" if number % 4 == 0 else "train") / "good"
        folder.mkdir(parents=True, exist_ok=True)
        values = (255 * image.permute(1, 2, 0)).byte().numpy()
        PIL.Image.fromarray(values).save(folder / f"{number:02d}.png")
    for kind in ("test", "ground_truth"):
        (tmp_path / "tiles" / kind / "hole").mkdir(parents=True)
    PIL.Image.fromarray(values).save(tmp_path / "tiles" / "test" / "hole" / "a.png")
    PIL.Image.fromarray(values[..., 0] > 128).save(tmp_path / "tiles" / "ground_truth" / "hole" / "a_mask.png")
    return tmp_path / "tiles"


def test_the_command_splits_a_leaking_data_set_anew(leaking, tmp_path, capsys):
    output = tmp_path / "anew"
    assert count_seen(read_dataset(leaking)) == 15
    assert main(["split", "--data", str(leaking), "--output", str(output)]) == 0
    report = capsys.readouterr().err
    assert "tiles: 15 of 15 good test images show a part that trains" in report and "anew: 0 of 12" in report
    dataset = read_dataset(output, "mvtec")
    (hole,) = dataset.select("test", defective=True)
    assert hole.defect == "hole" and hole.mask is not None and len(dataset.train_paths) == 48
    assert main(["split", "--data", str(leaking), "--output", str(output)]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("parts", "photographs"), [(20, 5), (8, 20), (3, 20), (2, 30)])
def test_few_parts_photographed_often_are_recognised(parts, photographs):
    random = np.random.default_rng(1)

    def photograph(number):
        coarse = np.random.default_rng(number).normal(128, 30, (20, 20, 3)).clip(0, 255).astype(np.uint8)
        part = np.asarray(PIL.Image.fromarray(coarse).resize((160, 160), PIL.Image.Resampling.BICUBIC)).astype(float)
        lit = part * random.uniform(0.95, 1.05) + random.normal(0, 3, part.shape)
        shifted = np.roll(lit, random.integers(-1, 2), 1).clip(0, 255)
        return torch.tensor(shifted).permute(2, 0, 1).float() / 255

    groups = group_lookalikes([photograph(part) for part in range(parts) for _ in range(photographs)])
    assert groups == [part for part in range(parts) for _ in range(photographs)]


def test_identical_files_are_one_part():
    image = torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0))
    others = [torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 6)]
    assert group_lookalikes([image] * 8) == [0] * 8
    assert group_lookalikes([*others, image, image]) == [0, 1, 2, 3, 4, 5, 5]


def test_judges_are_of_as_many_parts_as_there_are():
    groups = [0] * 30 + [1] * 5 + list(range(2, 12))
    assert {groups[judge] for judge in choose_judges(groups, 12, seed=0)} == set(range(12))
    judges = choose_judges(groups, 20, seed=0)
    counted = [sum(groups[judge] == group for judge in judges) for group in range(12)]
    assert counted[:2] == [5, 5] and counted[2:] == [1] * 10  # every part in turn, while it has photographs
    assert judges == sorted(set(judges)) and judges != choose_judges(groups, 20, seed=1)
