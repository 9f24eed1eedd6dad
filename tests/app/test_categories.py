"""Which pipelines are in memory, and what visitors are told of those that cannot be."""

import threading
import time

import pytest
import torch

from ddad import DDADPipeline
from ddad.app import categories as module
from ddad.app.categories import Categories, CategoryError, readable
from tests.conftest import create_tiny_pipeline


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("bolt", "nut", "screw")):
        create_tiny_pipeline(number).save_pretrained(tmp_path / name)
    return tmp_path


def test_the_least_recently_used_is_forgotten(folder):
    size = Categories(folder, "cpu").get("bolt").size
    categories = Categories(folder, "cpu", memory_limit=int(2.5 * size))
    assert categories.bundled == ["bolt", "nut", "screw"]
    for name in ("bolt", "nut", "bolt", "screw"):
        categories.get(name)
    assert categories.loaded == ["bolt", "screw"]
    assert Categories(folder, "cpu", memory_limit=1).get("nut").pipe  # one is kept whatever it takes


def test_all_visitors_share_one_copy(folder):
    categories = Categories(folder, "cpu")
    found = []
    visitors = [threading.Thread(target=lambda: found.append(categories.get("bolt"))) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len({id(one) for one in found}) == 1


def test_loads_in_threads_do_not_disturb_each_other(folder):
    """Loading exchanges functions of torch for the whole process: eight at once each get all their weights."""
    categories, found, errors = Categories(folder, "cpu"), [], []

    def run(load, name) -> None:
        try:
            found.append((name, load(name)))
        except Exception as error:
            errors.append(error)

    def load_pipeline(name):
        return DDADPipeline.from_pretrained(folder / name)

    def add_own(name):
        return categories.get(categories.add_own(name, folder / name)).pipe

    def get(name):
        return categories.get(name).pipe

    jobs = [(load, name) for name in ("bolt", "nut", "screw") for load in (load_pipeline, add_own, get)]
    threads = [threading.Thread(target=run, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == len(jobs)
    for name, pipe in found:
        alone = DDADPipeline.from_pretrained(folder / name)
        for key, component in alone.components.items():
            if isinstance(component, torch.nn.Module):
                state = getattr(pipe, key).state_dict()
                assert all(torch.equal(state[weight], value) for weight, value in component.state_dict().items())


def test_what_cannot_be_had_is_said_without_paths(folder, tmp_path):
    categories = Categories(folder, "cpu")
    with pytest.raises(CategoryError, match="no category of this page"):
        categories.get("../bolt")
    with pytest.raises(CategoryError, match="Hub cannot be reached"):  # the tests are offline
        categories.get("user/name")
    (folder / "nut" / "unet" / "config.json").write_text("{")
    with pytest.raises(CategoryError, match="nut cannot be loaded") as caught:
        categories.get("nut")
    assert str(tmp_path) not in str(caught.value)
    assert categories.search() == []
    with pytest.raises(FileNotFoundError, match="ddad train"):
        Categories(tmp_path / "empty", "cpu")


def test_large_repositories_are_refused_before_the_download(folder, monkeypatch):
    categories = Categories(folder, "cpu")
    monkeypatch.setattr(Categories, "look_up", lambda *_: (module.DOWNLOAD_LIMIT + 1, ""))
    with pytest.raises(CategoryError, match="at most 3072 MB"):
        categories.get("user/name")


def test_a_judge_without_the_device_gives_the_same_answer(folder, picture):
    """The part of the page that runs without a GPU on ZeroGPU: `meta` stands for a device that has no numbers."""
    one = Categories(folder, "meta").get("bolt")
    plain = Categories(folder, "cpu").get("bolt").pipe
    scores = plain.score(picture)
    assert one.judge(scores, denoise=False).image_score == plain(scores, denoise=False).image_score
    assert one.judge.calibration.held_out_maps(one.judge.judgement(0.5, [20])).device.type == "cpu"
    assert one.pipe.device.type == "meta"


@pytest.mark.parametrize("text", [
    "factory/tiny", " https://huggingface.co/factory/tiny ", "huggingface.co/factory/tiny/tree/main",
    "hf.co/factory/tiny?x=1",
])  # fmt: skip
def test_a_pasted_address_is_a_repository(text):
    assert module.repository_of(text) == "factory/tiny"


def test_no_network_is_said_soon(folder, monkeypatch):
    """Its library tries for a minute; nobody waits for that."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module.HfApi, "model_info", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(CategoryError, match="Hub cannot be reached for user/name now"):
        Categories(folder, "cpu").get("user/name")
    assert time.monotonic() - started < 3


def test_names_for_people():
    assert readable("solar_cell_mono") == "Solar cell mono" and readable("user/solar_cell") == "user/solar_cell"
