"""Publish a pipeline and load it by its name. Usage: python share.py USER/NAME (log in with `hf auth login` first)"""

import sys

from diffusers import DiffusionPipeline

from ddad import DDADPipeline

repository = sys.argv[1]
pipe = DDADPipeline.from_pretrained("checkpoints/solar_cell_mono", threshold=6.0)  # a threshold of one's own
pipe.push_to_hub(repository)  # weights, settings, code and tags; `ddad publish` writes a fuller card

installed = DDADPipeline.from_pretrained(repository)  # runs no code of the repository
print(f"{installed.config.category}: threshold {installed.threshold}")

# What somebody does who has no ddad, only diffusers and timm; this runs the code that lies in the repository.
remote = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
print(f"{type(remote).__module__.partition('.')[0]}: threshold {remote.threshold}")
