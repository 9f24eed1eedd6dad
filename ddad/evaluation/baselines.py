"""What the scores are compared with inside the same networks; nothing of it is stored in a checkpoint.

`rgb` is the squared error of the one-step prediction x0_hat (what AnoDDPM scores by), `mse` the squared error of the
predicted features (the paper's feature score). Noise levels are made comparable as those of the pipeline's own scores
are: by mean and standard deviation of good images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddad.pipeline import DDADPipeline

BASELINES = ("mse", "rgb")
MOST_IMAGES = 60


@torch.no_grad()
def measure_errors(pipe: DDADPipeline, originals: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both errors of images `[3, H, W]` in [0, 1] at the pipeline's noise levels, smoothed, `[N, K, S, S]` each."""
    images, timesteps = pipe.prepare(originals), pipe.timesteps
    clean, noisy, levels, output, predicted = pipe.predict_at(images, timesteps, pipe.get_noise(timesteps))
    error = clean - pipe.scheduler.predict(output, noisy, levels).pred_original_sample  # [N K, 3, S, S]
    residuals = pipe.extract_features(images)[:, None] - predicted.unflatten(0, (len(images), -1))  # [N, K, C, h, w]
    maps = {
        "mse": residuals.square().mean(dim=2),
        "rgb": error.square().mean(dim=1).unflatten(0, (len(images), -1)),
    }
    return {name: pipe.smooth(value).cpu() for name, value in maps.items()}


@dataclass(frozen=True)
class Baselines:
    """The errors' mean and standard deviation on good images, `[1, K, 1, 1]` each, by baseline."""

    statistics: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, pipe: DDADPipeline, paths: Sequence[Path]) -> "Baselines":
        """Measured on good images, on some where there are many."""
        measured: dict[str, list[torch.Tensor]] = {name: [] for name in BASELINES}
        step = -(-len(paths) // MOST_IMAGES)
        for path in paths[::step]:
            for name, value in measure_errors(pipe, [pipe.image_processor.read_image(path)]).items():
                measured[name].append(value)
        stacked = {name: torch.cat(values) for name, values in measured.items()}
        return cls(
            {
                name: (values.mean(dim=(0, 2, 3), keepdim=True), values.std(dim=(0, 2, 3), keepdim=True))
                for name, values in stacked.items()
            }
        )

    def maps(self, pipe: DDADPipeline, originals: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The mean over the noise levels in standard deviations of good images, `[N, S, S]` by baseline."""
        errors = measure_errors(pipe, originals)
        return {
            name: ((errors[name] - mean) / std.clamp(min=1e-12)).mean(dim=1)
            for name, (mean, std) in self.statistics.items()
        }
