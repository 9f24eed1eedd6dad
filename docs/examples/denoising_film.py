"""Watch a defect go, step by step, as a GIF. Usage: python denoising_film.py cell.png film.gif"""

import sys

import torch

from ddad import DDADPipeline

pipe = DDADPipeline.from_pretrained("checkpoints/solar_cell_mono")
pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def report(_pipeline, step, timestep, tensors):
    """Called after every step with the images as they are then, `[N, 3, 256, 256]` in [-1, 1]."""
    print(f"step {step}, noise level {timestep}, mean {tensors['image'].mean():.3f}")


result = pipe(sys.argv[1], num_denoising_steps=10, callback_on_step_end=report)
frames = result.intermediates[0]
frames[0].save(sys.argv[2], save_all=True, append_images=frames[1:], duration=120, loop=0)
if result.normality_distance[0] is not None:
    before, after = result.normality_distance[0]
    print(f"distance from normal: {before:.1f} before, {after:.1f} after")
