"""The pipeline: an image in; anomaly map, verdict and the image without its defects out.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023). This file is
published with every checkpoint, so it imports third-party packages only; what else it needs is a component.
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import ModelCard

ImageInput = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor
PixelScore = Literal["kl"]
FeatureScore = Literal["appearance", "residual", "gaussians", "memory", "sum"]
Tolerance = Literal["strict", "tolerant"]
# What a repository is found by on the Hub.
TAGS = ("ddad", "anomaly-detection")


def in_own_types(method: Callable) -> Callable:
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
            anomalous of 32x32 cells of the anomaly map, one unless the pipeline's calibration says otherwise.
        threshold: the score above which an image is called anomalous.
        is_anomalous: whether `image_score` is above `threshold`.
        anomaly_map: `[H, W]` float32, the weighted mean of pixel and feature map, zero for an average normal pixel
            and outside of the region that is looked at.
        pixel_map: `[H, W]` float32, the calibrated pixel-level score (KL divergence), mean over the noise levels; None
            where it weighs nothing and was not asked for: the U-Net was not evaluated then.
        feature_map: `[H, W]` float32, the calibrated feature-level score, mean over the noise levels.
        overlay: the image under the heatmap, on a scale fixed by the threshold: a normal part shows no colour. What
            is not looked at is hatched.
        denoised_image: the image without its defects; the image itself where none were found; None if not asked for.
        intermediates: the denoising steps of each image from the image itself to the last, at the model's size;
            a single entry where no defect was found; None if not asked for.
        normality_distance: (before, after) of the distance that gradient denoising lowers, averaged over the repaired
            region, before a refiner adds detail; None for an image without defects. Normal is the root of the
            dimensions modelled: 8 of 64.
        region: where was looked, `[H, W]` bool.

    Images are PIL images, arrays `[H, W, 3]` or tensors `[3, H, W]` in [0, 1] by `output_type`; maps are tensors for
    `"pt"` and arrays otherwise. What has an image's own size is computed when it is read.
    """

    image_score: list[float]
    threshold: float
    is_anomalous: list[bool]
    anomaly_map: Sequence[Any]
    pixel_map: Sequence[Any] | None
    feature_map: Sequence[Any]
    overlay: Sequence[Any]
    denoised_image: Sequence[Any] | None
    intermediates: Sequence[list[Any]] | None
    normality_distance: list[tuple[float, float] | None] | None
    region: Sequence[Any]


@dataclass
class DDADScores:
    """Images and their calibrated score maps: all that the networks have to say of them before anything is repaired.

    Given to the pipeline in place of the images, they are fused and judged anew with another `alpha`, `threshold` or
    fewer `timesteps`, and no network is evaluated for it.

    Attributes:
        images: the images as the image processor reads them, `[3, H, W]` in [0, 1] each, of their own sizes.
        prepared: what the U-Net saw of them, `[N, 3, S, S]` in [-1, 1]; None where it was not evaluated.
        pixel_maps: `[N, K, S, S]` float32, in standard deviations of normal images; None where they weigh nothing.
        feature_maps: likewise.
        timesteps: the K noise levels.
        feature_score: the feature score's name.
        inside: where is looked at, `[N, 1, S, S]` of ones and zeros; None for everywhere.
    """

    images: Sequence[torch.Tensor]
    prepared: torch.Tensor | None
    pixel_maps: torch.Tensor | None
    feature_maps: torch.Tensor
    timesteps: list[int]
    feature_score: str
    inside: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, timesteps: Sequence[int]) -> "DDADScores":
        """The same at some of the noise levels.

        Raises:
            ValueError: for a noise level that was not scored.
        """
        unknown = [timestep for timestep in timesteps if timestep not in self.timesteps]
        if unknown:
            raise ValueError(f"`timesteps` {unknown} were not scored; choose from {self.timesteps}.")
        index = [self.timesteps.index(timestep) for timestep in timesteps]
        return replace(
            self,
            pixel_maps=None if self.pixel_maps is None else self.pixel_maps[:, index],
            feature_maps=self.feature_maps[:, index],
            timesteps=list(timesteps),
        )


@dataclass(frozen=True)
class DDADVerdict:
    """What was found, at the model's size.

    Attributes:
        anomaly_maps: `[N, S, S]`.
        image_score: of each.
        threshold: above it an image is anomalous.
        mask_level: how low a defect region reaches from the cells above the threshold.
        inside: where is looked at, `[N, 1, S, S]` of ones and zeros; None for everywhere.
    """

    anomaly_maps: torch.Tensor
    image_score: list[float]
    threshold: float
    mask_level: float
    inside: torch.Tensor | None = None

    @property
    def is_anomalous(self) -> list[bool]:
        """Of each."""
        return [score > self.threshold for score in self.image_score]


class DDADPipeline(DiffusionPipeline):
    """Finds defects with a diffusion model of normal images and removes them by gradient denoising.

    Args:
        unet: the denoising U-Net (`DDADUNet2DModel`).
        scheduler: the diffusion process and its pixel scores (`DDADScheduler`).
        feature_extractor: the frozen backbone (`DDADFeatureExtractor`).
        residual: Gaussians of the error of the U-Net's prediction of its features (`DDADGaussianModel`).
        appearance_extractor: the backbone whose features themselves are judged, at an image size of its own.
        appearance: Gaussians of those (`DDADGaussianModel`).
        calibration: noise levels, units of the scores, threshold (`DDADCalibration`).
        denoiser: how a defect is removed (`DDADDenoiser`).
        image_processor: reads images (`DDADImageProcessor`).
        renderer: draws results (`DDADRenderer`).
        refiner: adds detail to repairs at the photographs' own size (`DDADRefiner`); None leaves them as smooth as the
            U-Net predicts them.
        memory: patches of good images' features (`DDADMemory`), the other part of how unusual an image looks; None
            judges appearance by its Gaussians alone.
        category: the product that the model was trained on.
        alpha: weight of the pixel score against the feature score; 0.5 in the paper.
        threshold: the image score above which an image is anomalous; None measures it on the held-out normal images
            that are stored in `calibration`, for any `alpha` and `timesteps`.
        blur_sigma: standard deviation in pixels of the Gaussian that smoothes the score maps.
        feature_score: the feature score that is weighed against the pixel score; see a call.
        tolerance: what the threshold makes room for, `"strict"` or `"tolerant"`; see a call.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")
    component_classes = {
        "unet": ("unet_ddad", "DDADUNet2DModel"),
        "scheduler": ("scheduling_ddad", "DDADScheduler"),
        "feature_extractor": ("features_ddad", "DDADFeatureExtractor"),
        "residual": ("gaussians_ddad", "DDADGaussianModel"),
        "appearance_extractor": ("features_ddad", "DDADFeatureExtractor"),
        "appearance": ("gaussians_ddad", "DDADGaussianModel"),
        "calibration": ("calibration_ddad", "DDADCalibration"),
        "denoiser": ("denoising_ddad", "DDADDenoiser"),
        "image_processor": ("images_ddad", "DDADImageProcessor"),
        "renderer": ("rendering_ddad", "DDADRenderer"),
        "refiner": ("refining_ddad", "DDADRefiner"),
        "memory": ("memory_ddad", "DDADMemory"),
    }
    _optional_components = ["refiner", "memory"]  # noqa: RUF012 - the form that diffusers asks for
    model_cpu_offload_seq = "appearance_extractor->feature_extractor->unet->refiner"
    # Small, and not always called through its `forward`, which is where offloading would bring it to the device.
    _exclude_from_cpu_offload = ["residual", "appearance", "memory", "calibration"]  # noqa: RUF012

    def __init__(  # type: ignore[no-untyped-def]  # diffusers compares annotations with what it loads
        self,
        unet,
        scheduler,
        feature_extractor,
        residual,
        appearance_extractor,
        appearance,
        calibration,
        denoiser,
        image_processor,
        renderer,
        refiner=None,
        memory=None,
        category: str = "",
        alpha: float = 0.5,
        threshold: float | None = None,
        blur_sigma: float = 4.0,
        feature_score: str = "residual",
        tolerance: str = "strict",
    ):
        super().__init__()
        if not hasattr(scheduler, "pixel_maps"):
            raise TypeError(
                f"`scheduler` must be a DDADScheduler, which measures pixel scores, found {type(scheduler).__name__}."
            )
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            residual=residual,
            appearance_extractor=appearance_extractor,
            appearance=appearance,
            calibration=calibration,
            denoiser=denoiser,
            image_processor=image_processor,
            renderer=renderer,
            refiner=refiner,
            memory=memory,
        )
        self.register_to_config(
            category=category,
            alpha=alpha,
            threshold=threshold,
            blur_sigma=blur_sigma,
            feature_score=feature_score,
            tolerance=tolerance,
        )
        self._check_weights()
        self._check_agreement()

    def _check_weights(self) -> None:
        """Raises a ValueError for a weight that is missing or damaged."""
        networks = {name: one for name, one in self.components.items() if isinstance(one, torch.nn.Module)}
        for name, network in networks.items():
            for key, value in network.state_dict().items():
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
            "residual": self.residual.config.feature_channels,
        }
        if len(set(channels.values())) > 1:
            raise ValueError(f"The components do not belong together: their feature channels are {channels}.")
        seen, judged = self.appearance_extractor.feature_channels, self.appearance.config.feature_channels
        if seen != judged:
            raise ValueError(f"The appearance's components do not belong together: channels {seen} and {judged}.")
        if self.memory is not None and self.memory.config.num_channels != self.appearance.config.num_channels:
            raise ValueError("The appearance's components do not belong together: `memory` has other channels.")
        if self.memory is None and self.calibration.config.statistics and "memory" in self.calibration.scores:
            raise ValueError("The calibration was measured with a `memory`, which is missing.")
        if self.config.feature_score not in self.calibration.feature_scores:
            raise ValueError(f"`feature_score` must be one of {self.calibration.feature_scores}.")
        if self.config.tolerance not in self.calibration.tolerances:
            raise ValueError(f"`tolerance` must be one of {self.calibration.tolerances}.")
        if self.calibration.config.calibration_size > self.unet.config.sample_size:
            raise ValueError("`calibration_size` of calibration must not exceed the `sample_size` of the U-Net.")
        last, count = self.denoiser.last_step, self.scheduler.config.num_inference_steps
        if last >= count:
            raise ValueError(f"The denoiser uses step {last}, and there are {count}: raise `num_inference_steps`.")
        self.scheduler.alpha_bars(torch.tensor(self.timesteps))

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that score images, as timesteps of the training process."""
        return list(self.calibration.config.timesteps)

    @property
    def threshold(self) -> float | None:
        """The threshold for the stored `alpha` and `timesteps`; None if the pipeline is not calibrated."""
        if self.config.threshold is not None or self.calibration.config.statistics is None:
            return self.config.threshold
        return self.calibration.threshold(self.judgement())

    @property
    def inside(self) -> torch.Tensor | None:
        """The pipeline's own region at the model's size, `[1, 1, S, S]` of ones and zeros; None for everywhere."""
        inside = self.calibration.inside(self.unet.config.sample_size)
        return None if inside is None else inside.cpu()

    def with_region(self, region: ImageInput | None) -> "DDADPipeline":
        """A pipeline of the same components that looks at a part of the picture alone.

        Its threshold follows at once from what is stored of held-out good images inside it. `ddad calibrate --region`
        fits the statistics to what is inside too.

        Args:
            region: an image that is white where it is looked at; see a call. None looks everywhere.

        Raises:
            TypeError, ValueError: for what is no such image, and a region that is too small.
        """
        size, mask = self.unet.config.sample_size, None
        if region is not None:
            inside = self.image_processor.read_region(region)
            mask = self.image_processor.read_regions(inside, [tuple(inside.shape)], size)[0, 0]
        return self.with_components(calibration=self.calibration.with_region(mask))

    def with_components(self, **changed: Any) -> "DDADPipeline":
        """A pipeline of the same components and settings but those given; `from_pipe` knows none of remote code."""
        components = {**self.components, **changed}
        settings = {
            name: value for name, value in self.config.items() if not name.startswith("_") and name not in components
        }
        pipe = type(self)(**components, **settings)
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipe

    # ------------------------------------------------------------------------------------ a call: score, judge, repair

    @in_own_types
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
        tolerance: Tolerance | None = None,
        region: ImageInput | Sequence[ImageInput] | None = None,
        false_alarms: float | None = None,
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
            num_denoising_steps: the most gradient steps; None takes the denoiser's.
            pixel_score: `"kl"` measures it whatever its weight; None where it weighs something.
            feature_score: `"appearance"`, how unusual the features themselves are, by Gaussians and by remembered
                patches (`"gaussians"` or `"memory"` alone); `"residual"`, how unusual the error of the U-Net's
                prediction of features is; `"sum"`, the mean of appearance and residual; None takes the pipeline's.
            tolerance: what a measured threshold makes room for: `"strict"`, photographs like the good ones that it was
                measured on; `"tolerant"`, also parts that lie elsewhere or under another lamp; None takes the
                pipeline's.
            region: where to look: an image of each image's height and width, or of its aspect ratio, that is white
                there and black where nothing may decide, one for all or one for each. It narrows the pipeline's own
                region, and does not change the threshold. Features see a sixteenth of the picture far, so what must
                not decide needs a margin. What `score` gave has its region already.
            false_alarms: the part of good images that may be called anomalous, in (0, 0.5], from which the threshold
                follows by the held-out good images; in place of `threshold`.
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
        given = image if isinstance(image, DDADScores) else None
        judgement = self.judgement(alpha, timesteps, pixel_score, feature_score, tolerance, given)
        self._check_options(threshold, denoise, num_denoising_steps, batch_size, output_type)
        if given is not None and region is not None:
            raise ValueError("`region` comes too late: the scores given were measured. Give it to `score`.")
        if given is not None and generator is not None and not denoise:
            raise ValueError("`generator` has no use: the scores given have their noise, and nothing is denoised.")
        if false_alarms is not None:
            if threshold is not None:
                raise ValueError("Give `threshold` or `false_alarms`: each says where the other lies.")
            threshold = self.calibration.threshold(judgement, false_alarms)
        levels = self._judging_levels(judgement, threshold)

        if given is None:
            scores = self._score(self.image_processor.read_images(image), judgement, region, batch_size, generator)
        else:
            scores = given.select(judgement.timesteps)
        verdict = self._judge(scores, judgement.alpha, levels)
        drawing = self.renderer.draw(scores.images, output_type)
        repaired: dict[str, Any] = {}
        if denoise:
            steps = num_denoising_steps or self.denoiser.gradient_steps(denoise == "whole", self.refiner is not None)
            arguments = (denoise == "whole", steps, batch_size, generator, callback_on_step_end)
            repaired = self._repair(scores, verdict, drawing, *arguments)
        self.maybe_free_model_hooks()
        pixel = scores.pixel_maps
        output = DDADPipelineOutput(
            image_score=verdict.image_score,
            threshold=verdict.threshold,
            is_anomalous=verdict.is_anomalous,
            anomaly_map=drawing.maps(verdict.anomaly_maps),
            pixel_map=None if pixel is None else drawing.maps(pixel.mean(dim=1)),
            feature_map=drawing.maps(scores.feature_maps.mean(dim=1)),
            overlay=drawing.overlays(verdict.anomaly_maps, verdict.threshold, verdict.inside),
            denoised_image=repaired.get("denoised_image"),
            intermediates=repaired.get("intermediates"),
            normality_distance=repaired.get("normality_distance"),
            region=drawing.regions(verdict.inside),
        )
        return output if return_dict else output.to_tuple()

    @in_own_types
    def score(
        self,
        image: ImageInput | Sequence[ImageInput],
        timesteps: Sequence[int] | None = None,
        pixel_score: PixelScore | None = None,
        feature_score: FeatureScore | None = None,
        region: ImageInput | Sequence[ImageInput] | None = None,
        batch_size: int = 4,
        generator: torch.Generator | None = None,
    ) -> DDADScores:
        """The calibrated score maps of one or many images: the first part of a call, to be judged more than once.

        Args: as for a call. Where the pipeline's own alpha is 0 and no pixel score is asked for, there is none, and
            the scores cannot be judged with another alpha.

        Raises:
            TypeError, ValueError: as a call.
        """
        judgement = self.judgement(None, timesteps, pixel_score, feature_score)
        self._check_options(batch_size=batch_size)
        scores = self._score(self.image_processor.read_images(image), judgement, region, batch_size, generator)
        self.maybe_free_model_hooks()
        return scores

    def judgement(
        self,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        pixel_score: str | None = None,
        feature_score: str | None = None,
        tolerance: str | None = None,
        given: DDADScores | None = None,
    ) -> Any:
        """What a verdict is made of (`DDADJudgement`): the arguments of a call, and the pipeline's own for the others.

        Args:
            alpha: as for a call, and what follows too.
            timesteps: noise levels.
            pixel_score: its name.
            feature_score: its name.
            tolerance: its name.
            given: scores that are judged, whose kind and noise levels hold.

        Raises:
            ValueError: for arguments that make no sense, or that the scores given are not of.
        """
        if given is not None and feature_score not in (None, given.feature_score):
            raise ValueError(
                f"`feature_score` is {feature_score!r}, and the scores given are of {given.feature_score!r}."
            )
        own = self if given is None else given
        judgement = self.calibration.judgement(
            self.config.alpha if alpha is None else alpha,
            list(own.timesteps if timesteps is None else timesteps),
            pixel_score,
            feature_score or (self.config.feature_score if given is None else given.feature_score),
            tolerance or self.config.tolerance,
        )
        if given is not None and given.pixel_maps is None and (judgement.alpha > 0 or pixel_score is not None):
            raise ValueError("The pixel score was not evaluated: give `score` a `pixel_score` to weigh it.")
        return judgement

    @staticmethod
    def _check_options(
        threshold: float | None = None,
        denoise: bool | str = True,
        num_denoising_steps: int | None = None,
        batch_size: int = 1,
        output_type: str = "pil",
    ) -> None:
        for name, count in (("num_denoising_steps", num_denoising_steps), ("batch_size", batch_size)):
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1, found {count}.")
        if denoise not in (True, False, "whole"):
            raise ValueError(f"`denoise` must be True, False or 'whole', found {denoise!r}.")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"`threshold` must be a number, found {threshold}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be one of ('pil', 'np', 'pt'), found {output_type!r}.")

    # ------------------------------------------------------------------------------------------------------- 1. score

    def _score(
        self,
        images: Sequence[torch.Tensor],
        judgement: Any,
        region: ImageInput | Sequence[ImageInput] | None,
        batch_size: int,
        generator: torch.Generator | None,
    ) -> DDADScores:
        inside = self._inside(images, region)
        ask = self._ask_unet(judgement.scores)
        noise = self.get_noise(judgement.timesteps, generator) if ask else None  # one for all batches
        prepared: list[torch.Tensor] = []
        maps = []
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            seen = self.prepare(batch) if ask else None
            prepared += [] if seen is None else [seen]
            part = None if inside is None else inside[first : first + batch_size]
            maps.append(self.calibrated_maps(batch, judgement.timesteps, noise, judgement.scores, seen, part))
        together = [torch.cat(parts) for parts in zip(*maps, strict=True)]  # [N, K, S, S] each
        return DDADScores(
            images,
            torch.cat(prepared) if prepared else None,
            None if judgement.pixel_score is None else together[0],
            together[-1],
            list(judgement.timesteps),
            judgement.feature_score,
            inside,
        )

    def _inside(
        self, images: Sequence[torch.Tensor], region: ImageInput | Sequence[ImageInput] | None
    ) -> torch.Tensor | None:
        """Where is looked at, `[N, 1, S, S]` of ones and zeros; None for everywhere."""
        own = self.inside
        if region is None:
            return None if own is None else own.expand(len(images), -1, -1, -1)
        sizes = [tuple(image.shape[1:]) for image in images]
        given = self.image_processor.read_regions(region, sizes, self.unet.config.sample_size)
        inside = given if own is None else given * own
        self.calibration.check_region(inside)
        return inside

    def _ask_unet(self, scores: Sequence[str]) -> bool:
        return not self._parts(scores).isdisjoint(self.calibration.network_scores)

    def _parts(self, scores: Sequence[str]) -> set[str]:
        """The measured scores that some scores are made of."""
        return set().union(*map(self.calibration.weights, scores))

    def calibrated_maps(
        self,
        images: Sequence[torch.Tensor],
        timesteps: Sequence[int],
        noise: torch.Tensor | None,
        scores: Sequence[str],
        prepared: torch.Tensor | None = None,
        inside: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """The calibrated maps of images `[3, H, W]` in [0, 1], one for each of `scores`, `[N, K, S, S]` each.

        Args:
            images: as they were read.
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`; None takes that of `get_noise` where the U-Net is asked.
            scores: the names of the maps.
            prepared: what the U-Net sees of the images, where that is at hand.
            inside: where is looked at, `[N, 1, S, S]` of ones and zeros; None takes the pipeline's own region.
        """
        measured = self._parts(scores)
        inside = self._inside(images, None) if inside is None else inside
        maps: dict[str, torch.Tensor] = {}
        if self._ask_unet(scores):
            prepared = self.prepare(images) if prepared is None else prepared
            noise = self.get_noise(timesteps) if noise is None else noise
            asked = measured.intersection(self.calibration.network_scores)
            maps |= self.score_maps(prepared, timesteps, noise, asked, inside)
        if looks := measured.intersection(self.calibration.look_scores):
            maps |= self.appearance_maps(images, looks, inside)
        calibrated = {
            name: self.calibration.standardise(name, maps[name], timesteps).cpu().expand(-1, len(timesteps), -1, -1)
            for name in measured
        }
        return [self.calibration.combine(name, calibrated) for name in scores]

    @torch.no_grad()
    def score_maps(
        self,
        images: torch.Tensor,
        timesteps: Sequence[int],
        noise: torch.Tensor,
        scores: set[str],
        inside: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The score maps before calibration, smoothed, at the model's size; one evaluation of the U-Net for all.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`.
            scores: the names of the maps to compute: `kl` (see `DDADScheduler.pixel_maps`) and `residual` (see
                `DDADGaussianModel`).
            inside: where is looked at; see `smooth`.

        Returns:
            The maps by name, `[N, K, S, S]` each.
        """
        originals, noisy, levels, output, predicted = self.predict_at(images, timesteps, noise)
        maps = self.scheduler.pixel_maps(originals, noisy, output, levels, scores)
        if "residual" in scores:
            residuals = self.extract_features(images).repeat_interleave(len(timesteps), dim=0) - predicted
            each = [residuals] if inside is None else residuals.split(len(timesteps))
            where = self._positions(self.residual, inside, len(each))
            maps["residual"] = torch.cat([self.residual(*pair) for pair in zip(each, where, strict=True)])
        by_level = {name: value.view(len(images), len(timesteps), *value.shape[-2:]) for name, value in maps.items()}
        return {name: self.smooth(value, inside) for name, value in by_level.items()}

    def appearance_maps(
        self, images: Sequence[torch.Tensor], scores: set[str], inside: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """How unusual images `[3, H, W]` in [0, 1] look, without the U-Net; smoothed, `[N, 1, S, S]` by name.

        Args:
            images: as they were read.
            scores: `appearance`, by its Gaussians, `memory`, or both.
            inside: where is looked at; see `smooth`.
        """
        found: dict[str, list[torch.Tensor]] = {name: [] for name in scores}
        measure: dict[str, Callable] = {"appearance": self.appearance.distance}
        if self.memory is not None:
            measure["memory"] = lambda reduced, _: self.memory.distance(
                reduced
            )  # positions know nothing of each other
        for image, where in zip(images, self._positions(self.appearance, inside, len(images)), strict=True):
            reduced = self.appearance.reduce(self.extract_appearance(self.prepare_appearance([image])))
            for name, distances in found.items():
                distances.append(self.appearance.to_map(measure[name](reduced, where)))
        return {name: self.smooth(torch.cat(distances), inside) for name, distances in found.items()}

    def _positions(self, model: Any, inside: torch.Tensor | None, count: int) -> list[torch.Tensor | None]:
        """Which positions of a component's grid are looked at of each image, `[P]` bool; None for all."""
        if inside is None:
            return [None] * count
        covered = self.calibration.covered(inside, model.config.grid_size).flatten(1) > 0
        return list(covered.expand(count, -1))

    def prepare(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images `[3, H, W]` in [0, 1] of any size -> what the U-Net sees, `[N, 3, S, S]` in [-1, 1]."""
        return self._prepare(images, self.unet.config.sample_size)

    def prepare_appearance(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images `[3, H, W]` in [0, 1] of any size -> what appearance is judged by, `[N, 3, L, L]` in [-1, 1]."""
        return self._prepare(images, self.appearance_extractor.config.image_size)

    def _prepare(self, images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
        return torch.cat([self.image_processor.preprocess(image, size) for image in images]).to(self._execution_device)

    def get_noise(self, timesteps: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """One noise image for each timestep, `[K, 3, S, S]`, the same for every image; see the scheduler."""
        shape = (3, self.unet.config.sample_size, self.unet.config.sample_size)
        return self.scheduler.get_noise(timesteps, shape, generator, self._execution_device)

    def extract_features(self, images: torch.Tensor) -> torch.Tensor:
        """F(x): features of `[N, 3, S, S]` in [-1, 1], float32 `[N, C, h, w]`."""
        return self.feature_extractor(images.to(self.feature_extractor.dtype)).float()

    @torch.no_grad()
    def extract_appearance(self, images: torch.Tensor) -> torch.Tensor:
        """Features of `[N, 3, L, L]` in [-1, 1], float32 `[N, C, h, w]`."""
        return self.appearance_extractor(images.to(self.appearance_extractor.dtype)).float()

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
        levels = torch.tensor(list(timesteps), device=images.device).repeat(images.shape[0])  # [N * K]
        originals = images.repeat_interleave(len(timesteps), dim=0)  # [N * K, 3, S, S]
        noisy = self.scheduler.add_noise(originals, noise.repeat(images.shape[0], 1, 1, 1), levels)
        output = self.unet(noisy.to(self.unet.dtype), levels)
        grid = (self.feature_extractor.config.grid_size,) * 2
        features = F.interpolate(output.features.float(), size=grid, mode="bilinear", align_corners=False)
        return originals, noisy, levels, output.sample.float(), features

    def smooth(self, maps: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """Maps on any square grid, `[N, C, g, g]` -> smoothed, `[N, C, S, S]`.

        Args:
            maps: of scores.
            inside: where is looked at, `[N or 1, 1, S, S]` of ones and zeros; None for everywhere. Means are of what
                lies inside: positions outside weigh nothing.
        """
        size = (self.unet.config.sample_size,) * 2

        def blurred(values: torch.Tensor) -> torch.Tensor:
            return self.image_processor.blur(self.image_processor.resize(values, size), self.config.blur_sigma)

        if inside is None:
            return blurred(maps)
        weights = self.calibration.covered(inside.to(maps), maps.shape[-1])
        return blurred(maps * weights) / blurred(weights).clamp(min=1e-3)

    # ------------------------------------------------------------------------------------------------------- 2. judge

    def _judging_levels(self, judgement: Any, threshold: float | None) -> tuple[float, float]:
        """The threshold, given, stored or measured, and how low a defect region may reach.

        Raises:
            ValueError: if there is none: the pipeline stores no normal images and none is given.
        """
        if threshold is None and judgement == self.judgement(pixel_score=judgement.pixel_score):
            threshold = self.config.threshold
        threshold = self.calibration.threshold(judgement) if threshold is None else threshold
        if threshold is None:
            raise ValueError("This pipeline stores no normal images to measure a threshold on: give a `threshold`.")
        mask_level = self.calibration.mask_level(judgement)
        return threshold, min(threshold, threshold / 2 if mask_level is None else mask_level)

    def _judge(self, scores: DDADScores, alpha: float, levels: tuple[float, float]) -> DDADVerdict:
        pixel = scores.feature_maps if scores.pixel_maps is None else scores.pixel_maps  # of weight zero, any will do
        anomaly_maps = self.calibration.fuse(pixel, scores.feature_maps, alpha)
        if not torch.isfinite(anomaly_maps).all():
            raise ValueError("The scores are no numbers: weights of the checkpoint are damaged. Download it again.")
        inside = scores.inside
        if inside is not None:
            anomaly_maps = anomaly_maps * inside[:, 0]
        image_score = self.calibration.image_score(anomaly_maps, inside)
        return DDADVerdict(anomaly_maps, image_score.tolist(), *levels, inside)

    # ------------------------------------------------------------------------------------------------------ 3. repair

    def _repair(
        self,
        scores: DDADScores,
        verdict: DDADVerdict,
        drawing: Any,
        whole: bool,
        num_steps: int,
        batch_size: int,
        generator: torch.Generator | None,
        callback: Callable | None,
    ) -> dict[str, Any]:
        """The part of the output that is asked for by `denoise`."""
        masks = self._defect_masks(verdict, whole)
        refiner = None if whole else self.refiner
        frames: dict[int, list[torch.Tensor]] = {}
        distances: dict[int, tuple[float, float]] = {}
        # Without a generator the detail is the same at every call.
        seeds = [0] * len(scores)
        if generator is not None:
            seeds = torch.randint(2**31, (len(scores),), generator=generator, device=generator.device).tolist()
        for first in range(0, len(scores), batch_size):
            chosen = [i for i in range(first, min(first + batch_size, len(scores))) if masks[i].any()]
            if chosen:
                images = self._prepared(scores, chosen)
                arguments = (masks[chosen].to(images.device), whole, num_steps, generator, callback)
                films, moved = self.denoise(images, *arguments)
                frames.update(zip(chosen, films, strict=True))
                distances.update(zip(chosen, moved, strict=True))

        def film(index: int) -> list[torch.Tensor]:
            return frames[index] if index in frames else [(self._prepared(scores, [index])[0] + 1) / 2]

        return {
            "denoised_image": drawing.normal_versions(lambda index: film(index)[-1], masks, refiner, seeds),
            "intermediates": drawing.films(film),
            "normality_distance": [distances.get(index) for index in range(len(scores))],
        }

    def _prepared(self, scores: DDADScores, chosen: Sequence[int]) -> torch.Tensor:
        if scores.prepared is None:
            return self.prepare([scores.images[index] for index in chosen])
        return scores.prepared[list(chosen)]

    def _defect_masks(self, verdict: DDADVerdict, whole: bool) -> torch.Tensor:
        """Where to repair, `[N, 1, S, S]`: what lies above the threshold, or all of the image."""
        maps = verdict.anomaly_maps[:, None]
        inside = torch.ones_like(maps) if verdict.inside is None else verdict.inside
        if whole:
            return inside
        # Single cells of a good image may lie above the threshold: its score is the mean of the highest.
        found = torch.tensor(verdict.is_anomalous).view(-1, 1, 1, 1)
        seeds = (found & (self.calibration.pool(maps) > verdict.threshold)).float()
        return self.denoiser.defect_mask(seeds, maps, verdict.mask_level) * inside

    def denoise(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        whole: bool,
        num_steps: int,
        generator: torch.Generator | None = None,
        callback: Callable | None = None,
    ) -> tuple[list[list[torch.Tensor]], list[tuple[float, float]]]:
        """Removes the defects of a batch.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1], none of them empty.
            whole: whether to run the paper's form on whole images.
            num_steps: the most gradient steps.
            generator: source of the noise.
            callback: as `callback_on_step_end` of a call.

        Returns:
            For each image the steps `[3, S, S]` in [0, 1] from the image itself to the last, and the distance before
            and after.
        """
        networks = self.denoiser.networks(self, generator)
        if whole:
            steps: Iterator[Any] = self.denoiser.repair_whole(images, networks, num_steps)
        else:
            first = self.scheduler.timestep_of(self.denoiser.config.inpainting_steps[0])
            noise = self.get_noise([first], generator).expand_as(images)
            steps = self.denoiser.repair(images, mask, noise, networks, num_steps, self.refiner is not None)
        frames = [[(image + 1) / 2] for image in images]
        before, last = None, None
        progress = self.progress_bar(total=self.denoiser.most_steps(num_steps, whole))
        for number, last in enumerate(steps):
            before = last.distance if before is None else before
            if last.kind in ("repaint", "denoise"):
                for film, image in zip(frames, last.images, strict=True):
                    film.append((image + 1) / 2)
            if callback is not None:
                callback(self, number, networks.timestep_of(last), {"image": last.images})
            progress.update()
        progress.close()
        assert last is not None and before is not None  # every run measures both
        if last.kind == "gradient":  # the others are among the steps already
            for film, image in zip(frames, last.images, strict=True):
                film.append((image + 1) / 2)
        return frames, list(zip(before.tolist(), last.distance.tolist(), strict=True))

    # --------------------------------------------------------------------------------------------------------- saving

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
        code = {"pipeline.py": self.source_code}
        index: dict[str, Any] = {"_class_name": ["pipeline", type(self).__name__]}
        for name, (module, class_name) in self.component_classes.items():
            if getattr(self, name) is not None:
                index[name] = [module, class_name]
                code[f"{name}/{module}.py"] = getattr(self, name).source_code
        for path, source in code.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists() or (folder / path).read_text(encoding="utf-8") != source:
                (folder / path).unlink(missing_ok=True)  # a link is never written through
                (folder / path).write_text(source, encoding="utf-8")
        # Where a component was loaded from is nobody's business.
        for path in (folder / self.config_name, *folder.glob("*/*config.json")):
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("_name_or_path", None)
            values |= index if path.name == self.config_name else {}
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _upload_folder(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Uploads a saved pipeline, with the tags by which `ddad list` and its page find it in its card."""
        path = Path(working_dir) / "README.md"
        if path.is_file():
            card = ModelCard.load(path)
            own = {*TAGS, *filter(None, [self.config.category])}
            card.data.tags = sorted({*(card.data.tags or []), *own})
            card.save(path)
        return super()._upload_folder(working_dir, *args, **kwargs)
