"""The pipeline: an image in; anomaly map, verdict and the image without its defects out.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023). This file is
published with every checkpoint, so it imports third-party packages only.
"""

import contextlib
import functools
import inspect
import json
import math
import os
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

ImageInput = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor
PixelScore = Literal["kl"]
FeatureScore = Literal["appearance", "mahalanobis", "sum"]


def plainly(method: Callable) -> Callable:
    """A method that computes in the weights' own types, and gradients where it needs them, whatever its caller does.

    Inside `torch.autocast` operators would run in types that they are not made for, and `torch.inference_mode` forbids
    the gradients that denoising follows.
    """

    @functools.wraps(method)
    def computed(self: "DDADPipeline", *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
            for device in {"cpu", self._execution_device.type}:
                if torch.amp.is_autocast_available(device):
                    modes.enter_context(torch.autocast(device, enabled=False))
            return method(self, *args, **kwargs)

    return computed


@dataclass
class DDADPipelineOutput(BaseOutput):
    """What the pipeline found. Every list has one entry an image; H and W are that image's own height and width.

    Attributes:
        image_score: how anomalous the image is, in standard deviations of normal images: the mean of the most
            anomalous of 32x32 cells of the anomaly map, one unless the pipeline's normality says otherwise.
        threshold: the score above which an image is called anomalous.
        is_anomalous: whether `image_score` is above `threshold`.
        anomaly_map: `[H, W]` float32, the weighted mean of pixel and feature map, zero for an average normal pixel.
        pixel_map: `[H, W]` float32, the calibrated pixel-level score (KL divergence), mean over the noise levels; None
            where it weighs nothing and was not asked for: the U-Net was not evaluated then.
        feature_map: `[H, W]` float32, the calibrated feature-level score, mean over the noise levels.
        overlay: the image under the heatmap, on a scale fixed by the threshold: a normal part shows no colour.
        denoised_image: the image without its defects; the image itself where none were found; None if not asked for.
        intermediates: the denoising steps of each image from the image itself to the last, at the model's size;
            a single entry where no defect was found; None if not asked for.
        normality_distance: (before, after) of the distance that gradient denoising lowers, averaged over the repaired
            region, before a refiner adds detail; None for an image without defects. Normal is the root of the
            dimensions modelled: 8 of 64.

    Images are PIL images, arrays `[H, W, 3]` or tensors `[3, H, W]` in [0, 1] by `output_type`; maps are tensors for
    `"pt"` and arrays otherwise. Maps, overlays and denoised images are computed when they are read.
    """

    image_score: list[float]
    threshold: float
    is_anomalous: list[bool]
    anomaly_map: Sequence[Any]
    pixel_map: Sequence[Any] | None
    feature_map: Sequence[Any]
    overlay: Sequence[Any]
    denoised_image: Sequence[Any] | None
    intermediates: list[list[Any]] | None
    normality_distance: list[tuple[float, float] | None] | None


@dataclass
class DDADScores:
    """Images and their calibrated score maps: all that the U-Net has to say of them before anything is repaired.

    Given to the pipeline in place of the images, they are fused and judged anew with another `alpha`, `threshold` or
    fewer `timesteps`, and no network is evaluated for it.

    Attributes:
        images: the images as the image processor reads them, `[3, H, W]` in [0, 1] each, of their own sizes.
        pixel_maps: `[N, K, S, S]` float32, in standard deviations of normal images; None where they weigh nothing.
        feature_maps: likewise.
        timesteps: the K noise levels.
        pixel_score: the pixel score's name.
        feature_score: the feature score's name.
    """

    images: Sequence[torch.Tensor]
    pixel_maps: torch.Tensor | None
    feature_maps: torch.Tensor
    timesteps: list[int]
    pixel_score: PixelScore
    feature_score: FeatureScore

    def __len__(self) -> int:
        return len(self.images)

    def select(self, images: slice, timesteps: Sequence[int]) -> "DDADScores":
        """Some of the images, at some of the noise levels.

        Raises:
            ValueError: for a noise level that was not scored.
        """
        unknown = [timestep for timestep in timesteps if timestep not in self.timesteps]
        if unknown:
            raise ValueError(f"`timesteps` {unknown} were not scored; choose from {self.timesteps}.")
        index = [self.timesteps.index(timestep) for timestep in timesteps]
        return replace(
            self,
            images=self.images[images],
            pixel_maps=None if self.pixel_maps is None else self.pixel_maps[images][:, index],
            feature_maps=self.feature_maps[images][:, index],
            timesteps=list(timesteps),
        )


class DDADResults(Sequence):
    """Results at the images' own sizes, each computed when it is read: of many photographs one at a time takes memory.

    The one that was read last is kept.

    Args:
        compute: the index of an image -> its result.
        count: how many there are.
    """

    def __init__(self, compute: Callable[[int], Any], count: int):
        self._compute, self._count, self._last = compute, count, (-1, None)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        index, last = range(self._count)[index], self._last
        if last[0] != index:
            last = self._last = (index, self._compute(index))
        return last[1]


@dataclass
class DDADDrawing:
    """What was computed at the model's size, and how it becomes a result at an image's own.

    Attributes:
        processor: the image processor.
        images: the images as it reads them.
        threshold: what the scale of overlays follows from.
        output_type: `"pil"`, `"np"` or `"pt"`.
        maps: anomaly, pixel and feature map of each image, `[3, S, S]`.
        masks: where each image was repaired, `[1, S, S]`.
        repaired: the last denoising step of each image, `[3, S, S]` in [0, 1].
        refiner: what adds detail to them; None leaves them as they are.
        seeds: of the detail of each image.
    """

    processor: Any
    images: Sequence[torch.Tensor]
    threshold: float
    output_type: str
    maps: list[torch.Tensor] = field(default_factory=list)
    masks: list[torch.Tensor] = field(default_factory=list)
    repaired: list[torch.Tensor] = field(default_factory=list)
    refiner: Any = None
    seeds: Sequence[int] = ()

    def _enlarge(self, kind: int, index: int) -> torch.Tensor:
        size = self.images[index].shape[1:]
        values = self.maps[index][None, kind : kind + 1]
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].cpu()

    def draw_map(self, kind: int, index: int) -> torch.Tensor | np.ndarray:
        """The anomaly (0), pixel (1) or feature map (2), `[H, W]`."""
        values = self._enlarge(kind, index)
        return values if self.output_type == "pt" else values.numpy()

    def draw_overlay(self, index: int) -> Any:
        """The image under the heatmap."""
        overlay = self.processor.overlay(self.images[index], self._enlarge(0, index), self.threshold)
        return self.processor.to_image(overlay, self.output_type)

    def draw_denoised(self, index: int) -> Any:
        """The image with its defects removed."""
        merged, mask = self.processor.merge(self.images[index], self.repaired[index], self.masks[index])
        if self.refiner is not None:
            merged = self.refiner.add_detail(merged, mask, self.seeds[index], self.processor.is_grey(merged))
        return self.processor.to_image(merged, self.output_type)


class DDADPipeline(DiffusionPipeline):
    """Finds defects with a diffusion model of normal images and removes them by gradient denoising.

    Args:
        unet: the denoising U-Net (`DDADUNet2DModel`).
        scheduler: the diffusion process and its pixel scores (`DDADScheduler`).
        feature_extractor: the frozen backbone (`DDADFeatureExtractor`).
        normality: noise levels, feature scores, calibration and threshold (`DDADNormalityModel`).
        denoiser: how a defect is removed (`DDADDenoiser`).
        image_processor: reads images, draws results (`DDADImageProcessor`).
        appearance_extractor: the backbone whose features themselves are judged, at an image size of its own.
        appearance: statistics of those (`DDADAppearanceModel`); None for a pipeline that judges by the U-Net alone.
        refiner: adds detail to repairs at the photographs' own size (`DDADRefiner`); None leaves them as smooth as the
            U-Net predicts them.
        category: the product that the model was trained on.
        alpha: weight of the pixel score against the feature score; 0.5 in the paper.
        threshold: the image score above which an image is anomalous; None measures it on the held-out normal images
            that are stored in `normality`, for any `alpha` and `timesteps`.
        blur_sigma: standard deviation in pixels of the Gaussian that smoothes the score maps.
        feature_score: the feature score that is weighed against the pixel score: `"appearance"`, `"mahalanobis"` or
            `"sum"`; see a call.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")
    component_classes = {
        "unet": ("unet_ddad", "DDADUNet2DModel"),
        "scheduler": ("scheduling_ddad", "DDADScheduler"),
        "feature_extractor": ("features_ddad", "DDADFeatureExtractor"),
        "normality": ("normality_ddad", "DDADNormalityModel"),
        "denoiser": ("denoising_ddad", "DDADDenoiser"),
        "image_processor": ("images_ddad", "DDADImageProcessor"),
        "appearance_extractor": ("features_ddad", "DDADFeatureExtractor"),
        "appearance": ("appearance_ddad", "DDADAppearanceModel"),
        "refiner": ("refining_ddad", "DDADRefiner"),
    }
    _optional_components = ["appearance_extractor", "appearance", "refiner"]  # noqa: RUF012 - the form that diffusers asks for
    model_cpu_offload_seq = "appearance_extractor->feature_extractor->unet->refiner"
    # Small, and not always called through its `forward`, which is where offloading would bring it to the device.
    _exclude_from_cpu_offload = ["normality", "appearance"]  # noqa: RUF012 - the form that diffusers asks for

    def __init__(  # type: ignore[no-untyped-def]  # diffusers compares annotations with what it loads
        self,
        unet,
        scheduler,
        feature_extractor,
        normality,
        denoiser,
        image_processor,
        appearance_extractor=None,
        appearance=None,
        refiner=None,
        category: str = "",
        alpha: float = 0.5,
        threshold: float | None = None,
        blur_sigma: float = 4.0,
        feature_score: str = "mahalanobis",
    ):
        super().__init__()
        if not hasattr(scheduler, "pixel_maps"):
            raise TypeError(
                f"`scheduler` must be a DDADScheduler, which measures pixel scores, found {type(scheduler).__name__}."
            )
        networks = {"unet": unet, "feature_extractor": feature_extractor, "normality": normality}
        networks |= {"appearance_extractor": appearance_extractor, "appearance": appearance, "refiner": refiner}
        for name, component in networks.items():
            if component is not None:
                self._check_weights(name, component)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            normality=normality,
            denoiser=denoiser,
            image_processor=image_processor,
            appearance_extractor=appearance_extractor,
            appearance=appearance,
            refiner=refiner,
        )
        self.register_to_config(
            category=category, alpha=alpha, threshold=threshold, blur_sigma=blur_sigma, feature_score=feature_score
        )
        self._check_agreement()
        self.scheduler.alpha_bars(torch.tensor(self.timesteps))

    @staticmethod
    def _check_weights(name: str, component: torch.nn.Module) -> None:
        for key, value in component.state_dict().items():
            if value.is_meta:
                raise ValueError(f"The checkpoint lacks the weight {key!r} of `{name}`: download it again.")
            if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
                raise ValueError(
                    f"The weight {key!r} of `{name}` is of type {value.dtype}: the checkpoint is damaged."
                )
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"The weight {key!r} of `{name}` is not finite: the checkpoint is damaged.")

    def _check_agreement(self) -> None:
        """Raises a ValueError for components that do not belong together."""
        channels = {
            "feature_extractor": self.feature_extractor.feature_channels,
            "unet": self.unet.config.feature_channels,
            "normality": self.normality.config.feature_channels,
        }
        if len(set(channels.values())) > 1:
            raise ValueError(f"The components do not belong together: their feature channels are {channels}.")
        if (self.appearance is None) != (self.appearance_extractor is None):
            raise ValueError("`appearance` and `appearance_extractor` belong together: give both or neither.")
        if (self.appearance is not None) != self.normality.config.appearance:
            raise ValueError("`appearance` and the setting of that name of `normality` do not agree.")
        if self.appearance is not None:
            seen, judged = self.appearance_extractor.feature_channels, self.appearance.config.feature_channels
            if seen != judged:
                raise ValueError(f"The appearance's components do not belong together: channels {seen} and {judged}.")
        if self.config.feature_score not in self.normality.feature_scores:
            raise ValueError(f"`feature_score` must be one of {self.normality.feature_scores}.")
        if self.normality.config.calibration_size > self.unet.config.sample_size:
            raise ValueError("`calibration_size` of normality must not exceed the `sample_size` of the U-Net.")
        steps = self.denoiser.config
        last = max(*steps.inpainting_steps, steps.grain_step, steps.denoising_step)
        count = self.scheduler.config.num_inference_steps
        if last >= count:
            raise ValueError(f"The denoiser uses step {last}, and there are {count}: raise `num_inference_steps`.")

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that score images, as timesteps of the training process."""
        return list(self.normality.config.timesteps)

    @property
    def threshold(self) -> float | None:
        """The threshold for the stored `alpha` and `timesteps`; None if the pipeline is not calibrated."""
        if self.config.threshold is not None:
            return self.config.threshold
        return self.normality.limits(self.config.alpha, self.timesteps, "kl", self.config.feature_score)[0]

    # -------------------------------------------------------------------------------------------------------- scoring

    def prepare(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images `[3, H, W]` in [0, 1] of any size -> what the model sees, `[N, 3, S, S]` in [-1, 1]."""
        size = self.unet.config.sample_size
        return torch.cat([self.image_processor.preprocess(image, size) for image in images]).to(self._execution_device)

    def get_noise(self, timesteps: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """One noise image for each timestep, `[K, 3, S, S]`, the same for every image; see the scheduler."""
        shape = (3, self.unet.config.sample_size, self.unet.config.sample_size)
        return self.scheduler.get_noise(timesteps, shape, generator, self._execution_device)

    def extract_features(self, images: torch.Tensor) -> torch.Tensor:
        """F(x): features of `[N, 3, S, S]` in [-1, 1], float32 `[N, C, h, w]`."""
        return self.feature_extractor(images.to(self.feature_extractor.dtype)).float()

    def predict_at(
        self, images: torch.Tensor, timesteps: Sequence[int], noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Evaluates the U-Net on images noised to each timestep, all in one batch.

        Args:
            images: x_0, `[N, 3, S, S]` in [-1, 1].
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`.

        Returns:
            x_0, x_t and timesteps repeated, the model's output, and its predicted features on the grid of F(x); each
            `[N * K, ...]`, the noise levels of an image one after the other.
        """
        levels = torch.tensor(list(timesteps), device=images.device).repeat(len(images))  # [N * K]
        originals = images.repeat_interleave(len(timesteps), dim=0)  # [N * K, 3, S, S]
        noisy = self.scheduler.add_noise(originals, noise.repeat(len(images), 1, 1, 1), levels)
        output = self.unet(noisy.to(self.unet.dtype), levels)
        grid = (self.feature_extractor.config.grid_size,) * 2
        features = F.interpolate(output.features.float(), size=grid, mode="bilinear", align_corners=False)
        return originals, noisy, levels, output.sample.float(), features

    @torch.no_grad()
    def score_maps(
        self, images: torch.Tensor, timesteps: Sequence[int], noise: torch.Tensor, scores: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """The score maps before calibration, smoothed, at the model's size; one evaluation of the U-Net for all.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`.
            scores: the names of the maps to compute: `kl` (see `DDADScheduler.pixel_maps`) and `mahalanobis` (see
                `DDADNormalityModel.feature_maps`).

        Returns:
            The maps by name, `[N, K, S, S]` each.
        """
        count = len(images)
        originals, noisy, levels, output, predicted = self.predict_at(images, timesteps, noise)
        maps = self.scheduler.pixel_maps(originals, noisy, output, levels, scores)
        if set(scores) & set(self.normality.feature_scores):
            residuals = self.extract_features(images)[:, None] - predicted.unflatten(0, (count, -1))  # [N, K, C, h, w]
            maps |= self.normality.feature_maps(residuals, timesteps, scores)
        by_level = {name: value.view(count, len(timesteps), *value.shape[-2:]) for name, value in maps.items()}
        return {name: self.smooth(value, images.shape[-1]) for name, value in by_level.items()}

    def prepare_appearance(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images `[3, H, W]` in [0, 1] of any size -> what appearance is judged by, `[N, 3, L, L]` in [-1, 1]."""
        size = self.appearance_extractor.config.image_size
        return torch.cat([self.image_processor.preprocess(image, size) for image in images]).to(self._execution_device)

    def appearance_maps(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """How unusual images `[3, H, W]` in [0, 1] look, without the U-Net; smoothed, `[N, 1, S, S]`."""
        distances = [self.appearance(self.extract_appearance(self.prepare_appearance([image]))) for image in images]
        return self.smooth(torch.cat(distances), self.unet.config.sample_size)

    @torch.no_grad()
    def extract_appearance(self, images: torch.Tensor) -> torch.Tensor:
        """Features of `[N, 3, L, L]` in [-1, 1], float32 `[N, C, h, w]`."""
        return self.appearance_extractor(images.to(self.appearance_extractor.dtype)).float()

    def smooth(self, maps: torch.Tensor, size: int) -> torch.Tensor:
        """Maps on any grid, `[N, C, h, w]` -> smoothed, `[N, C, size, size]`."""
        return self.image_processor.blur(self.image_processor.resize(maps, (size, size)), self.config.blur_sigma)

    @plainly
    def score(
        self,
        image: ImageInput | Sequence[ImageInput],
        timesteps: Sequence[int] | None = None,
        pixel_score: PixelScore | None = None,
        feature_score: FeatureScore | None = None,
        batch_size: int = 4,
        generator: torch.Generator | None = None,
    ) -> DDADScores:
        """The calibrated score maps of one or many images: the first half of a call, to be judged more than once.

        Args: as for a call. Where the pipeline's own alpha is 0 and no pixel score is asked for, there is none, and
            the scores cannot be judged with another alpha.

        Raises:
            TypeError, ValueError: as a call.
        """
        timesteps = self.timesteps if timesteps is None else list(timesteps)
        feature_score = feature_score or self.config.feature_score
        unseen = self._is_unseen(self.config.alpha, pixel_score, feature_score)
        pixel_score = pixel_score or "kl"
        self.normality.check(self.config.alpha, timesteps, pixel_score, feature_score)
        self._check_counts(batch_size=batch_size)
        originals = self.image_processor.read_images(image)
        names = [feature_score] if unseen else [pixel_score, feature_score]
        arguments = (timesteps, self.get_noise(timesteps, generator), *names)
        firsts = range(0, len(originals), batch_size)
        batches = [self.calibrated_maps(originals[first : first + batch_size], *arguments) for first in firsts]
        self.maybe_free_model_hooks()
        maps = [torch.cat(parts) for parts in zip(*batches, strict=True)]  # [N, K, S, S] each
        pixel, feature = None if unseen else maps[0], maps[-1]
        return DDADScores(originals, pixel, feature, timesteps, pixel_score, feature_score)

    @staticmethod
    def _is_unseen(alpha: float, pixel_score: str | None, feature_score: str) -> bool:
        """Whether a verdict needs no U-Net: the pixel score weighs nothing and nobody asked for it."""
        return alpha == 0 and pixel_score is None and feature_score == "appearance"

    def calibrated_maps(
        self, images: Sequence[torch.Tensor], timesteps: list[int], noise: torch.Tensor, *scores: str
    ) -> list[torch.Tensor]:
        """The calibrated maps of images `[3, H, W]` in [0, 1], one for each of `scores`, `[N, K, S, S]` each."""
        parts = [self.normality.parts(name) for name in scores]
        measured = set().union(*parts)
        of_unet = sorted(measured - {"appearance"})
        maps = self.score_maps(self.prepare(images), timesteps, noise, of_unet) if of_unet else {}
        if "appearance" in measured:
            maps["appearance"] = self.appearance_maps(images)
        calibrated = {
            name: self.normality.calibrate(name, maps[name], timesteps).cpu().expand(-1, len(timesteps), -1, -1)
            for name in measured
        }
        return [torch.stack([calibrated[part] for part in names]).mean(dim=0) for names in parts]

    # ------------------------------------------------------------------------------------------------------ denoising

    def timestep_of(self, step: int) -> int:
        """The training timestep of a step of the respaced process, counted from the clean image."""
        return int(self.scheduler.timesteps.flip(0)[step])

    def networks(self, generator: torch.Generator | None) -> Any:
        """What the denoiser asks of the networks (`DDADNetworks`)."""
        level = self.middle_level
        normal = self.normality.config.statistics["mahalanobis_mean"][self.normality.index([level])[0]]

        def evaluate(noisy: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            levels = torch.full((len(noisy),), self.timestep_of(step), device=noisy.device)
            return self.unet(noisy.to(self.unet.dtype), levels).sample.float(), levels

        def predict_original(noisy: torch.Tensor, step: int) -> torch.Tensor:
            output, levels = evaluate(noisy, step)
            return self.scheduler.predict_original_sample(output, noisy, levels)

        def posterior_mean(images: torch.Tensor, step: int) -> torch.Tensor:
            output, levels = evaluate(images, step)
            return self.scheduler.predict(output, images, levels).mean.clamp(-1, 1)

        def distance(images: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            weight = F.adaptive_avg_pool2d(mask, self.normality.config.grid_size)  # [N, 1, g, g]
            values = self.normality(self.extract_features(images) - target)
            return (values * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))

        return types.SimpleNamespace(
            normal_distance=normal,
            predict_original=predict_original,
            posterior_mean=posterior_mean,
            alpha_bar=lambda step: self.scheduler.alpha_bars(torch.tensor([self.timestep_of(step)]))[0],
            predict_features=lambda images: self.predict_at(images, [level], self.get_noise([level], generator))[-1],
            distance=distance,
            smooth=lambda gradient: self.image_processor.blur(gradient, self.denoiser.config.gradient_sigma),
        )

    @property
    def middle_level(self) -> int:
        """The noise level at which the U-Net predicts what features should be."""
        return sorted(self.timesteps)[len(self.timesteps) // 2]

    def most_gradient_steps(self, whole: bool = False) -> int:
        """How many gradient steps a call takes at most that names no number.

        Where a refiner follows, of more than ten the denoising step before it leaves nothing.
        """
        return 60 if whole or self.refiner is None else 10

    def denoise(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        whole: bool,
        num_steps: int,
        generator: torch.Generator | None = None,
        callback: Callable | None = None,
    ) -> tuple[list[list[torch.Tensor]], list[tuple[float, float] | None]]:
        """Removes the defects of a batch.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1]; an image whose mask is empty is left as it is.
            whole: whether to run the paper's form on whole images.
            num_steps: the most gradient steps.
            generator: source of the noise.
            callback: as `callback_on_step_end` of a call.

        Returns:
            For each image the steps `[3, S, S]` in [0, 1] from the image itself to the last, and the distance before
            and after; None if the image was left as it is.
        """
        frames = [[(image + 1) / 2] for image in images]
        distances: list[tuple[float, float] | None] = [None] * len(images)
        chosen = mask.amax(dim=(1, 2, 3)).nonzero()[:, 0].tolist()
        if not chosen:
            return frames, distances
        images, mask, networks = images[chosen], mask[chosen], self.networks(generator)
        if whole:
            steps = self.denoiser.repair_whole(images, networks, num_steps)
        else:
            first = self.timestep_of(self.denoiser.config.inpainting_steps[0])
            noise = self.get_noise([first], generator).expand_as(images)
            steps = self.denoiser.repair(images, mask, noise, networks, num_steps, self.refiner is not None)
        before, last = None, None
        progress = self.progress_bar(total=self.denoiser.most_steps(num_steps, whole))
        for number, last in enumerate(steps):
            before = last.distance if before is None else before
            if last.kind in ("repaint", "denoise"):
                for position, i in enumerate(chosen):
                    frames[i].append((last.images[position] + 1) / 2)
            if callback is not None:
                timestep = self.middle_level if last.kind == "target" else 0
                timestep = timestep if last.step is None else self.timestep_of(last.step)
                callback(self, number, timestep, {"image": last.images})
            progress.update()
        progress.close()
        assert last is not None and before is not None  # every run measures both
        for position, i in enumerate(chosen):
            distances[i] = (float(before[position]), float(last.distance[position]))
            if last.kind == "gradient":  # the others are among the steps already
                frames[i].append((last.images[position] + 1) / 2)
        return frames, distances

    # ----------------------------------------------------------------------------------------------------- inference

    @staticmethod
    def _check_counts(**counts: int | None) -> None:
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1, found {count}.")

    @staticmethod
    def _check_forms(threshold: float | None, denoise: bool | str, output_type: str) -> None:
        if denoise not in (True, False, "whole"):
            raise ValueError(f"`denoise` must be True, False or 'whole', found {denoise!r}.")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"`threshold` must be a number, found {threshold}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be one of ('pil', 'np', 'pt'), found {output_type!r}.")

    @staticmethod
    def _draw_seeds(count: int, generator: torch.Generator | None) -> list[int]:
        """Seeds of the detail of so many images; without a generator the same at every call."""
        if generator is None:
            return [0] * count
        return torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()

    def judging_levels(
        self, alpha: float, timesteps: Sequence[int], pixel_score: str, feature_score: str, threshold: float | None
    ) -> tuple[float, float]:
        """The threshold, given, stored or measured, and how low a defect region may reach.

        Raises:
            ValueError: if there is none: the pipeline stores no normal images and none is given.
        """
        measured, mask_level = self.normality.limits(alpha, timesteps, pixel_score, feature_score)
        if threshold is None:
            settings = (alpha, sorted(timesteps), pixel_score, feature_score)
            stored = (self.config.alpha, sorted(self.timesteps), "kl", self.config.feature_score)
            threshold = self.config.threshold if settings == stored else None
            threshold = measured if threshold is None else threshold
        if threshold is None:
            raise ValueError("This pipeline stores no normal images to measure a threshold on: give a `threshold`.")
        return threshold, min(threshold, threshold / 2 if mask_level is None else mask_level)

    @plainly
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput] | DDADScores,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        threshold: float | None = None,
        denoise: bool | Literal["whole"] = True,
        num_denoising_steps: int | None = None,
        pixel_score: PixelScore | None = None,
        feature_score: FeatureScore | None = None,
        batch_size: int = 4,
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDADPipeline", int, int, dict[str, Any]], dict[str, Any] | None]
        | None = None,
    ) -> DDADPipelineOutput | tuple:
        """Finds and removes the defects of one or many images.

        Args:
            image: a path, PIL image, array or tensor, or a list of them, of any size; see `DDADImageProcessor`. Or
                what `score` gave for them, whose noise and kind of scores then hold.
            alpha: weight of the pixel score in [0, 1]; None takes the pipeline's.
            timesteps: which of the pipeline's noise levels score; None takes all.
            threshold: score above which an image is anomalous; None takes the pipeline's, for the given alpha,
                timesteps and scores.
            denoise: whether to make the image without its defects. True repairs what the anomaly map marks
                and leaves an image without defects as it is; `"whole"` is the paper's form.
            num_denoising_steps: the most gradient steps; None takes `most_gradient_steps`.
            pixel_score: `"kl"` measures it whatever its weight; None where it weighs something.
            feature_score: `"appearance"`, how unusual the features themselves are; `"mahalanobis"`, how unusual the
                error of the U-Net's prediction of them; `"sum"`, the mean of both; None takes the pipeline's.
            batch_size: images in one evaluation of the networks; it changes memory and speed alone.
            generator: source of the noise; None takes the same noise at every call. What `score` gave has its noise
                already: then it is the source for denoising alone.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: whether to return a `DDADPipelineOutput` or a tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"image": ...})` after each step of
                denoising, with the images that are being repaired, `[N, 3, S, S]` in [-1, 1].

        Raises:
            TypeError, ValueError: for images that cannot be read and arguments that make no sense, before any work.
        """
        # 1. Check inputs
        given = image if isinstance(image, DDADScores) else None
        if given is not None:
            for name, wanted in (("pixel_score", pixel_score), ("feature_score", feature_score)):
                if wanted not in (None, getattr(given, name)):
                    raise ValueError(f"`{name}` is {wanted!r}, and the scores given are of {getattr(given, name)!r}.")
            if generator is not None and not denoise:
                raise ValueError("`generator` has no use: the scores given have their noise, and nothing is denoised.")
            pixel_score, feature_score = given.pixel_score, given.feature_score
        feature_score = feature_score or self.config.feature_score
        alpha = self.config.alpha if alpha is None else alpha
        unseen = self._is_unseen(alpha, pixel_score, feature_score) if given is None else given.pixel_maps is None
        pixel_score = pixel_score or "kl"
        if given is not None and unseen and alpha > 0:
            raise ValueError("The pixel score was not evaluated: give `score` a `pixel_score` to weigh it.")
        if timesteps is None:
            timesteps = self.timesteps if given is None else given.timesteps
        timesteps = list(timesteps)
        self.normality.check(alpha, timesteps, pixel_score, feature_score)
        self._check_counts(num_denoising_steps=num_denoising_steps, batch_size=batch_size)
        self._check_forms(threshold, denoise, output_type)
        threshold, mask_level = self.judging_levels(alpha, timesteps, pixel_score, feature_score, threshold)
        originals = self.image_processor.read_images(image) if given is None else given.images
        noise = None if given is not None else self.get_noise(timesteps, generator)  # one for all batches
        seeds = self._draw_seeds(len(originals), generator)

        image_scores: list[float] = []
        intermediates: list[list[Any]] = []
        distances: list[tuple[float, float] | None] = []
        refiner = None if denoise == "whole" else self.refiner
        drawing = DDADDrawing(self.image_processor, originals, threshold, output_type, refiner=refiner, seeds=seeds)
        for first in range(0, len(originals), batch_size):
            chosen = slice(first, first + batch_size)
            batch = originals[chosen]

            # 2. Score: one evaluation of the U-Net for all noise levels, pixels and features
            if given is None:
                assert noise is not None
                names = [feature_score] if unseen else [pixel_score, feature_score]
                maps = self.calibrated_maps(batch, timesteps, noise, *names)
                pixel, feature = maps[0], maps[-1]  # of weight zero, the first may be any
            else:
                scores = given.select(chosen, timesteps)
                feature = scores.feature_maps  # [N, K, S, S]
                pixel = feature if scores.pixel_maps is None else scores.pixel_maps

            # 3. Fuse
            anomaly = self.normality.fuse(pixel, feature, alpha)  # [N, S, S]
            batch_scores = self.normality.image_score(anomaly).tolist()
            image_scores += batch_scores
            drawing.maps += torch.stack([anomaly, pixel.mean(dim=1), feature.mean(dim=1)], dim=1)

            # 4. Denoise what lies above the threshold, or all of the image
            if denoise:
                maps = anomaly[:, None].to(self._execution_device)
                mask = torch.ones_like(maps)  # [N, 1, S, S]
                if denoise != "whole":
                    # Single cells of a good image may lie above the threshold: its score is the mean of the highest.
                    found = torch.tensor([score > threshold for score in batch_scores], device=maps.device)
                    seeds = (found.view(-1, 1, 1, 1) & (self.normality.pool(maps) > threshold)).float()
                    mask = self.denoiser.defect_mask(seeds, maps, mask_level)
                whole = denoise == "whole"
                steps = num_denoising_steps or self.most_gradient_steps(whole)
                frames, moved = self.denoise(self.prepare(batch), mask, whole, steps, generator, callback_on_step_end)
                distances += moved
                intermediates += [
                    [self.image_processor.to_image(image, output_type) for image in each] for each in frames
                ]
                drawing.repaired += [each[-1] for each in frames]
                drawing.masks += mask
        self.maybe_free_model_hooks()

        # 5. What is shown, each at its image's own size when it is read
        def results(draw: Callable[[int], Any]) -> DDADResults:
            return DDADResults(draw, len(originals))

        output = DDADPipelineOutput(
            image_score=image_scores,
            threshold=threshold,
            is_anomalous=[score > threshold for score in image_scores],
            anomaly_map=results(functools.partial(drawing.draw_map, 0)),
            pixel_map=None if unseen else results(functools.partial(drawing.draw_map, 1)),
            feature_map=results(functools.partial(drawing.draw_map, 2)),
            overlay=results(drawing.draw_overlay),
            denoised_image=results(drawing.draw_denoised) if denoise else None,
            intermediates=intermediates if denoise else None,
            normality_distance=distances if denoise else None,
        )
        return output if return_dict else output.to_tuple()

    # ----------------------------------------------------------------------------------------------- saving, loading

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, settings and code; see diffusers.

        Raises:
            ValueError: for `safe_serialization=False`, since weights are safetensors only, and for a `variant`: a
                checkpoint holds one precision, that of its weights.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError("Weights are saved as safetensors only: leave out `safe_serialization=False`.")
        if kwargs.get("variant") is not None:
            raise ValueError("A checkpoint has one precision: leave out `variant` and save `pipe.to(dtype)`.")
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `model_index.json`, and the code of the pipeline and its components.

        With the code in the folder, `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads it where
        this package is not installed.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        index_path = folder / self.config_name
        index = json.loads(index_path.read_text(encoding="utf-8"))
        index.pop("_name_or_path", None)
        index["_class_name"] = ["pipeline", type(self).__name__]
        self._write_code(folder / "pipeline.py", self.source_code)
        for name, (module, class_name) in self.component_classes.items():
            if getattr(self, name) is None:
                continue
            index[name] = [module, class_name]
            (folder / name).mkdir(parents=True, exist_ok=True)
            self._write_code(folder / name / f"{module}.py", getattr(self, name).source_code)
            for path in (folder / name).glob("*config.json"):
                config = json.loads(path.read_text(encoding="utf-8"))
                if config.pop("_name_or_path", None) is not None:
                    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def _write_code(path: Path, source: str) -> None:
        """Writes a file of code; a link to the same code stays, any other is replaced and never written through."""
        if path.is_symlink():
            if path.is_file() and path.read_text(encoding="utf-8") == source:
                return
            path.unlink()
        path.write_text(source, encoding="utf-8")

    @classmethod
    def from_pipe(cls, pipeline: "DDADPipeline", **kwargs: Any) -> "DDADPipeline":
        """A second pipeline on the same networks, which take no more memory.

        Args:
            pipeline: the first.
            kwargs: arguments of `__init__` that replace those of the first: `alpha`, `threshold`, a component.
        """
        names = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in pipeline.config.items() if name in names}
        return cls(**{**settings, **pipeline.components, **kwargs})
