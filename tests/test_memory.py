"""What memory does over time: large images, long lists, many visits. It is measured, in processes of their own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ddad import DDADRenderer
from ddad.images_ddad import DDADImages
from tools.serve import ROOT, running_page
from tools.visitors import Visitor

LARGE = """
import json, resource, sys
import numpy as np
from ddad import DDADPipeline, DDADRenderer

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

pipe = DDADPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
count, height, width = map(int, sys.argv[2:])
chance = np.random.default_rng(0)
images = [chance.integers(0, 255, (height, width, 3), dtype=np.uint8) for _ in range(count)]
pipe(images[0][:64, :64], threshold=-9.0, num_denoising_steps=2)
before = most()
output = pipe(images, threshold=-9.0, num_denoising_steps=2)
called = most()
for i in range(count):
    assert output.overlay[i].size == output.denoised_image[i].size == (width, height)
    assert output.anomaly_map[i].shape == (height, width)
print(json.dumps([called - before, most() - before]))
"""

PREDICT = """
import json, resource, sys
from ddad.cli import main

marks = []
for folder in sys.argv[3:]:
    assert main(["predict", folder, "--checkpoint", sys.argv[1], "--output", sys.argv[2], "--threshold", "-9"]) == 0
    marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(marks))
"""

PAGE = """
import os, sys
sys.path.insert(0, {root!r})
from ddad.app import LAUNCH, create_page
open({pid!r}, "w").write(str(os.getpid()))
create_page({checkpoints!r}, export=False).launch(**LAUNCH)
"""


def measure(code: str, *arguments) -> list[float]:
    """Megabytes, as a program prints them in its last line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_images_are_kept_in_8_bits_where_that_loses_nothing():
    eight = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 30), dtype=np.uint8))
    deep = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    images = DDADImages([eight / 255, deep])
    assert torch.equal(images[0], eight / 255) and torch.equal(images[1], deep)
    assert torch.equal(images[1:][0], deep) and len(images[:1]) == 1 and torch.equal(images[-1], deep)
    assert [kept.dtype for kept in images._kept] == [torch.uint8, torch.float32]


def test_large_pictures_are_coloured_as_small_ones(monkeypatch):
    image, anomaly_map = torch.rand(3, 50, 70), torch.rand(50, 70) * 3
    whole = DDADRenderer().overlay(image, anomaly_map, 1.0)
    monkeypatch.setattr("ddad.rendering_ddad.STRIP", 7 * 70)
    assert torch.equal(DDADRenderer().overlay(image, anomaly_map, 1.0), whole)


@pytest.mark.slow  # a process of its own and large photographs
def test_a_list_of_photographs_takes_the_memory_of_one(tiny_checkpoint):
    called, read = measure(LARGE, tiny_checkpoint, 6, 1500, 2000)
    # In 8 bits each has 9 MB; at full size the results of one have 84 MB, which six once held six times.
    assert called < 6 * 9 + 120 and read < 6 * 9 + 220, (called, read)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "height", "width", "most"), [(16, 3000, 4000, 1500), (1, 8000, 8000, 3200)])
def test_photographs_of_12_and_64_megapixels(tiny_checkpoint, count, height, width, most):
    assert max(measure(LARGE, tiny_checkpoint, count, height, width)) < most


@pytest.mark.slow
def test_predict_of_2000_images_stays_where_it_was(tiny_checkpoint, tmp_path):
    chance = np.random.default_rng(0)
    for folder, count in (("few", 100), ("many", 1900)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            size = (int(chance.integers(48, 160)), int(chance.integers(48, 160)))  # of mixed sizes
            values = chance.integers(0, 255, size, dtype=np.uint8)
            PIL.Image.fromarray(values).save(tmp_path / folder / f"{number:04}.png")
    first, last = measure(PREDICT, tiny_checkpoint, tmp_path / "results", tmp_path / "few", tmp_path / "many")
    assert len(list((tmp_path / "results").glob("*_denoised.png"))) == 2000
    assert last < first + 60, (first, last)


def held(pid: int) -> float:
    """Megabytes that a process holds now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
def test_the_page_after_200_visits_stays_where_it_was(tiny_checkpoint, tmp_path):
    program, pid = tmp_path / "program.py", tmp_path / "pid"
    program.write_text(PAGE.format(root=str(ROOT), pid=str(pid), checkpoints=str(tiny_checkpoint.parent)))
    chance = np.random.default_rng(0)

    with running_page(program, HF_HUB_OFFLINE="1") as url:

        def visit(number: int) -> None:
            path = tmp_path / "image.png"
            PIL.Image.fromarray(chance.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(path)
            assert Visitor(url, number).visit(path, tiny_checkpoint.name).error is None

        for number in range(20):
            visit(number)
        time.sleep(1)
        early = held(int(pid.read_text()))
        for number in range(20, 200):
            visit(number)
        time.sleep(1)
        assert held(int(pid.read_text())) < early + 60, early
