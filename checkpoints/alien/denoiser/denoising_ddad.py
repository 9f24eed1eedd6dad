"""Gradient denoising: how an image with defects is moved, step by step, to the same part without them.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023), gradient denoising.
Beyond the paper it is confined to a mask: the reverse process repaints the mask ("RePaint", Lugmayr et al., 2022), the
part's own grain is put back, and a gradient step counts only if it brings the part closer to normal.

Nothing here holds a network. What is needed of the networks comes as functions, and of the diffusion process its
`timesteps` and `alpha_bars`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config


@dataclass
class DDADDenoisingModel:
    """What denoising asks of the networks, the diffusion process, and the model of normality.

    Attributes:
        process: the diffusion process, for its `timesteps` and `alpha_bars`.
        get_noise: t -> noise at that timestep, `[1, 3, S, S]`.
        predict_original: (x_t `[N, 3, S, S]`, t `[N]`) -> x0_hat.
        posterior_mean: (x_t, t) -> the mean of p(x_{t-1} | x_t).
        predict_features: images -> the features of the clean images, predicted at `target_timestep`, `[N, C, h, w]`.
        target_timestep: the noise level of that prediction.
        distance: (images, features to take off F(x), weights `[N, 1, g, g]`) -> weighted mean Mahalanobis distance,
            `[N]`.
        normal_distance: the distance of normal images.
        grid_size: g, height and width of the grid of distances.
        blur: (images, sigma) -> blurred images.
    """

    process: SchedulerMixin
    get_noise: Callable[[int], torch.Tensor]
    predict_original: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    posterior_mean: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    predict_features: Callable[[torch.Tensor], torch.Tensor]
    target_timestep: int
    distance: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    normal_distance: float
    grid_size: int
    blur: Callable[[torch.Tensor, float], torch.Tensor]

    def timestep(self, index: int) -> int:
        """The training timestep of a step of the respaced process, counted from the clean image."""
        return int(self.process.timesteps.flip(0)[index])

    def distance_and_gradient(
        self, images: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The distance, `[N]`, and its gradient in the images, `[N, 3, S, S]`."""
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            distance = self.distance(images, target, weight)
            (gradient,) = torch.autograd.grad(distance.sum(), images)
        return distance.detach(), gradient


@dataclass
class DDADDescent:
    """The state of gradient denoising, a row an image.

    Attributes:
        images: `[N, 3, S, S]` in [-1, 1].
        gradient: of the distance, there.
        velocity: the momentum.
        distance: `[N]`.
        step_size: `[N]`.
        active: which images still move, `[N]`.
    """

    images: torch.Tensor
    gradient: torch.Tensor
    velocity: torch.Tensor
    distance: torch.Tensor
    step_size: torch.Tensor
    active: torch.Tensor


class DDADDenoiser(SchedulerMixin, ConfigMixin):
    """Moves samples from step to step, as a scheduler does, from a defective image to the one without the defect.

    Args:
        inpainting_steps: steps of the respaced process through which a mask is repainted, descending: from where the
            defect drowns down to where detail forms.
        grain_step: the step at whose noise level the model says what of an image is grain.
        denoising_step: the step whose posterior mean is the denoising step (8 of 250 in the authors' program).
        denoise_every: a denoising step follows every so many gradient steps (N_d = 5 in the paper).
        step_size: root mean square of the first gradient step over the mask, in units of [-1, 1].
        momentum: part of the last step that is added to the next.
        growth: what the step size is multiplied by when a step was kept.
        decay: what it is multiplied by when a step was refused.
        smallest_step: an image is done when its step size falls below.
        check_every: every so many steps an image is done
        least_progress: if its distance is not below this part of what it was at the last check.
        gradient_sigma: standard deviation in pixels of the Gaussian that smoothes gradients.
        whole_step_size: s of the paper's form, which moves the whole image.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")
    setting_bounds = {  # see `DDADPipeline.check_settings`
        "inpainting_steps": [(int, 0, 100_000)],
        "grain_step": (int, 0, 100_000),
        "denoising_step": (int, 0, 100_000),
        "denoise_every": (int, 1, 1_000_000),
        "step_size": (float, 1e-9, 2),
        "momentum": (float, 0, 1),
        "growth": (float, 1, 10),
        "decay": (float, 0, 1),
        "smallest_step": (float, 1e-9, 2),
        "check_every": (int, 1, 1_000_000),
        "least_progress": (float, 0, 1),
        "gradient_sigma": (float, 0, 64),
        "whole_step_size": (float, 0, 1),
    }
    model_class = DDADDenoisingModel  # the pipeline's file cannot import it

    @register_to_config
    def __init__(
        self,
        inpainting_steps: tuple[int, ...] = (80, 62, 46, 33, 22, 13, 6),
        grain_step: int = 5,
        denoising_step: int = 8,
        denoise_every: int = 5,
        step_size: float = 0.02,
        momentum: float = 0.8,
        growth: float = 1.2,
        decay: float = 0.4,
        smallest_step: float = 1e-4,
        check_every: int = 10,
        least_progress: float = 0.99,
        gradient_sigma: float = 1.0,
        whole_step_size: float = 0.02,
    ):
        pass

    @staticmethod
    def defect_mask(seeds: torch.Tensor, anomaly_maps: torch.Tensor, level: float) -> torch.Tensor:
        """Where to repair: `[N, 1, S, S]` in [0, 1], exactly zero for an image without seeds.

        From the seeds the region grows through pixels above `level` (hysteresis), by 4 pixels beyond, and fades to
        zero over another 8.

        Args:
            seeds: cells that are defective for sure, `[N, 1, g, g]` of 0 and 1.
            anomaly_maps: `[N, 1, S, S]`.
            level: how low the region may reach down.
        """
        seeds = F.interpolate(seeds, size=anomaly_maps.shape[-2:], mode="nearest")
        allowed = torch.maximum(seeds, (anomaly_maps > level).float())
        region = seeds
        while True:
            grown = F.max_pool2d(region, 9, stride=1, padding=4) * allowed
            if torch.equal(grown, region):
                break
            region = grown
        region = F.max_pool2d(region, 17, stride=1, padding=8)
        return F.avg_pool2d(region, 9, stride=1, padding=4, count_include_pad=False)

    def inpaint(
        self, model: DDADDenoisingModel, images: torch.Tensor, mask: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Repaints the mask by the reverse process, the rest of the image given.

        It starts from the image under noise, in which the defect drowns and the part's own shape does not.

        Args:
            model: the networks and the process.
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1].

        Yields:
            The timestep and the images so far, after each evaluation of the U-Net.
        """
        noise = model.get_noise(model.timestep(self.config.inpainting_steps[0])).expand_as(images)
        inside, current = noise, images
        for step in self.config.inpainting_steps:
            levels = torch.full((len(images),), model.timestep(step), device=images.device)
            alpha_bar, _ = model.process.alpha_bars(levels)
            signal, scale = (v.to(images) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
            # Outside the mask the noise stays what it was; inside it is what the model believes to be noise (DDIM).
            noisy = signal * current + scale * (mask * inside + (1 - mask) * noise)
            original = model.predict_original(noisy, levels)
            inside = (noisy - signal * original) / scale
            current = images + mask * (original - images)
            yield model.timestep(step), current

    def borrow_grain(
        self, model: DDADDenoisingModel, images: torch.Tensor, mask: torch.Tensor, repaired: torch.Tensor
    ) -> torch.Tensor:
        """Gives a repaired region the fine grain of the part itself, `[N, 3, S, S]`.

        The U-Net predicts the mean of all clean images, which is smooth. What it leaves out of the normal surroundings
        is the part's own grain; moved into the mask from where it fits best, it makes the repair as sharp as the rest.
        The source is the one of which most is normal and which looks most like the target.
        """
        levels = torch.full((len(images),), model.timestep(self.config.grain_step), device=images.device)
        alpha_bar, _ = model.process.alpha_bars(levels)
        predicted = model.predict_original(alpha_bar.sqrt().to(images) * images, levels)
        source = torch.cat([(images - predicted) * (mask == 0), predicted, (mask == 0).to(images)], dim=1)
        eighth = images.shape[-1] // 8
        moves = [(0, k * eighth) for k in range(1, 8)] + [(k * eighth, 0) for k in range(1, 8)]
        lowest = torch.full((len(images), 1, 1, 1), float("inf"), device=images.device)
        detail = torch.zeros_like(images)
        for move in moves:
            grain, context, normal = torch.roll(source, move, dims=(2, 3)).split((3, 3, 1), dim=1)
            cost = ((context - repaired).abs().mean(dim=1, keepdim=True) + 1 - normal) * mask
            cost = cost.sum(dim=(1, 2, 3), keepdim=True)
            detail = torch.where(cost < lowest, grain, detail)
            lowest = torch.minimum(cost, lowest)
        return (repaired + mask * detail).clamp(-1, 1)

    def denoising_step(self, model: DDADDenoisingModel, images: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The timestep and the mean of p(x_{t-1} | x_t = image) at a small noise level (the paper's denoising)."""
        timestep = model.timestep(self.config.denoising_step)
        levels = torch.full((len(images),), timestep, device=images.device)
        return timestep, model.posterior_mean(images, levels).clamp(-1, 1)

    def start(
        self,
        model: DDADDenoisingModel,
        candidates: tuple[torch.Tensor, torch.Tensor],
        target: torch.Tensor,
        weight: torch.Tensor,
    ) -> DDADDescent:
        """Begins gradient denoising at that one of two candidates, image by image, which is closer to normal."""
        first, second = candidates
        distance, gradient = model.distance_and_gradient(first, target, weight)
        second_distance, second_gradient = model.distance_and_gradient(second, target, weight)
        better = (second_distance < distance).view(-1, 1, 1, 1)
        distance = torch.minimum(distance, second_distance)
        return DDADDescent(
            images=torch.where(better, second, first),
            gradient=torch.where(better, second_gradient, gradient),
            velocity=torch.zeros_like(first),
            distance=distance,
            step_size=torch.full_like(distance, self.config.step_size),
            active=distance > model.normal_distance,
        )

    def direction(self, model: DDADDenoisingModel, gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Down the smoothed gradient inside the mask, scaled to a root mean square of one over the masked pixels."""
        direction = -model.blur(gradient, self.config.gradient_sigma) * mask
        direction = direction / direction.square().sum(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        return direction * (3 * mask.square().sum(dim=(1, 2, 3), keepdim=True)).sqrt()

    def descend(
        self,
        model: DDADDenoisingModel,
        state: DDADDescent,
        mask: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor,
        num_steps: int,
    ) -> Iterator[int]:
        """Gradient denoising inside the mask; a step is kept only if the distance falls.

        An image is done when its distance is that of a normal one, when it falls no more, or when steps get too small.

        Args:
            model: the networks and the process.
            state: where it begins; moved in place.
            mask: `[N, 1, S, S]` in [0, 1].
            target: features that are taken off F(x), `[N, C, h, w]`.
            weight: weight of each position, `[N, 1, g, g]`.
            num_steps: the most gradient steps.

        Yields:
            After each step the timestep of the denoising step in it, or 0.
        """
        config, last_check = self.config, state.distance
        for number in range(1, num_steps + 1):
            chosen = state.active.nonzero()[:, 0]
            if len(chosen) == 0:
                break
            part_mask = mask[chosen]
            momentum = config.momentum * state.velocity[chosen]
            momentum = momentum + self.direction(model, state.gradient[chosen], part_mask)
            candidate = state.images[chosen] + state.step_size[chosen].view(-1, 1, 1, 1) * momentum
            timestep = 0
            if number % config.denoise_every == 0:
                timestep, denoised = self.denoising_step(model, candidate)
                candidate = candidate + part_mask * (denoised - candidate)
            candidate = candidate.clamp(-1, 1)
            distance, gradient = model.distance_and_gradient(candidate, target[chosen], weight[chosen])
            better = distance < state.distance[chosen]
            kept, refused = chosen[better], chosen[~better]
            # What was yielded before stays as it was.
            state.images, state.distance = state.images.clone(), state.distance.clone()
            state.images[kept], state.distance[kept] = candidate[better], distance[better]
            state.gradient[kept], state.velocity[kept] = gradient[better], momentum[better]
            state.velocity[refused] = 0
            if timestep == 0:
                state.step_size[kept] *= config.growth
                state.step_size[refused] *= config.decay
            state.active = (
                state.active & (state.distance > model.normal_distance) & (state.step_size > config.smallest_step)
            )
            if number % config.check_every == 0:
                state.active = state.active & (state.distance < config.least_progress * last_check)
                last_check = state.distance
            yield timestep

    def denoise_masked(
        self, model: DDADDenoisingModel, images: torch.Tensor, mask: torch.Tensor, num_steps: int
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """Removes the defects inside the mask; what lies outside stays as it is.

        With a small model the paper's recipe, `denoise_whole`, raises the distance instead.

        Args:
            model: the networks and the process.
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1], not empty for any image.
            num_steps: the most gradient steps.

        Yields:
            The timestep of the U-Net's evaluation or 0, the images so far, and their distance `[N]`, first that of the
            images as they came; None before the target is known.
        """
        start = images
        for timestep, start in self.inpaint(model, images, mask):
            yield timestep, start, None
        detailed = self.borrow_grain(model, images, mask, start)
        target = model.predict_features(start)
        weight = F.adaptive_avg_pool2d(mask, model.grid_size)  # [N, 1, g, g]
        yield model.target_timestep, images, model.distance(images, target, weight)
        state = self.start(model, (start, detailed), target, weight)
        for timestep in self.descend(model, state, mask, target, weight, num_steps):
            yield timestep, state.images, state.distance

    def denoise_whole(
        self, model: DDADDenoisingModel, images: torch.Tensor, num_steps: int
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Gradient denoising as the paper has it: the whole image and a fixed number of steps.

        x <- sqrt(1 - s^2) x + s g with g the negative gradient divided by its standard deviation; after every N_d-th
        step the image becomes the mean of p(x_{t-1} | x_t = x).

        Yields:
            As `denoise_masked`.
        """
        scale = self.config.whole_step_size
        target = torch.zeros((), device=images.device)
        weight = torch.ones(len(images), 1, model.grid_size, model.grid_size, device=images.device)
        distance, gradient = model.distance_and_gradient(images, target, weight)
        yield 0, images, distance
        for number in range(1, num_steps + 1):
            direction = -gradient / gradient.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            images = (1 - scale**2) ** 0.5 * images + scale * direction
            timestep = 0
            if number % self.config.denoise_every == 0:
                timestep, images = self.denoising_step(model, images)
            distance, gradient = model.distance_and_gradient(images, target, weight)
            yield timestep, images, distance

    def most_steps(self, num_steps: int, whole: bool = False) -> int:
        """How many steps there are at most, the image as it came included."""
        return num_steps + 1 + (0 if whole else len(self.config.inpainting_steps))
