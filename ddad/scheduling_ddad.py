"""The diffusion process: noising, the true posterior, the model's prediction, and the divergence between the two.

Every quantity is computed for a batch of timesteps at once, in the respaced process that `set_timesteps` selects: a
process of 250 steps made from one of 1000 keeps 250 values of alpha_bar and recomputes the betas from them.

Sources: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), "Improved Denoising Diffusion Probabilistic
Models" (Nichol and Dhariwal, 2021), "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et
al., 2022), "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput


@dataclass
class DDADSchedulerOutput(BaseOutput):
    """The model's prediction of one denoising step, p(x_{t-1} | x_t).

    Attributes:
        mean: mean of p, `[N, 3, H, W]`.
        log_variance: logarithm of the variance of p, `[N, 3, H, W]`.
        pred_original_sample: the predicted clean image x0_hat, `[N, 3, H, W]`.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    pred_original_sample: torch.Tensor


class DDADScheduler(DDPMScheduler):
    """A `DDPMScheduler` with learned-range variances that scores images.

    All tensors are images in [-1, 1] with shape `[N, 3, H, W]`; `timesteps` is an integer tensor `[N]` whose values
    must be among `self.timesteps`. The model's output has 6 channels: the prediction (as `prediction_type` says) and
    the variance value v in [-1, 1].

    Args:
        num_train_timesteps: number of steps T of the training process.
        beta_start: first beta of the linear schedule.
        beta_end: last beta of the linear schedule.
        prediction_type: what the model predicts: `"epsilon"`, `"sample"` or `"v_prediction"`.
        detail_std: standard deviation of the detail that the model's `"sample"` prediction leaves out. Zero takes the
            prediction as it is. See `predict_original_sample`.
        clip_sample: whether x0_hat is clipped to [-1, 1].
        variance_type: `"learned_range"`, the only one that is implemented here.
        num_inference_steps: steps of the respaced process in which KL is measured, spaced as in guided-diffusion; the
            paper has 250.

    Raises:
        ValueError: for another `variance_type`, or a `detail_std` without `"sample"` prediction.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        prediction_type: str = "epsilon",
        detail_std: float = 0.0,
        clip_sample: bool = True,
        variance_type: str = "learned_range",
        num_inference_steps: int = 250,
    ):
        if variance_type != "learned_range":
            raise ValueError(f"`variance_type` must be 'learned_range', found {variance_type!r}.")
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(
                f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', found {prediction_type!r}."
            )
        if detail_std < 0 or (detail_std > 0 and prediction_type != "sample"):
            raise ValueError(
                f"`detail_std` must be 0, or positive with `prediction_type='sample'`, found {detail_std} with"
                f" {prediction_type!r}."
            )
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            prediction_type=prediction_type,
            clip_sample=clip_sample,
            variance_type=variance_type,
            timestep_spacing="linspace",
        )
        # Products of a thousand float32 factors lose the fourth digit of 1 - alpha_bar at small t.
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        self._alphas_cumprod64 = torch.cumprod(1 - betas, dim=0)
        self.set_timesteps(num_inference_steps)

    def training_process(self) -> "DDADScheduler":
        """The same process with all of its steps, in which networks are trained."""
        return type(self).from_config(self.config, num_inference_steps=self.config.num_train_timesteps)

    def timestep_of(self, step: int) -> int:
        """The training timestep of a step of the respaced process, counted from the clean image."""
        return int(self.timesteps.flip(0)[step])

    def alpha_bars(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_bar at each timestep and at its predecessor in the respaced process, float64 `[N, 1, 1, 1]`.

        Raises:
            ValueError: if a timestep is not one of the respaced process.
        """
        kept = self.timesteps.flip(0).cpu()
        timesteps = timesteps.cpu().contiguous()
        index = torch.searchsorted(kept, timesteps).clamp(max=len(kept) - 1)
        if not torch.equal(kept[index], timesteps):
            unknown = sorted(set(timesteps.tolist()) - set(kept.tolist()))
            raise ValueError(
                f"`timesteps` {unknown} are not among the {len(kept)} steps of this process, which run from"
                f" {int(kept[0])} to {int(kept[-1])}: choose from `scheduler.timesteps`."
            )
        alpha_bars = self._alphas_cumprod64[kept]
        previous = torch.cat([alpha_bars.new_ones(1), alpha_bars])[index]
        return alpha_bars[index].view(-1, 1, 1, 1), previous.view(-1, 1, 1, 1)

    def _posterior_coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> list[torch.Tensor]:
        """beta_t, log btilde_t, and the factors of x_0 and x_t in the posterior mean: each `[N, 1, 1, 1]`."""
        alpha_bar, alpha_bar_prev = self.alpha_bars(timesteps)
        alpha = alpha_bar / alpha_bar_prev
        beta = 1 - alpha
        variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        # At the first step the posterior is a point; as in guided-diffusion, the second step's variance stands in.
        kept = self._alphas_cumprod64[self.timesteps.flip(0).cpu()[:2]]
        second = (1 - kept[1] / kept[0]) * (1 - kept[0]) / (1 - kept[1])
        log_variance = torch.where(alpha_bar_prev == 1, second, variance).log()
        original_factor = beta * alpha_bar_prev.sqrt() / (1 - alpha_bar)
        sample_factor = (1 - alpha_bar_prev) * alpha.sqrt() / (1 - alpha_bar)
        return [v.to(like.device, like.dtype) for v in (beta, log_variance, original_factor, sample_factor)]

    def posterior(
        self, original_samples: torch.Tensor, samples: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The true posterior q(x_{t-1} | x_t, x_0) (Ho et al., equations 6 and 7).

        Returns:
            Its mean `[N, 3, H, W]` and the logarithm of its variance `[N, 1, 1, 1]`.
        """
        _, log_variance, original_factor, sample_factor = self._posterior_coefficients(timesteps, samples)
        return original_factor * original_samples + sample_factor * samples, log_variance

    def predict_original_sample(
        self, model_output: torch.Tensor, samples: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The clean image x0_hat that the model's output implies, `[N, 3, H, W]`, clipped if `clip_sample`.

        A model that works on patches leaves detail of standard deviation s = `detail_std` out of its prediction F.
        The noisy image still shows it, under noise of standard deviation sigma = sqrt((1 - abar) / abar). The best
        linear estimate from both is the skip of Karras et al. (table 1, c_skip) with s for the data's deviation:

            x0_hat = F + s^2 / (s^2 + sigma^2) (x_t / sqrt(abar) - F)
        """
        prediction = model_output[:, :3]
        alpha_bar, _ = self.alpha_bars(timesteps)
        signal, noise = (v.to(samples.device, samples.dtype) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
        if self.config.prediction_type == "epsilon":
            original = (samples - noise * prediction) / signal
        elif self.config.prediction_type == "v_prediction":
            original = signal * samples - noise * prediction
        else:
            detail_variance = self.config.detail_std**2
            skip = detail_variance / (detail_variance + (noise / signal) ** 2)
            original = prediction + skip * (samples / signal - prediction)
        return original.clamp(-1, 1) if self.config.clip_sample else original

    def predict(
        self, model_output: torch.Tensor, samples: torch.Tensor, timesteps: torch.Tensor
    ) -> DDADSchedulerOutput:
        """The model's distribution p(x_{t-1} | x_t) with its learned-range variance (Nichol and Dhariwal, eq. 15).

        log sigma^2 = w log beta_t + (1 - w) log btilde_t with w = (v + 1) / 2.

        Args:
            model_output: `[N, 6, H, W]`, the prediction and v.
            samples: x_t, `[N, 3, H, W]`.
            timesteps: `[N]`.
        """
        beta, posterior_log_variance, original_factor, sample_factor = self._posterior_coefficients(timesteps, samples)
        w = (model_output[:, 3:] + 1) / 2
        original = self.predict_original_sample(model_output, samples, timesteps)
        return DDADSchedulerOutput(
            mean=original_factor * original + sample_factor * samples,
            log_variance=w * beta.log() + (1 - w) * posterior_log_variance,
            pred_original_sample=original,
        )

    def kl_bits(
        self,
        original_samples: torch.Tensor,
        samples: torch.Tensor,
        prediction: DDADSchedulerOutput,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """The paper's pixel-level score: KL(q || p) at each pixel in bits, averaged over RGB, `[N, 1, H, W]`.

        KL = 1/2 [log s2^2 - log s1^2 + s1^2 / s2^2 + (m1 - m2)^2 / s2^2 - 1] for q = N(m1, s1^2), p = N(m2, s2^2).
        """
        mean, log_variance = self.posterior(original_samples, samples, timesteps)
        difference = log_variance - prediction.log_variance
        squared_error = (mean - prediction.mean) ** 2
        nats = 0.5 * (difference.exp() - difference - 1 + squared_error * (-prediction.log_variance).exp())
        return nats.mean(dim=1, keepdim=True) / math.log(2)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, `[N, 3, H, W]` (Ho et al., equation 4)."""
        alpha_bar = self._alphas_cumprod64[timesteps.cpu()].view(-1, 1, 1, 1)
        signal, scale = (
            v.to(original_samples.device, original_samples.dtype) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        )
        return signal * original_samples + scale * noise

    def get_noise(
        self,
        timesteps: Sequence[int],
        shape: Sequence[int],
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> torch.Tensor:
        """Standard normal noise for each timestep, `[K, *shape]`, the same for every image.

        Sharing it makes a score independent of the batch and lets the calibration see the noise that scoring sees.
        The noise at a timestep does not depend on which other timesteps are used.

        Args:
            timesteps: K noise levels.
            shape: that of one image.
            generator: what the noise follows from, drawn from once; None gives the same noise at every call.
            device: where the noise is put; it is made on the CPU, so that it is the same everywhere.
        """
        base = 0
        if generator is not None:
            base = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        noise = [torch.randn(*shape, generator=torch.Generator().manual_seed(base + level)) for level in timesteps]
        return torch.stack(noise).to(device)

    def pixel_maps(
        self,
        original_samples: torch.Tensor,
        samples: torch.Tensor,
        model_output: torch.Tensor,
        timesteps: torch.Tensor,
        scores: Sequence[str],
    ) -> dict[str, torch.Tensor]:
        """Pixel scores before calibration, `[N, 1, H, W]` each.

        Args:
            original_samples: x_0, `[N, 3, H, W]`.
            samples: x_t.
            model_output: `[N, 6, H, W]`.
            timesteps: t, `[N]`.
            scores: `kl`, the divergence in bits (the paper's).
        """
        if "kl" not in scores:
            return {}
        prediction = self.predict(model_output, samples, timesteps)
        return {"kl": self.kl_bits(original_samples, samples, prediction, timesteps)}
