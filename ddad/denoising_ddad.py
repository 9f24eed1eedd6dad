"""Gradient denoising: how an image with defects is moved, step by step, to the same part without them.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023), gradient denoising.
Beyond the paper it is confined to a mask: the reverse process repaints the mask ("RePaint", Lugmayr et al., 2022), the
part's own grain is put back, and a gradient step counts only if it brings the part closer to normal.

As a sampler does, `repair` and `repair_whole` loop over the steps and ask the networks through what they are given
(`DDADNetworks`); what they yield is new, and nothing that was yielded changes afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config


class DDADNetworks:
    """What a repair asks of a pipeline's networks, for a batch of images; a step is one of the respaced process.

    Args:
        pipe: the pipeline.
        generator: source of the noise.
    """

    def __init__(self, pipe: Any, generator: torch.Generator | None):
        self.pipe, self.generator = pipe, generator
        levels = sorted(pipe.timesteps)
        self.level = levels[len(levels) // 2]  # at which the U-Net predicts what features should be
        (index,) = pipe.calibration.index([self.level])
        self.normal_distance: float = pipe.calibration.config.statistics["residual_mean"][index]

    def timestep_of(self, step: "DDADStep") -> int:
        """The training timestep at which the U-Net was evaluated for a step; 0 for a gradient step alone."""
        if step.kind == "target":
            return self.level
        return 0 if step.step is None else self.pipe.scheduler.timestep_of(step.step)

    def _evaluate(self, noisy: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        levels = torch.full((len(noisy),), self.pipe.scheduler.timestep_of(step), device=noisy.device)
        return self.pipe.unet(noisy.to(self.pipe.unet.dtype), levels).sample.float(), levels

    def predict_original(self, noisy: torch.Tensor, step: int) -> torch.Tensor:
        """x_t -> x0_hat, `[N, 3, S, S]`."""
        output, levels = self._evaluate(noisy, step)
        return self.pipe.scheduler.predict_original_sample(output, noisy, levels)

    def posterior_mean(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Images taken for x_t -> the mean of p(x_{t-1} | x_t), in [-1, 1]."""
        output, levels = self._evaluate(images, step)
        return self.pipe.scheduler.predict(output, images, levels).mean.clamp(-1, 1)

    def alpha_bar(self, step: int) -> torch.Tensor:
        """How much of the image is left at a step, `[1, 1, 1, 1]`."""
        scheduler = self.pipe.scheduler
        return scheduler.alpha_bars(torch.tensor([scheduler.timestep_of(step)]))[0]

    def predict_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images without their defect -> the features that they should have, `[N, C, h, w]`."""
        return self.pipe.predict_at(images, [self.level], self.pipe.get_noise([self.level], self.generator))[-1]

    def distance(self, images: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """How far from their target of features images are inside a mask, `[N]`; differentiable in the images."""
        weight = F.adaptive_avg_pool2d(mask, self.pipe.residual.config.grid_size)  # [N, 1, g, g]
        values = self.pipe.residual(self.pipe.extract_features(images) - target)
        return (values * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))

    def smooth(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient, smoothed."""
        return self.pipe.image_processor.blur(gradient, self.pipe.denoiser.config.gradient_sigma)


@dataclass(frozen=True)
class DDADStep:
    """One step of a repair.

    Attributes:
        kind: `"repaint"` and `"denoise"` evaluate the U-Net and are steps of the film; `"target"` finds out what the
            features should be; `"gradient"` moves images down the distance.
        images: so far, `[N, 3, S, S]` in [-1, 1].
        distance: of them, `[N]`; None before the target is known. The first is that of the images as they came.
        step: of the respaced process, where the U-Net was evaluated; None for a gradient step alone.
    """

    kind: Literal["repaint", "target", "gradient", "denoise"]
    images: torch.Tensor
    distance: torch.Tensor | None
    step: int | None = None


@dataclass(frozen=True)
class DDADMeasured:
    """Images, `[N, 3, S, S]` in [-1, 1], how far from normal they are, `[N]`, and the gradient of that in them."""

    images: torch.Tensor
    distance: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor, distance: Callable[[torch.Tensor], torch.Tensor]) -> "DDADMeasured":
        """Measures images by a differentiable distance."""
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            measured = distance(images)
            (gradient,) = torch.autograd.grad(measured.sum(), images)
        return cls(images.detach(), measured.detach(), gradient)


@dataclass(frozen=True)
class DDADDescent:
    """The state of gradient denoising, a row an image.

    Attributes:
        images: `[N, 3, S, S]` in [-1, 1].
        gradient: of the distance, there.
        velocity: the momentum.
        distance: `[N]`.
        step_size: `[N]`.
        active: which images still move, `[N]`.
        last_check: the distance when progress was last looked at, `[N]`.
    """

    images: torch.Tensor
    gradient: torch.Tensor
    velocity: torch.Tensor
    distance: torch.Tensor
    step_size: torch.Tensor
    active: torch.Tensor
    last_check: torch.Tensor


class DDADDenoiser(SchedulerMixin, ConfigMixin):
    """Moves samples from step to step, as a scheduler does, from a defective image to the one without the defect.

    Args:
        inpainting_steps: steps of the respaced process through which a mask is repainted, descending: from where the
            defect drowns down to where detail forms.
        grain_step: the step at whose noise level the model says what of an image is grain.
        denoising_step: the step whose posterior mean is the denoising step (8 of 250 in the authors' program).
        denoise_every: a denoising step follows every so many gradient steps (N_d = 5 in the paper).
        most_gradient_steps: how many there are at most if a call names no number
        most_refined_steps: and where a refiner follows: of more, the denoising step before it leaves nothing.
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

    @register_to_config
    def __init__(
        self,
        inpainting_steps: tuple[int, ...] = (80, 62, 46, 33, 22, 13, 6),
        grain_step: int = 5,
        denoising_step: int = 8,
        denoise_every: int = 5,
        most_gradient_steps: int = 60,
        most_refined_steps: int = 10,
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
    def networks(pipe: Any, generator: torch.Generator | None) -> DDADNetworks:
        """What repairs ask of a pipeline's networks."""
        return DDADNetworks(pipe, generator)

    @property
    def last_step(self) -> int:
        """The highest step of the respaced process that is used."""
        return max(*self.config.inpainting_steps, self.config.grain_step, self.config.denoising_step)

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

    @staticmethod
    def renoise(
        current: torch.Tensor, mask: torch.Tensor, inside: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
    ) -> torch.Tensor:
        """x_t for a step of repainting: outside the mask under the noise that it always had, inside under its own.

        Args:
            current: the images so far, `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1].
            inside: what the model believes to be noise there (DDIM), `[N, 3, S, S]`.
            noise: of the outside.
            alpha_bar: of the step, `[N, 1, 1, 1]`.
        """
        signal, scale = alpha_bar.sqrt().to(current), (1 - alpha_bar).sqrt().to(current)
        return signal * current + scale * (mask * inside + (1 - mask) * noise)

    @staticmethod
    def repaint_step(
        images: torch.Tensor, mask: torch.Tensor, noisy: torch.Tensor, original: torch.Tensor, alpha_bar: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the reverse process inside the mask, the rest of the image given.

        Args:
            images: as they came, `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1].
            noisy: x_t, as `renoise` made it.
            original: x0_hat of it.
            alpha_bar: of the step, `[N, 1, 1, 1]`.

        Returns:
            The images so far, and the noise that the model sees in x_t.
        """
        signal, scale = alpha_bar.sqrt().to(images), (1 - alpha_bar).sqrt().to(images)
        return images + mask * (original - images), (noisy - signal * original) / scale

    @staticmethod
    def borrow_grain(
        images: torch.Tensor, mask: torch.Tensor, predicted: torch.Tensor, repaired: torch.Tensor
    ) -> torch.Tensor:
        """Gives a repaired region the fine grain of the part itself, `[N, 3, S, S]`.

        The U-Net predicts the mean of all clean images, which is smooth. What it leaves out of the normal surroundings
        is the part's own grain; moved into the mask from where it fits best, it makes the repair as sharp as the rest.
        The source is the one of which most is normal and which looks most like the target.

        Args:
            images: as they came.
            mask: `[N, 1, S, S]` in [0, 1].
            predicted: x0_hat of the images without noise, at the level of `grain_step`.
            repaired: the images with the mask repainted.
        """
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

    def begin(self, candidates: Sequence[DDADMeasured], normal_distance: float) -> DDADDescent:
        """Begins gradient denoising at that one of the candidates, image by image, which is closest to normal."""
        best = candidates[0]
        for other in candidates[1:]:
            better = other.distance < best.distance
            chosen = better.view(-1, 1, 1, 1)
            best = DDADMeasured(
                images=torch.where(chosen, other.images, best.images),
                distance=torch.minimum(best.distance, other.distance),
                gradient=torch.where(chosen, other.gradient, best.gradient),
            )
        return DDADDescent(
            images=best.images,
            gradient=best.gradient,
            velocity=torch.zeros_like(best.images),
            distance=best.distance,
            step_size=torch.full_like(best.distance, self.config.step_size),
            active=best.distance > normal_distance,
            last_check=best.distance,
        )

    @staticmethod
    def direction(gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Down a smoothed gradient inside the mask, scaled to a root mean square of one over the masked pixels."""
        direction = -gradient * mask
        direction = direction / direction.square().sum(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        return direction * (3 * mask.square().sum(dim=(1, 2, 3), keepdim=True)).sqrt()

    def propose(
        self, state: DDADDescent, chosen: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the chosen images would go, `[n, 3, S, S]`, and with which momentum."""
        momentum = self.config.momentum * state.velocity[chosen] + direction
        return state.images[chosen] + state.step_size[chosen].view(-1, 1, 1, 1) * momentum, momentum

    def accept(
        self,
        state: DDADDescent,
        chosen: torch.Tensor,
        candidate: DDADMeasured,
        momentum: torch.Tensor,
        denoised: bool,
        normal_distance: float,
    ) -> DDADDescent:
        """The state with those of the proposed images that are closer to normal.

        An image is done when its distance is that of a normal one, or when its steps get too small, which they do when
        they are refused. A step with a denoising step in it says nothing of the step size.
        """
        better = candidate.distance < state.distance[chosen]
        kept, refused = chosen[better], chosen[~better]
        images, distance = state.images.clone(), state.distance.clone()
        gradient, velocity, step_size = state.gradient.clone(), state.velocity.clone(), state.step_size.clone()
        images[kept], distance[kept] = candidate.images[better], candidate.distance[better]
        gradient[kept], velocity[kept] = candidate.gradient[better], momentum[better]
        velocity[refused] = 0
        if not denoised:
            step_size[kept] *= self.config.growth
            step_size[refused] *= self.config.decay
        active = state.active & (distance > normal_distance) & (step_size > self.config.smallest_step)
        return replace(
            state,
            images=images,
            gradient=gradient,
            velocity=velocity,
            distance=distance,
            step_size=step_size,
            active=active,
        )

    def check_progress(self, state: DDADDescent) -> DDADDescent:
        """The state in which images have ended whose distance has hardly fallen since the last check."""
        active = state.active & (state.distance < self.config.least_progress * state.last_check)
        return replace(state, active=active, last_check=state.distance)

    def whole_step(self, images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """X <- sqrt(1 - s^2) x + s g, with g the negative gradient divided by its standard deviation (the paper's)."""
        scale = self.config.whole_step_size
        direction = -gradient / gradient.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        return (1 - scale**2) ** 0.5 * images + scale * direction

    # ------------------------------------------------------------------------------------------------------ the loops

    def repaint(
        self, images: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, networks: DDADNetworks
    ) -> Iterator[DDADStep]:
        """Repaints the mask by the reverse process, from the image under noise, in which the defect drowns."""
        inside, current = noise, images
        for step in self.config.inpainting_steps:
            alpha_bar = networks.alpha_bar(step)
            noisy = self.renoise(current, mask, inside, noise, alpha_bar)
            original = networks.predict_original(noisy, step)
            current, inside = self.repaint_step(images, mask, noisy, original, alpha_bar)
            yield DDADStep("repaint", current, None, step)

    def predict_clean(self, images: torch.Tensor, step: int, networks: DDADNetworks) -> torch.Tensor:
        """x0_hat of images as they are, taken for the signal of x_t: without what the U-Net takes for noise there."""
        return networks.predict_original(networks.alpha_bar(step).sqrt().to(images) * images, step)

    def repair(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        noise: torch.Tensor,
        networks: DDADNetworks,
        num_steps: int,
        refined: bool,
    ) -> Iterator[DDADStep]:
        """Removes the defects inside the mask: repaints it, then takes gradient steps that lower a distance.

        The distance is that of the features to those that the U-Net predicts for this very part without its defect.
        With a small model the paper's recipe, `repair_whole`, raises it instead.

        Gradients of a backbone draw what it alone sees, too. Where a refiner adds the detail it must not take that for
        the part's own: there a last denoising step removes it.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1].
            noise: of the same shape as the images.
            networks: what is asked of them.
            num_steps: the most gradient steps.
            refined: whether a refiner follows, which makes the grain itself, at the photograph's own size.
        """
        config, repainted = self.config, images
        for step in self.repaint(images, mask, noise, networks):
            repainted = step.images
            yield step
        candidates = [repainted]
        if not refined:
            predicted = self.predict_clean(images, config.grain_step, networks)
            candidates.append(self.borrow_grain(images, mask, predicted, repainted))
        target = networks.predict_features(repainted)
        yield DDADStep("target", images, networks.distance(images, target, mask))
        state = self.begin(
            [DDADMeasured.of(one, lambda x: networks.distance(x, target, mask)) for one in candidates],
            networks.normal_distance,
        )
        yield DDADStep("gradient", state.images, state.distance)
        for number in range(1, num_steps + 1):
            chosen = state.active.nonzero()[:, 0]
            if len(chosen) == 0:
                break
            denoised = config.denoising_step if number % config.denoise_every == 0 else None
            state = self.descend(state, chosen, mask[chosen], target[chosen], networks, denoised)
            if number % config.check_every == 0:
                state = self.check_progress(state)
            yield DDADStep("gradient" if denoised is None else "denoise", state.images, state.distance, denoised)
        if refined:
            clean = self.predict_clean(state.images, config.denoising_step, networks)
            images = state.images + mask * (clean - state.images)
            yield DDADStep("denoise", images, networks.distance(images, target, mask), config.denoising_step)

    def descend(
        self,
        state: DDADDescent,
        chosen: torch.Tensor,
        mask: torch.Tensor,
        target: torch.Tensor,
        networks: DDADNetworks,
        denoised: int | None,
    ) -> DDADDescent:
        """One gradient step of the chosen images, with a denoising step in it where one is named."""
        candidate, momentum = self.propose(
            state, chosen, self.direction(networks.smooth(state.gradient[chosen]), mask)
        )
        if denoised is not None:
            candidate = candidate + mask * (networks.posterior_mean(candidate, denoised) - candidate)
        measured = DDADMeasured.of(candidate.clamp(-1, 1), lambda x: networks.distance(x, target, mask))
        return self.accept(state, chosen, measured, momentum, denoised is not None, networks.normal_distance)

    def repair_whole(self, images: torch.Tensor, networks: DDADNetworks, num_steps: int) -> Iterator[DDADStep]:
        """Gradient denoising in the paper's form: the whole image, one target for all of it, a fixed number of steps.

        The distance is the one that judges: that of the features to those that the U-Net predicts of the image. After
        every N_d-th step the image becomes the mean of p(x_{t-1} | x_t = x).
        """
        target, everywhere = networks.predict_features(images), torch.ones_like(images[:, :1])

        def measure(images: torch.Tensor) -> DDADMeasured:
            return DDADMeasured.of(images, lambda x: networks.distance(x, target, everywhere))

        measured = measure(images)
        yield DDADStep("target", images, measured.distance)
        for number in range(1, num_steps + 1):
            images = self.whole_step(measured.images, measured.gradient)
            denoised = self.config.denoising_step if number % self.config.denoise_every == 0 else None
            if denoised is not None:
                images = networks.posterior_mean(images, denoised)
            measured = measure(images)
            yield DDADStep("gradient" if denoised is None else "denoise", images, measured.distance, denoised)

    def gradient_steps(self, whole: bool, refined: bool) -> int:
        """How many gradient steps are taken at most where a call names no number."""
        return self.config.most_refined_steps if refined and not whole else self.config.most_gradient_steps

    def most_steps(self, num_steps: int, whole: bool = False) -> int:
        """How many steps there are at most: the image as it came and, repainted, the first and the last among them."""
        return num_steps + 1 + (0 if whole else len(self.config.inpainting_steps) + 2)
