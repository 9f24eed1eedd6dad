"""What the commands say when the Hub is away, refuses, or sends something else."""

import pytest

from ddad.cli import main

COMMANDS = {"list": ["list"], "load": ["predict", "part.png", "--checkpoint", "factory/tiny", "--output", "results"]}

LOAD = "from ddad import DDADPipeline\nprint(DDADPipeline.from_pretrained('factory/tiny').config.category)"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "The Hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set|is neither|cannot be reached"),
    ],
)
def test_no_hub_is_one_sentence(run, command, variables, message, tmp_path):
    said = run(*COMMANDS[command], status=2, **variables)
    assert "Traceback" not in said and len(said.strip().splitlines()[-1]) < 300
    assert any(part in said for part in message.split("|"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "publish"])
def test_no_network_is_said_at_once(run, command, checkpoint):
    arguments = {"list": ["list"], "publish": ["publish", checkpoint, "factory/tiny"]}[command]
    said = run(*arguments, status=2, HF_ENDPOINT="http://127.0.0.1:9")
    assert "The Hub cannot be reached" in said and "Retry" not in said and "Traceback" not in said


SLOW_HUB = """
    import ddad.checkpoint.client as client, ddad.checkpoint.loading as loading
    client.LONGEST_WAIT.update(GET=1, HEAD=1)
    loading.ANSWER_SECONDS = 1
    from ddad.cli import main
    raise SystemExit(main({arguments!r}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_that_hangs_is_not_waited_for(hub, run, command, tmp_path):
    hub.delay = 30
    said = run(code=SLOW_HUB.format(arguments=COMMANDS[command]), status=2)
    assert "does not answer" in said and "Traceback" not in said


@pytest.mark.slow
def test_what_is_in_the_cache_is_loaded_while_the_hub_hangs(hub, run, checkpoint):
    hub.add("factory/tiny", checkpoint, ["ddad"])
    assert run(code=LOAD).strip() == "tiny"
    hub.delay = 30
    hasty = f"import ddad.checkpoint.loading as loading\nloading.ANSWER_SECONDS = 1\n{LOAD}"
    assert run(code=hasty).strip() == "tiny"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not accept your token"),
        pytest.param(403, "Your token may not do this", marks=pytest.mark.slow),
        pytest.param(404, "no such repository or file", marks=pytest.mark.slow),
    ],
)
def test_refusals_say_what_to_do(hub, run, status, message):
    hub.faults += [("/api/models", status)] * 20
    said = run("list", status=2)
    assert message in said and "Traceback" not in said


@pytest.mark.slow
def test_a_page_in_place_of_data_is_called_so(hub, run):
    hub.faults += [("/api/models", -1)] * 5
    said = run("list", status=2)
    assert "What answers is not the Hub" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_file_that_arrived_damaged_is_loaded_once_more(hub, run, checkpoint):
    hub.add("factory/tiny", checkpoint, ["ddad"])
    assert run(code=LOAD).strip() == "tiny"
    blobs = """
        import pathlib, huggingface_hub.constants as constants
        blob = max(pathlib.Path(constants.HF_HUB_CACHE).rglob("*.safetensors"), key=lambda one: one.stat().st_size)
        content = bytearray(blob.resolve().read_bytes())
        content[-5] ^= 1
        blob.resolve().write_bytes(bytes(content))
    """
    run(code=blobs)
    assert run(code=LOAD).strip() == "tiny"
    # Without the Hub it is refused, and said.
    run(code=blobs)
    assert "its sha256 differs" in run(code=LOAD, status=1, HF_HUB_OFFLINE="1")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints" / "my_part").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "part.png", "--checkpoint", "checkpoints/my_prat", "--output", "results"]) == 2
    assert "There is no my_prat in the folder checkpoints. It holds my_part." in capsys.readouterr().err
