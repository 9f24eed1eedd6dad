"""The training loss: image or noise, learned variance, and clean features.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ddad.features_ddad import DDADFeatureExtractor
from ddad.scheduling_ddad import DDADScheduler, DDADSchedulerOutput
from ddad.unet_ddad import DDADUNet2DModel


@dataclass
class Losses:
    """The terms of the loss, each a scalar tensor."""

    pixel: torch.Tensor
    variance: torch.Tensor
    feature: torch.Tensor


def snr_weight(scheduler: DDADScheduler, timesteps: torch.Tensor, max_snr: float) -> torch.Tensor:
    """min(SNR(t), max_snr) with SNR = abar / (1 - abar), `[N, 1, 1, 1]` ("Min-SNR", Hang et al., 2023, section 3.4).

    |eps - eps_hat|^2 = SNR |x_0 - x0_hat|^2, so without the bound this is the simple loss of DDPM on the noise.
    """
    alpha_bar, _ = scheduler.alpha_bars(timesteps)
    return (alpha_bar / (1 - alpha_bar)).clamp(max=max_snr).float()


def compute_losses(
    unet: DDADUNet2DModel,
    features: DDADFeatureExtractor,
    scheduler: DDADScheduler,
    images: torch.Tensor,
    damaged: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    max_snr: float,
) -> Losses:
    """One evaluation of the U-Net and the three terms of its loss.

    Args:
        unet: the model that is trained (possibly wrapped by accelerate).
        features: the frozen backbone.
        scheduler: the full training process, not respaced.
        images: x_0, `[N, 3, H, W]` in [-1, 1]: what is predicted.
        damaged: what is noised, `[N, 3, H, W]` in [-1, 1]: the images, some of them damaged.
        noise: standard normal, `[N, 3, H, W]`.
        timesteps: t, `[N]`.
        max_snr: bound of the pixel term's weight.
    """
    noisy = scheduler.add_noise(damaged, noise, timesteps)
    # A tuple: accelerate rebuilds other outputs from their fields when it converts them, and fails at dataclasses.
    sample, features_hat = unet(noisy, timesteps.to(noisy.device), return_dict=False)
    prediction = scheduler.predict(sample.float(), noisy, timesteps)
    weight = snr_weight(scheduler, timesteps, max_snr).to(images.device)
    pixel = (weight * (prediction.pred_original_sample - images) ** 2).mean()
    # L_vlb trains the variance alone: its mean is held fixed (Nichol and Dhariwal, 2021, section 3.1).
    frozen = DDADSchedulerOutput(
        mean=prediction.mean.detach(),
        log_variance=prediction.log_variance,
        pred_original_sample=prediction.pred_original_sample.detach(),
    )
    variance = scheduler.kl_bits(images, noisy, frozen, timesteps).mean()
    with torch.no_grad():
        target = features(images)
    predicted = F.interpolate(features_hat.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
    return Losses(pixel=pixel, variance=variance, feature=F.mse_loss(predicted, target))
