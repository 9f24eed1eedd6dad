"""What users of diffusers do with a pipeline works with this one, or is refused with the reason."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddad import DDADPipeline, DDADScheduler
from tests.conftest import ROOT, create_tiny_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    create_tiny_pipeline().save_pretrained(folder)
    return folder


def image_score(pipe, picture) -> float:
    pipe.set_progress_bar_config(disable=True)
    return pipe(picture, denoise=False).image_score[0]


def test_one_device_for_all(saved):
    assert DDADPipeline.from_pretrained(saved, device_map="cpu").device.type == "cpu"
    assert DDADPipeline.from_pretrained(saved, device_map=torch.device("meta")).unet.device.type == "meta"
    with pytest.raises(ValueError, match="`device_map` must be one device, such as 'cuda' or 'cpu', found 'balanced'"):
        DDADPipeline.from_pretrained(saved, device_map="balanced")


PROGRAM = """
import multiprocessing, pickle, sys
from diffusers import DiffusionPipeline

def look(pipe):
    print("child", pipe.feature_extractor.device, pipe.appearance_extractor.config.grid_size)

if __name__ == "__main__":
    pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, device_map="cpu")
    pickle.loads(pickle.dumps(pipe))
    process = multiprocessing.get_context("spawn").Process(target=look, args=(pipe,))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.slow
def test_remote_code_goes_to_a_device_and_to_another_process(tmp_path):
    """As an integrator has it: diffusers alone, `device_map`, and workers that are spawned."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with_appearance = next(path.parent for path in (ROOT / "checkpoints").glob("*/appearance_extractor"))
    run = subprocess.run(
        [sys.executable, "program.py", str(with_appearance)],
        cwd=tmp_path, env=os.environ | {"HF_HOME": str(tmp_path / "home")}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0 and run.stdout.startswith("child cpu"), run.stderr


def test_a_dtype_may_be_a_name_and_nothing_else_is_taken_for_one(saved):
    assert DDADPipeline.from_pretrained(saved, torch_dtype="float16").unet.dtype == torch.float16
    assert DDADPipeline.from_pretrained(saved, dtype={"unet": "bfloat16"}).unet.dtype == torch.bfloat16
    for wrong in ("half precision", "int8", 16):
        with pytest.raises(ValueError, match="`dtype` must be such as torch.float16 or 'float16'"):
            DDADPipeline.from_pretrained(saved, dtype=wrong)


def test_to_moves_and_casts_all_networks(saved, picture):
    pipe = DDADPipeline.from_pretrained(saved)
    expected = image_score(pipe, picture)
    assert pipe.to("meta").device.type == "meta"
    half = DDADPipeline.from_pretrained(saved).to(torch.bfloat16)
    assert {half.unet.dtype, half.residual.dtype, half.feature_extractor.dtype} == {torch.bfloat16}
    assert image_score(half, picture) == pytest.approx(expected, rel=0.1)
    assert DDADPipeline.from_pretrained(saved, dtype=torch.float64).unet.dtype == torch.float64


def test_cpu_offload_is_refused_where_there_is_nothing_to_offload_from(saved):
    pipe = DDADPipeline.from_pretrained(saved)
    if torch.cuda.is_available():
        pipe.enable_model_cpu_offload()
    else:
        with pytest.raises(RuntimeError, match="requires accelerator"):
            pipe.enable_model_cpu_offload()


@pytest.mark.slow  # compiles
def test_a_compiled_unet_gives_the_same_and_is_saved_whole(saved, picture, tmp_path):
    pipe = DDADPipeline.from_pretrained(saved)
    expected = image_score(pipe, picture)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert image_score(pipe, picture) == pytest.approx(expected, rel=1e-5)
    pipe.save_pretrained(tmp_path)
    assert image_score(DDADPipeline.from_pretrained(tmp_path), picture) == pytest.approx(expected, rel=1e-5)


def test_from_pipe_shares_weights_and_takes_other_settings(saved, picture):
    pipe = DDADPipeline.from_pretrained(saved)
    other = DDADPipeline.from_pipe(pipe, alpha=0.1)
    assert other.unet is pipe.unet and (other.config.alpha, pipe.config.alpha) == (0.1, 0.5)
    pipe.set_progress_bar_config(disable=True)
    assert image_score(other, picture) == pytest.approx(
        pipe(picture, alpha=0.1, denoise=False).image_score[0], rel=1e-6
    )


def test_another_number_of_steps_leaves_the_first_pipeline_alone(saved, picture):
    pipe = DDADPipeline.from_pretrained(saved)
    expected = image_score(pipe, picture)
    other = DDADPipeline.from_pipe(pipe, scheduler=pipe.scheduler.training_process())
    assert len(other.scheduler.timesteps) == 1000 and len(pipe.scheduler.timesteps) == 250
    assert image_score(pipe, picture) == expected != image_score(other, picture)


def test_schedulers_are_swapped_where_that_makes_sense(saved, picture):
    pipe = DDADPipeline.from_pretrained(saved)
    expected = image_score(pipe, picture)
    same = DDADScheduler.from_config(pipe.scheduler.config)
    assert image_score(DDADPipeline.from_pretrained(saved, scheduler=same), picture) == expected
    clipped = DDADScheduler.from_config(pipe.scheduler.config, clip_sample=not pipe.scheduler.config.clip_sample)
    assert image_score(DDADPipeline.from_pretrained(saved, scheduler=clipped), picture) != expected
    with pytest.raises(TypeError, match="must be a DDADScheduler, which measures pixel scores, found DDPMScheduler"):
        DDADPipeline.from_pretrained(saved, scheduler=DDPMScheduler())


def test_unknown_arguments_are_named(saved):
    with pytest.raises(TypeError, match="no argument 'treshold'.*threshold"):
        DDADPipeline.from_pretrained(saved, treshold=3.0)


def test_progress_and_callback_follow_the_steps(saved, picture, capsys):
    pipe = DDADPipeline.from_pretrained(saved)
    steps = []

    def note(_, step, timestep, kwargs):
        steps.append((step, kwargs["image"].shape))

    pipe(picture, threshold=-100.0, num_denoising_steps=2, callback_on_step_end=note)
    assert "it/s" in capsys.readouterr().err
    assert [step for step, _ in steps] == list(range(len(steps))) and steps[0][1] == (1, 3, 64, 64)
    pipe.set_progress_bar_config(disable=True)
    pipe(picture, threshold=-100.0, num_denoising_steps=2)
    assert "it/s" not in capsys.readouterr().err


def test_saving_without_safetensors_is_refused(tmp_path):
    pipe = create_tiny_pipeline()
    with pytest.raises(ValueError, match="safetensors only"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="A checkpoint has one precision: leave out `variant`"):
        pipe.save_pretrained(tmp_path, variant="ema")
    assert not list(tmp_path.iterdir())


def test_the_unet_inside_is_one_of_diffusers(saved):
    assert isinstance(DDADPipeline.from_pretrained(saved).unet.unet, UNet2DModel)
