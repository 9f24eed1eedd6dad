"""The page as a Space: what is sent starts as it is, and offers what was chosen."""

import json
import re
from pathlib import Path

import pytest
import yaml
from gradio_client import Client

from ddad.app.categories import Categories
from ddad.checkpoint.space import APP, card_data
from ddad.cli import main
from tests.conftest import CHECKPOINT, ROOT
from tools.serve import running_page


def front_matter(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])


@pytest.mark.slow
def test_a_published_space_starts_and_offers_what_was_chosen(hub, run, checkpoint, tmp_path):
    hub.add("factory/nut", checkpoint, ["ddad"])
    assert f"{hub.url}/spaces/factory/demo" in run("publish-space", "factory/demo", checkpoint, "factory/nut")
    repository = hub.repositories["spaces/factory/demo"]
    files = repository.commits[repository.branches["main"]]
    space = tmp_path / "space"
    for name, data in files.items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(data)
    assert not (space / "checkpoints" / "tiny" / "notes.txt").exists()
    assert (space / "checkpoints" / "base" / "feature_extractor" / "config.json").is_file()  # for visitors' own parts
    metadata = front_matter(space / "README.md")
    assert metadata["preload_from_hub"] == metadata["models"] == ["factory/nut"]
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home2"),
    }  # fmt: skip
    with running_page(space / "app.py", **environment) as url:
        client = Client(url, verbose=False)
        assert client.predict(api_name="/categories") == ["tiny", "factory/nut"]

    sent = len(hub.uploaded)
    run("publish-space", "factory/demo", "factory/nut", "--private")
    files = repository.commits[repository.branches["main"]]
    assert not any(name.startswith("checkpoints/tiny") for name in files) and len(hub.uploaded) == sent
    assert files["checkpoints/repositories.txt"] == b"factory/nut\n"


def test_a_dry_run_sends_nothing_and_the_program_is_that_of_this_repository(tmp_path, capsys):
    folder = tmp_path / "space"
    assert main(["publish-space", "me/demo", str(CHECKPOINT), "--dry-run", str(folder), "--hardware", "t4-small"]) == 0
    assert "ddad/pipeline.py" in capsys.readouterr().out
    assert (folder / "app.py").read_text() == APP == (ROOT / "app.py").read_text()
    needed = (folder / "requirements.txt").read_text()
    assert "diffusers" in needed and "pytest" not in needed and "-e " not in needed
    assert front_matter(folder / "README.md")["suggested_hardware"] == "t4-small"
    assert json.loads((folder / "checkpoints" / CHECKPOINT.name / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["me/demo", "nowhere"], "neither the folder of a checkpoint nor USER/NAME"),
        (["me/demo", "{empty}"], "model_index.json is missing"),
        (["me/demo", "a/b", "--hardware", "a-big-one"], "`--hardware` must be one of cpu-basic"),
        (["me/de mo", "a/b"], "me/de mo"),
        (["me/demo", "{checkpoint}", "{checkpoint}"], "folders of the same name"),
    ],
)
def test_what_would_not_start_is_refused(arguments, message, checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    names = {"empty": tmp_path / "empty", "checkpoint": checkpoint}
    arguments = [one.format(**names) for one in arguments]
    assert main(["publish-space", *arguments, "--dry-run", str(tmp_path / "space")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_the_readme_of_this_repository_would_start_as_a_space():
    data = front_matter(ROOT / "README.md")
    # Written as text: YAML would make 3.10 of it 3.1, and a number of 6.31.
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["sdk_version"]) and re.fullmatch(r"3\.1[1-9]", data["python_version"])
    assert data["sdk"] == "gradio" and data["app_file"] == "app.py" and 0 < len(data["short_description"]) <= 60
    made = card_data("Demo", "cpu-basic", ["a/b"]).to_dict()
    assert made["models"] == made["preload_from_hub"] == ["a/b"] and data.keys() <= made.keys() | {"pinned"}


def test_a_repository_that_cannot_be_had_is_not_offered(tmp_path):
    (tmp_path / "bolt").symlink_to(CHECKPOINT)
    (tmp_path / "repositories.txt").write_text("factory/gone\n../../etc\n")
    categories = Categories(tmp_path, "cpu")
    assert categories.offered == ["bolt", "factory/gone"]
    categories.load_offered(categories.get)  # the tests are offline
    assert categories.offered == ["bolt"]
