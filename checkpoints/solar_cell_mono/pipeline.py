"""DDADPipeline: a product image in; anomaly map, verdict, and the same part without the defect out.

Source: "Removing Anomalies as Noises for Industrial Defect Localization" (Lu et al., ICCV 2023). What differs from the
paper is said where it differs.
"""

import importlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download

ImageInput = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor


@dataclass
class DDADPipelineOutput(BaseOutput):
    """What the pipeline found. Every list has one entry an image; H and W are that image's own height and width.

    Attributes:
        image_score: how anomalous the image is, in standard deviations of normal images: the mean of the most
            anomalous one of 32x32 cells of the anomaly map.
        threshold: the score above which an image is called anomalous.
        is_anomalous: whether `image_score` is above `threshold`.
        anomaly_map: `[H, W]` float32, the weighted mean of pixel and feature map, zero for an average normal pixel.
        pixel_map: `[H, W]` float32, the calibrated pixel-level score (KL divergence), mean over the noise levels.
        feature_map: `[H, W]` float32, the calibrated feature-level score, mean over the noise levels.
        overlay: the image under the heatmap, on a scale fixed by the threshold: a normal part shows no colour.
        denoised_image: the image without its defects; the image itself where none were found; None if not asked for.
        intermediates: the denoising steps of each image from the image itself to the last, at the model's size;
            a single entry where no defect was found; None if not asked for.
        normality_distance: (before, after) of the distance that gradient denoising lowers, averaged over the repaired
            region; None for an image without defects. About 10 is normal: the root of the number of channels modelled.

    Images are PIL images, arrays `[H, W, 3]` or tensors `[3, H, W]` in [0, 1] by `output_type`; maps are tensors for
    `"pt"` and arrays otherwise.
    """

    image_score: list[float]
    threshold: float
    is_anomalous: list[bool]
    anomaly_map: list[Any]
    pixel_map: list[Any]
    feature_map: list[Any]
    overlay: list[Any]
    denoised_image: list[Any] | None
    intermediates: list[list[Any]] | None
    normality_distance: list[tuple[float, float] | None] | None


@dataclass
class DDADScores:
    """Images and their calibrated score maps: all that the U-Net has to say of them before anything is repaired.

    Given to the pipeline in place of the images, they are fused and judged anew with another `alpha`, `threshold` or
    fewer `timesteps`, and no network is evaluated for it.

    Attributes:
        images: the images, `[3, H, W]` in [0, 1] each, of their own sizes.
        pixel_maps: `[N, K, S, S]` float32, in standard deviations of normal images.
        feature_maps: likewise.
        timesteps: the K noise levels.
        pixel_score: the pixel score's name.
        feature_score: the feature score's name.
    """

    images: list[torch.Tensor]
    pixel_maps: torch.Tensor
    feature_maps: torch.Tensor
    timesteps: list[int]
    pixel_score: str
    feature_score: str

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
            pixel_maps=self.pixel_maps[images][:, index],
            feature_maps=self.feature_maps[images][:, index],
            timesteps=list(timesteps),
        )


class DDADPipeline(DiffusionPipeline):
    """Finds defects with a diffusion model of normal images and removes them by gradient denoising.

    Args:
        unet: the denoising U-Net (`DDADUNet2DModel`).
        scheduler: the diffusion process (`DDADScheduler`).
        feature_extractor: the frozen backbone (`DDADFeatureExtractor`).
        normality: Gaussians of the residuals at each of `timesteps`, then one of the features themselves
            (`DDADNormalityModel`).
        category: the product that the model was trained on.
        timesteps: the noise levels that score images, as timesteps of the training process; about {20, 200, 400} of
            1000 in the paper.
        num_inference_steps: steps of the respaced process in which KL is measured; 250 in the paper.
        alpha: weight of the pixel score against the feature score; 0.5 in the paper.
        statistics: mean and standard deviation of each score on held-out normal images, one for each of `timesteps`,
            as `{"kl_mean": [...], "kl_std": [...], "rgb_mean": ...}`. Without them nothing can be scored.
        threshold: the image score above which an image is anomalous; None measures it on the held-out normal images
            that are stored in `normality`, for any `alpha` and `timesteps`.
        threshold_quantile: the part of held-out normal images that the measured threshold lets pass.
        blur_sigma: standard deviation in pixels of the Gaussian that smoothes the score maps.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")
    component_classes = {
        "unet": ("unet_ddad", "DDADUNet2DModel"),
        "scheduler": ("scheduling_ddad", "DDADScheduler"),
        "feature_extractor": ("features_ddad", "DDADFeatureExtractor"),
        "normality": ("normality_ddad", "DDADNormalityModel"),
    }
    model_cpu_offload_seq = "feature_extractor->unet->normality"

    pixel_scores = ("kl", "rgb")
    feature_scores = ("mahalanobis", "mse")
    max_pixels = 64_000_000
    min_side = 16
    inpainting_steps = (80, 62, 46, 33, 22, 13, 6)  # steps of the respaced process, down to where detail forms
    score_grid = 32  # cells a side; a cell of 8x8 pixels of 256x256 has the 64 pixels of the authors' image score

    def __init__(
        self,
        unet,
        scheduler,
        feature_extractor,
        normality,
        category: str = "",
        timesteps: list[int] | tuple[int, ...] = (20, 201, 401),
        num_inference_steps: int = 250,
        alpha: float = 0.5,
        statistics: dict[str, list[float]] | None = None,
        threshold: float | None = None,
        threshold_quantile: float = 0.95,
        blur_sigma: float = 4.0,
    ):
        super().__init__()
        for name, component in (("unet", unet), ("feature_extractor", feature_extractor), ("normality", normality)):
            self._check_weights(name, component)
        self.register_modules(unet=unet, scheduler=scheduler, feature_extractor=feature_extractor, normality=normality)
        self.register_to_config(
            category=category,
            timesteps=list(timesteps),
            num_inference_steps=num_inference_steps,
            alpha=alpha,
            statistics=statistics,
            threshold=threshold,
            threshold_quantile=threshold_quantile,
            blur_sigma=blur_sigma,
        )
        self.scheduler.set_timesteps(num_inference_steps)
        self.scheduler.alpha_bars(torch.tensor(self.config.timesteps))

    @staticmethod
    def _check_weights(name: str, component: torch.nn.Module) -> None:
        for key, value in component.state_dict().items():
            if value.is_meta:
                raise ValueError(f"The checkpoint lacks the weight {key!r} of `{name}`: download it again.")
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"The weight {key!r} of `{name}` is not finite: the checkpoint is damaged.")

    # ------------------------------------------------------------------------------------------------- reading images

    @classmethod
    def read_image(cls, image: ImageInput) -> torch.Tensor:
        """Turns one image of any kind into RGB, float32 `[3, H, W]` in [0, 1], at its own size.

        Pictures and files may have any mode that Pillow reads: EXIF rotation is applied, transparent pixels are put
        on white, 16-bit values are divided by 65535. Arrays are `[H, W]` or `[H, W, channels]`, tensors
        `[channels, H, W]`, with 1, 3 or 4 channels; their values are uint8, uint16, or floating point in [0, 1].

        Raises:
            TypeError: for an object that is no image.
            ValueError: for a file that is missing, broken or no image, and for an image that is empty, too small, too
                large, not finite or out of range. The message says which, and what to do.
        """
        if isinstance(image, (str, os.PathLike)):
            return cls._read_file(image)
        if isinstance(image, PIL.Image.Image):
            return cls._from_picture(image, "The image")
        if isinstance(image, np.ndarray):
            if image.ndim == 2:
                image = image[..., None]
            if image.ndim != 3:
                raise ValueError(f"An image array must be [H, W] or [H, W, channels], found {list(image.shape)}.")
            return cls._from_tensor(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        if isinstance(image, torch.Tensor):
            return cls._from_tensor(image)
        raise TypeError(
            "An image must be a path, a PIL image, an array or a tensor (or a list of them), found"
            f" {type(image).__name__}."
        )

    @classmethod
    def _check_size(cls, width: int, height: int, name: str) -> None:
        if min(width, height) < cls.min_side:
            raise ValueError(f"{name} is {width}x{height} pixels; each side needs at least {cls.min_side}.")
        if width * height > cls.max_pixels:
            raise ValueError(
                f"{name} has {width * height / 1e6:.0f} megapixels; at most {cls.max_pixels / 1e6:.0f} are read. Crop"
                " it or scale it down."
            )

    @classmethod
    def _read_file(cls, path: str | os.PathLike) -> torch.Tensor:
        name = os.fspath(path)
        try:
            with PIL.Image.open(path) as picture:
                return cls._from_picture(picture, name)
        except FileNotFoundError:
            raise ValueError(f"{name} does not exist.") from None
        except IsADirectoryError:
            raise ValueError(f"{name} is a folder; give the images inside it.") from None
        except PIL.UnidentifiedImageError:
            raise ValueError(f"{name} is not an image that can be read; save it as PNG, JPEG, TIFF or BMP.") from None
        except PIL.Image.DecompressionBombError:
            raise ValueError(
                f"{name} has far more than {cls.max_pixels / 1e6:.0f} megapixels. Crop it or scale it down."
            ) from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{name} is damaged or cut off and cannot be read ({error}).") from None

    @classmethod
    def _from_picture(cls, picture: PIL.Image.Image, name: str) -> torch.Tensor:
        cls._check_size(*picture.size, name)
        picture = PIL.ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            return cls._from_tensor(torch.from_numpy(np.array(picture))[None])
        if picture.mode.startswith("I"):
            values = np.array(picture).astype(np.float32) / 65535
            return cls._from_tensor(torch.from_numpy(values)[None])
        if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
        values = np.array(picture.convert("RGB"))
        return torch.from_numpy(values).permute(2, 0, 1).float() / 255

    @classmethod
    def _from_tensor(cls, image: torch.Tensor) -> torch.Tensor:
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(
                "An image must have 1, 3 or 4 channels, last in an array and first in a tensor; found the shape"
                f" {list(image.shape)} with channels first."
            )
        cls._check_size(image.shape[2], image.shape[1], "The image")
        image = image.detach().cpu()
        if image.dtype == torch.uint8:
            image = image.float() / 255
        elif image.dtype == torch.uint16:
            image = image.float() / 65535
        elif not image.is_floating_point():
            raise ValueError(f"Image values must be uint8, uint16 or floating point, found {image.dtype}.")
        image = image.float()
        if not torch.isfinite(image).all():
            raise ValueError("The image has values that are not finite (NaN or infinity).")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"Floating-point images must lie in [0, 1], found values from {low:.3g} to {high:.3g}. Divide by the"
                " largest possible value, or give uint8."
            )
        if image.shape[0] == 4:
            image = image[:3] * image[3:] + 1 - image[3:]
        return image.expand(3, -1, -1).contiguous()

    @staticmethod
    def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resizes `[N, C, H, W]` to `size` (height, width), averaging where it shrinks."""
        if tuple(images.shape[-2:]) == tuple(size):
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    @classmethod
    def preprocess(cls, image: torch.Tensor, size: int) -> torch.Tensor:
        """An image as `read_image` gives it -> what the model sees, `[1, 3, size, size]` in [-1, 1]."""
        return cls.resize(image[None], (size, size)).clamp(0, 1) * 2 - 1

    # -------------------------------------------------------------------------------------------------------- scoring

    @staticmethod
    def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian blur of `[N, C, H, W]`, mirrored at the border."""
        radius = min(round(3 * sigma), min(maps.shape[-2:]) - 1)
        if radius == 0:
            return maps
        offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        n, c, h, w = maps.shape
        maps = F.pad(maps.reshape(n * c, 1, h, w), (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(maps, kernel), kernel.transpose(2, 3)).view(n, c, h, w)

    def get_noise(
        self, timesteps: Sequence[int], generator: torch.Generator | None, device: torch.device
    ) -> torch.Tensor:
        """One noise image for each timestep, `[K, 3, S, S]`, the same for every image.

        Sharing it makes a score independent of the batch and lets the calibration see the noise that scoring sees.
        The noise at a timestep does not depend on which other timesteps are used.
        """
        size = self.unet.config.sample_size
        base = 0
        if generator is not None:
            base = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        noise = [
            torch.randn(3, size, size, generator=torch.Generator().manual_seed(base + timestep))
            for timestep in timesteps
        ]
        return torch.stack(noise).to(device)

    def predict_at(
        self, images: torch.Tensor, timesteps: Sequence[int], noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Evaluates the U-Net on images noised to each timestep, all in one batch.

        Args:
            images: x_0, `[N, 3, S, S]` in [-1, 1].
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`.

        Returns:
            x_0, x_t and timesteps repeated, the model's output and its predicted features; each `[N * K, ...]`, the
            noise levels of an image one after the other.
        """
        levels = torch.tensor(list(timesteps), device=images.device).repeat(len(images))  # [N * K]
        originals = images.repeat_interleave(len(timesteps), dim=0)  # [N * K, 3, S, S]
        noisy = self.scheduler.add_noise(originals, noise.repeat(len(images), 1, 1, 1), levels)
        output = self.unet(noisy.to(self.unet.dtype), levels)
        return originals, noisy, levels, output.sample.float(), output.features.float()

    def extract_features(self, images: torch.Tensor) -> torch.Tensor:
        """F(x): features of `[N, 3, S, S]` in [-1, 1], float32 `[N, C, h, w]`."""
        return self.feature_extractor(images.to(self.feature_extractor.dtype)).float()

    @torch.no_grad()
    def score_maps(
        self, images: torch.Tensor, timesteps: Sequence[int], noise: torch.Tensor, scores: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """The score maps before calibration, smoothed, at the model's size; one evaluation of the U-Net for all.

        `kl`: KL divergence in bits (the paper's pixel-level score). `rgb`: squared error of x0_hat, averaged over RGB
        (what AnoDDPM scores by). `mse`: squared error of the predicted features, averaged over channels (the paper's
        feature-level score). `mahalanobis`: distance of the features' residual F(x_0) - f(x_t, t) to the Gaussian of
        normal images' residuals at its position and noise level, which says how unusual the error is where it is.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            timesteps: K noise levels.
            noise: `[K, 3, S, S]`.
            scores: the names of the maps to compute.

        Returns:
            The maps by name, `[N, K, S, S]` each.
        """
        count, size = len(images), images.shape[-1]
        originals, noisy, levels, output, predicted = self.predict_at(images, timesteps, noise)
        maps = {}
        if "kl" in scores or "rgb" in scores:
            prediction = self.scheduler.predict(output, noisy, levels)
            if "kl" in scores:
                maps["kl"] = self.scheduler.kl_bits(originals, noisy, prediction, levels)
            if "rgb" in scores:
                error = (originals - prediction.pred_original_sample) ** 2
                maps["rgb"] = error.mean(dim=1, keepdim=True)
        if "mahalanobis" in scores or "mse" in scores:
            features = self.extract_features(images)  # [N, C, h, w]
            target = F.interpolate(predicted, size=features.shape[-2:], mode="bilinear", align_corners=False)
            residual = (features[:, None] - target.unflatten(0, (count, -1))).transpose(0, 1)  # [K, N, C, h, w]
            if "mse" in scores:
                maps["mse"] = residual.transpose(0, 1).square().mean(dim=2).flatten(0, 1)[:, None]
            if "mahalanobis" in scores:
                distances = [
                    self.normality(residual[k], self.config.timesteps.index(timestep))
                    for k, timestep in enumerate(timesteps)
                ]
                maps["mahalanobis"] = torch.stack(distances, dim=1).flatten(0, 1)  # [N * K, 1, g, g]
        return {
            name: self.blur(self.resize(value, (size, size)).view(count, -1, size, size), self.config.blur_sigma)
            for name, value in maps.items()
        }

    def calibrate(self, name: str, maps: torch.Tensor, timesteps: Sequence[int]) -> torch.Tensor:
        """Maps `[N, K, S, S]` in units of normal images: minus their mean, over their standard deviation.

        The authors' program uses each image's own statistics instead, after which two images cannot be compared.
        """
        index = [self.config.timesteps.index(timestep) for timestep in timesteps]
        mean, std = (
            torch.tensor(self.config.statistics[f"{name}_{statistic}"], device=maps.device)[index].view(1, -1, 1, 1)
            for statistic in ("mean", "std")
        )
        return (maps - mean) / std

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Means over the cells that image scores are made of, `[..., S, S]` -> `[..., 32, 32]`."""
        return F.adaptive_avg_pool2d(maps, (self.score_grid, self.score_grid))

    @staticmethod
    def fuse(pixel_maps: torch.Tensor, feature_maps: torch.Tensor, alpha: float) -> torch.Tensor:
        """A = 1/K sum over noise levels of alpha pixel + (1 - alpha) feature (the paper's map), `[N, S, S]`."""
        return (alpha * pixel_maps + (1 - alpha) * feature_maps).mean(dim=1)

    def normal_maps(
        self, alpha: float, timesteps: Sequence[int], pixel_score: str = "kl", feature_score: str = "mahalanobis"
    ) -> torch.Tensor | None:
        """The anomaly maps of the held-out normal images in cells, `[M, cells]`; None if none are stored.

        The largest of each row is that image's score.
        """
        if not self.normality.config.num_calibration_images:
            return None
        index = [self.config.timesteps.index(timestep) for timestep in timesteps]
        names = self.pixel_scores + self.feature_scores
        maps = self.normality.calibration_maps.float().unflatten(1, (len(names), -1))  # [M, 4, K, 32, 32]
        pixel, feature = (maps[:, names.index(name)][:, index] for name in (pixel_score, feature_score))
        return self.fuse(pixel, feature, alpha).flatten(1)

    def normal_levels(
        self, alpha: float, timesteps: Sequence[int], pixel_score: str, feature_score: str
    ) -> tuple[float | None, float | None]:
        """Threshold and mask level, from the stored maps of held-out normal images; None without such maps.

        The threshold is the quantile `threshold_quantile` of their image scores. The mask level is the 99 % quantile
        of their cells: how far a defect region grows from the cells above the threshold.
        """
        fused = self.normal_maps(alpha, timesteps, pixel_score, feature_score)  # [M, cells]
        if fused is None:
            return None, None
        threshold = torch.quantile(fused.amax(dim=1), self.config.threshold_quantile)
        # torch.quantile refuses more than 16 M values.
        cells = fused.flatten().sort().values
        return float(threshold), float(cells[int(0.99 * (len(cells) - 1))])

    @property
    def threshold(self) -> float | None:
        """The threshold for the stored `alpha` and `timesteps`; None if the pipeline is not calibrated."""
        if self.config.threshold is not None:
            return self.config.threshold
        return self.normal_levels(self.config.alpha, self.config.timesteps, "kl", "mahalanobis")[0]

    # ------------------------------------------------------------------------------------------------------ denoising

    def defect_mask(self, anomaly_maps: torch.Tensor, threshold: float, mask_level: float) -> torch.Tensor:
        """Where to repair: `[N, S, S]` -> `[N, 1, S, S]` in [0, 1], exactly zero for an image below the threshold.

        Cells above `threshold` are seeds; from them the region grows through pixels above `mask_level`
        (hysteresis), by 4 pixels beyond, and fades to zero over another 8.
        """
        size = anomaly_maps.shape[-1]
        maps = anomaly_maps[:, None]
        seeds = F.interpolate((self.pool(maps) > threshold).float(), size=(size, size), mode="nearest")
        allowed = torch.maximum(seeds, (maps > min(mask_level, threshold)).float())
        region = seeds
        while True:
            grown = F.max_pool2d(region, 9, stride=1, padding=4) * allowed
            if torch.equal(grown, region):
                break
            region = grown
        region = F.max_pool2d(region, 17, stride=1, padding=8)
        return F.avg_pool2d(region, 9, stride=1, padding=4, count_include_pad=False)

    def inpaint(
        self, images: torch.Tensor, mask: torch.Tensor, indices: Sequence[int], generator: torch.Generator | None
    ):
        """Repaints the mask by the reverse process, the rest of the image given ("RePaint", Lugmayr et al., 2022).

        It starts from the image under noise, in which the defect drowns and the part's own shape does not.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1].
            indices: steps of the respaced process, descending.
            generator: source of the noise.

        Yields:
            The timestep and the image so far, `[N, 3, S, S]`, after each evaluation of the U-Net.
        """
        steps = self.scheduler.timesteps.flip(0)[list(indices)].tolist()
        noise = self.get_noise(steps[:1], generator, images.device).expand_as(images)
        inside, current = noise, images
        for step in steps:
            levels = torch.full((len(images),), step, device=images.device)
            alpha_bar, _ = self.scheduler.alpha_bars(levels)
            signal, scale = (v.to(images) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
            # Outside the mask the noise stays what it was; inside it is what the model believes to be noise (DDIM).
            noisy = signal * current + scale * (mask * inside + (1 - mask) * noise)
            output = self.unet(noisy.to(self.unet.dtype), levels).sample.float()
            original = self.scheduler.predict_original_sample(output, noisy, levels)
            inside = (noisy - signal * original) / scale
            current = images + mask * (original - images)
            yield step, current

    def borrow_detail(self, images: torch.Tensor, mask: torch.Tensor, repaired: torch.Tensor) -> torch.Tensor:
        """Gives a repaired region the fine grain of the part itself, `[N, 3, S, S]`.

        The U-Net predicts the mean of all clean images, which is smooth. What it leaves out of the normal surroundings
        is the part's own grain; moved into the mask from where it fits best, it makes the repair as sharp as the rest.
        The source is the one of which most is normal and which looks most like the target.
        """
        levels = self.scheduler.timesteps.flip(0)[5].to(images.device).expand(len(images))
        alpha_bar, _ = self.scheduler.alpha_bars(levels)
        noiseless = alpha_bar.sqrt().to(images) * images
        output = self.unet(noiseless.to(self.unet.dtype), levels).sample.float()
        predicted = self.scheduler.predict_original_sample(output, noiseless, levels)
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

    @property
    def denoising_timestep(self) -> int:
        """The small noise level at which gradient denoising denoises: step 8 of the respaced process."""
        return int(self.scheduler.timesteps.flip(0)[8])

    def denoising_step(self, images: torch.Tensor) -> torch.Tensor:
        """The mean of p(x_{t-1} | x_t = image) at `denoising_timestep` (the paper's gradient denoising)."""
        levels = torch.full((len(images),), self.denoising_timestep, device=images.device)
        output = self.unet(images.to(self.unet.dtype), levels).sample.float()
        return self.scheduler.predict(output, images, levels).mean.clamp(-1, 1)

    def normality_distance(
        self, images: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, index: int
    ) -> torch.Tensor:
        """The distance that gradient denoising lowers: the weighted mean Mahalanobis distance of each image, `[N]`.

        Args:
            images: x, `[N, 3, S, S]`.
            target: features that are taken off F(x) first, `[N, C, h, w]`.
            weight: weight of each position, `[N, 1, g, g]`.
            index: the Gaussian of `normality` to measure by.
        """
        distance = self.normality(self.extract_features(images) - target, index)  # [N, 1, g, g]
        return (distance * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))

    def normality_loss(
        self, images: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`normality_distance`, `[N]`, and its gradient in the images, `[N, 3, S, S]`."""
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            loss = self.normality_distance(images, target, weight, index)
            (gradient,) = torch.autograd.grad(loss.sum(), images)
        return loss.detach(), gradient

    def denoise_masked(
        self, images: torch.Tensor, mask: torch.Tensor, num_steps: int, generator: torch.Generator | None
    ):
        """Removes the defects inside the mask; what lies outside stays as it is.

        First the reverse process repaints the mask from noise in which the defect drowns, and the part's own grain is
        put back. Then gradient denoising refines it: steps that lower the distance of the features F(x) to those
        that the U-Net predicts for this very part without its defect, and every fifth step one of the diffusion model.
        A step is kept only if the distance falls; an image is done when it falls no more, or is that of a normal one.
        With a small model the paper's recipe, `denoise_whole`, raises the distance instead.

        Args:
            images: `[N, 3, S, S]` in [-1, 1].
            mask: `[N, 1, S, S]` in [0, 1], not empty for any image.
            num_steps: the most gradient steps.
            generator: source of the noise.

        Yields:
            The timestep, the image so far, and the loss `[N]`, first that of the image as it came; a loss of None
            before the target is known. The timestep is that of the U-Net's evaluation, 0 for a gradient step.
        """
        start = images
        for step, start in self.inpaint(images, mask, self.inpainting_steps, generator):
            yield step, start, None
        detailed = self.borrow_detail(images, mask, start)

        level = sorted(self.config.timesteps)[len(self.config.timesteps) // 2]
        index = self.config.timesteps.index(level)
        noise = self.get_noise([level], generator, images.device)
        weight = F.adaptive_avg_pool2d(mask, self.normality.config.grid_size)  # [N, 1, g, g]
        _, _, _, _, target = self.predict_at(start, [level], noise)
        features_size = (self.feature_extractor.config.grid_size,) * 2
        target = F.interpolate(target, size=features_size, mode="bilinear", align_corners=False)
        normal = self.config.statistics["mahalanobis_mean"][index]

        before = self.normality_distance(images, target, weight, index)
        loss, gradient = self.normality_loss(start, target, weight, index)
        yield level, images, before
        detailed_loss, detailed_gradient = self.normality_loss(detailed, target, weight, index)
        better = (detailed_loss < loss).view(-1, 1, 1, 1)
        current, gradient = torch.where(better, detailed, start), torch.where(better, detailed_gradient, gradient)
        loss = torch.minimum(loss, detailed_loss)
        velocity = torch.zeros_like(start)
        step_size = torch.full_like(loss, 0.02)
        last_check = loss
        active = loss > normal
        for i in range(1, num_steps + 1):
            chosen = active.nonzero()[:, 0]
            if len(chosen) == 0:
                break
            part_mask = mask[chosen]
            direction = -self.blur(gradient[chosen], 1.0) * part_mask
            direction = direction / direction.square().sum(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
            # Scaled to one where the mask is: the root mean square over the masked pixels.
            direction = direction * (3 * part_mask.square().sum(dim=(1, 2, 3), keepdim=True)).sqrt()
            momentum = 0.8 * velocity[chosen] + direction
            candidate = current[chosen] + step_size[chosen].view(-1, 1, 1, 1) * momentum
            timestep = 0
            if i % 5 == 0:
                timestep = self.denoising_timestep
                candidate = candidate + part_mask * (self.denoising_step(candidate) - candidate)
            candidate = candidate.clamp(-1, 1)
            new_loss, new_gradient = self.normality_loss(candidate, target[chosen], weight[chosen], index)
            better = new_loss < loss[chosen]
            kept = chosen[better]
            current, gradient, velocity, loss = current.clone(), gradient.clone(), velocity.clone(), loss.clone()
            current[kept], gradient[kept], loss[kept] = candidate[better], new_gradient[better], new_loss[better]
            velocity[kept] = momentum[better]
            refused = chosen[~better]
            velocity[refused] = 0
            if timestep == 0:
                step_size[kept] *= 1.2
                step_size[refused] *= 0.4
            active = active & (loss > normal) & (step_size > 1e-4)
            if i % 10 == 0:
                active = active & (loss < 0.99 * last_check)
                last_check = loss
            yield timestep, current, loss

    def denoise_whole(self, images: torch.Tensor, num_steps: int):
        """Gradient denoising as the paper has it: the whole image, a fixed number of steps, PaDiM's distance.

        x <- sqrt(1 - s^2) x + s g with s = 0.02 and g the negative gradient divided by its standard deviation; after
        every fifth step the image becomes the mean of p(x_{t-1} | x_t = x) at step 8 of 250.

        Yields:
            As `denoise_masked`.
        """
        index = len(self.config.timesteps)
        weight = torch.ones(1, 1, 1, 1, device=images.device).expand(
            len(images), 1, self.normality.config.grid_size, self.normality.config.grid_size
        )
        target = torch.zeros((), device=images.device)
        scale = 0.02
        loss, gradient = self.normality_loss(images, target, weight, index)
        yield 0, images, loss
        for i in range(1, num_steps + 1):
            direction = -gradient / gradient.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            images = (1 - scale**2) ** 0.5 * images + scale * direction
            timestep = 0
            if i % 5 == 0:
                timestep = self.denoising_timestep
                images = self.denoising_step(images)
            loss, gradient = self.normality_loss(images, target, weight, index)
            yield timestep, images, loss

    # ----------------------------------------------------------------------------------------------------- inference

    def check_inputs(
        self,
        alpha,
        timesteps,
        threshold,
        denoise,
        num_denoising_steps,
        batch_size,
        pixel_score,
        feature_score,
        output_type,
    ):
        """Raises a ValueError that names the argument, the rule and the value found."""
        if self.config.statistics is None:
            raise ValueError(
                "This pipeline is not calibrated: train it with `ddad train`, which measures `statistics`."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must lie in [0, 1], found {alpha}.")
        if len(timesteps) == 0 or len(set(timesteps)) != len(timesteps):
            raise ValueError(f"`timesteps` must be one or more different noise levels, found {list(timesteps)}.")
        unknown = [timestep for timestep in timesteps if timestep not in self.config.timesteps]
        if unknown:
            raise ValueError(
                f"`timesteps` {unknown} are not calibrated in this pipeline; choose from {self.config.timesteps}."
            )
        if denoise not in (True, False, "masked", "whole"):
            raise ValueError(f"`denoise` must be True, False, 'masked' or 'whole', found {denoise!r}.")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"`threshold` must be a number, found {threshold}.")
        for name, count in (("num_denoising_steps", num_denoising_steps), ("batch_size", batch_size)):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, found {count}.")
        for name, value, allowed in (
            ("pixel_score", pixel_score, self.pixel_scores),
            ("feature_score", feature_score, self.feature_scores),
            ("output_type", output_type, ("pil", "np", "pt")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, found {value!r}.")

    @classmethod
    def read_images(cls, image: ImageInput | Sequence[ImageInput]) -> list[torch.Tensor]:
        """One image, a list of them, an array `[N, H, W, C]` or a tensor `[N, C, H, W]` -> list of `[3, H, W]`.

        Raises:
            ValueError: as `read_image`, with the index of the image in the list; and for an empty list.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4):
            if len(image) == 0:
                raise ValueError("There is no image in the list.")
            images = []
            for index, one in enumerate(image):
                try:
                    images.append(cls.read_image(one))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"Image {index} of the list: {error}") from None
            return images
        return [cls.read_image(image)]

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput] | DDADScores,
        alpha: float | None = None,
        timesteps: Sequence[int] | None = None,
        threshold: float | None = None,
        denoise: bool | Literal["masked", "whole"] = True,
        num_denoising_steps: int = 30,
        pixel_score: Literal["kl", "rgb"] = "kl",
        feature_score: Literal["mahalanobis", "mse"] = "mahalanobis",
        batch_size: int = 4,
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDADPipeline", int, int, dict[str, Any]], dict[str, Any] | None]
        | None = None,
    ) -> DDADPipelineOutput | tuple:
        """Finds and removes the defects of one or many images.

        Args:
            image: a path, PIL image, array or tensor, or a list of them; see `read_image`. Any size. Or what `score`
                gave for them, whose noise and kind of scores then hold.
            alpha: weight of the pixel score in [0, 1]; None takes the pipeline's.
            timesteps: which of the pipeline's noise levels score; None takes all.
            threshold: score above which an image is anomalous; None takes the pipeline's, for the given alpha,
                timesteps and scores.
            denoise: whether to make the image without its defects. True and `"masked"` repair what the anomaly map
                marks and leave an image without defects as it is; `"whole"` is the paper's form.
            num_denoising_steps: the most gradient steps.
            pixel_score: `"kl"`, or `"rgb"` for the baseline that the paper compares with.
            feature_score: `"mahalanobis"`, or `"mse"` for the paper's squared error.
            batch_size: images in one evaluation of the networks; it changes memory and speed alone.
            generator: source of the noise; None takes the same noise at every call.
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
            pixel_score, feature_score = given.pixel_score, given.feature_score
        alpha = self.config.alpha if alpha is None else alpha
        if timesteps is None:
            timesteps = self.config.timesteps if given is None else given.timesteps
        timesteps = list(timesteps)
        self.check_inputs(
            alpha,
            timesteps,
            threshold,
            denoise,
            num_denoising_steps,
            batch_size,
            pixel_score,
            feature_score,
            output_type,
        )
        measured, mask_level = self.normal_levels(alpha, timesteps, pixel_score, feature_score)
        if threshold is None:
            settings = (alpha, sorted(timesteps), pixel_score, feature_score)
            stored = (self.config.alpha, sorted(self.config.timesteps), "kl", "mahalanobis")
            threshold = self.config.threshold if settings == stored else None
            threshold = measured if threshold is None else threshold
        if threshold is None:
            raise ValueError("This pipeline stores no normal images to measure a threshold on: give a `threshold`.")
        mask_level = threshold / 2 if mask_level is None else mask_level
        originals = self.read_images(image) if given is None else given.images

        output = DDADPipelineOutput([], threshold, [], [], [], [], [], None, None, None)
        if denoise:
            output.denoised_image, output.intermediates, output.normality_distance = [], [], []
        for first in range(0, len(originals), batch_size):
            chosen = slice(first, first + batch_size)
            batch = originals[chosen]

            # 2. Score: one evaluation of the U-Net for all noise levels, pixels and features
            if given is None:
                scores = self.score(batch, timesteps, pixel_score, feature_score, batch_size, generator)
            else:
                scores = given.select(chosen, timesteps)

            # 3. Fuse
            pixel, feature = scores.pixel_maps, scores.feature_maps  # [N, K, S, S]
            anomaly = self.fuse(pixel, feature, alpha)  # [N, S, S]
            image_scores = self.pool(anomaly).flatten(1).amax(dim=1)  # [N]
            output.image_score += image_scores.tolist()
            output.is_anomalous += (image_scores > threshold).tolist()

            # 4. Denoise
            if denoise:
                device = self._execution_device
                mask = self.defect_mask(anomaly.to(device), threshold, mask_level)  # [N, 1, S, S]
                frames, distances, mask = self.denoise(
                    self.prepare(batch), mask, denoise, num_denoising_steps, generator, callback_on_step_end
                )
                output.normality_distance += distances
                output.intermediates += [[self.to_image(one, output_type) for one in each] for each in frames]
                output.denoised_image += [
                    self.to_image(self.merge(one, frames[i][-1], mask[i]), output_type) for i, one in enumerate(batch)
                ]

            # 5. Postprocess and visualise, at each image's own size
            for i, one in enumerate(batch):
                own = [
                    F.interpolate(value[i][None, None], size=one.shape[1:], mode="bilinear", align_corners=False)[0, 0]
                    for value in (anomaly, pixel.mean(dim=1), feature.mean(dim=1))
                ]
                overlay = self.overlay(one, own[0].cpu(), threshold)
                output.overlay.append(self.to_image(overlay, output_type))
                for field, value in zip((output.anomaly_map, output.pixel_map, output.feature_map), own, strict=True):
                    field.append(value.cpu() if output_type == "pt" else value.cpu().numpy())
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def prepare(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Images `[3, H, W]` in [0, 1] of any size -> what the model sees, `[N, 3, S, S]` in [-1, 1]."""
        size = self.unet.config.sample_size
        return torch.cat([self.preprocess(one, size) for one in images]).to(self._execution_device)

    @torch.no_grad()
    def score(
        self,
        image: ImageInput | Sequence[ImageInput],
        timesteps: Sequence[int] | None = None,
        pixel_score: Literal["kl", "rgb"] = "kl",
        feature_score: Literal["mahalanobis", "mse"] = "mahalanobis",
        batch_size: int = 4,
        generator: torch.Generator | None = None,
    ) -> DDADScores:
        """The calibrated score maps of one or many images: the first half of a call, to be judged more than once.

        Args: as for a call.

        Raises:
            TypeError, ValueError: as a call.
        """
        timesteps = self.config.timesteps if timesteps is None else list(timesteps)
        self.check_inputs(0.5, timesteps, None, False, 1, batch_size, pixel_score, feature_score, "pt")
        originals = self.read_images(image)
        noise = self.get_noise(timesteps, generator, self._execution_device)
        pixel, feature = [], []
        for first in range(0, len(originals), batch_size):
            images = self.prepare(originals[first : first + batch_size])  # [N, 3, S, S]
            maps = self.score_maps(images, timesteps, noise, (pixel_score, feature_score))
            pixel.append(self.calibrate(pixel_score, maps[pixel_score], timesteps).cpu())  # [N, K, S, S]
            feature.append(self.calibrate(feature_score, maps[feature_score], timesteps).cpu())
        self.maybe_free_model_hooks()
        return DDADScores(originals, torch.cat(pixel), torch.cat(feature), list(timesteps), pixel_score, feature_score)

    def denoise(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        form: bool | str,
        num_steps: int,
        generator: torch.Generator | None,
        callback: Callable | None,
    ) -> tuple[list[list[torch.Tensor]], list[tuple[float, float] | None], torch.Tensor]:
        """Runs one form of denoising on a batch.

        Returns:
            For each image the steps `[3, S, S]` in [0, 1] from the image itself to the last, and the loss before and
            after (None if the image was left as it is); and the mask of what was changed.
        """
        whole = form == "whole"
        chosen = list(range(len(images))) if whole else mask.amax(dim=(1, 2, 3)).nonzero()[:, 0].tolist()
        frames = [[(one + 1) / 2] for one in images]
        distances: list[tuple[float, float] | None] = [None] * len(images)
        if not chosen:
            return frames, distances, mask
        if whole:
            mask = torch.ones_like(mask)
            steps = self.denoise_whole(images, num_steps)
        else:
            steps = self.denoise_masked(images[chosen], mask[chosen], num_steps, generator)
        before = None
        progress = self.progress_bar(total=num_steps + (0 if whole else len(self.inpainting_steps)) + 1)
        for number, (timestep, current, loss) in enumerate(steps):
            if before is None and loss is not None:
                before = loss
            elif timestep > 0:
                for position, i in enumerate(chosen):
                    frames[i].append((current[position] + 1) / 2)
            if callback is not None:
                callback(self, number, timestep, {"image": current})
            progress.update()
        progress.close()
        for position, i in enumerate(chosen):
            distances[i] = (float(before[position]), float(loss[position]))
            frames[i].append((current[position] + 1) / 2)
        return frames, distances, mask

    # --------------------------------------------------------------------------------------------------- postprocess

    @staticmethod
    def merge(original: torch.Tensor, denoised: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Puts the repaired region into the image at its own size; every pixel outside the mask stays as it was.

        Args:
            original: `[3, H, W]` in [0, 1].
            denoised: the repaired one, `[3, S, S]` in [0, 1].
            mask: `[1, S, S]` in [0, 1].
        """
        size = original.shape[1:]
        mask, denoised = (
            F.interpolate(value[None], size=size, mode="bilinear", align_corners=False)[0].to(original.device)
            for value in (mask, denoised)
        )
        if torch.equal(original[0], original[1]) and torch.equal(original[0], original[2]):
            denoised = denoised.mean(dim=0, keepdim=True)  # what came without colour stays without
        return torch.where(mask > 0, original + mask * (denoised.clamp(0, 1) - original), original)

    @staticmethod
    def overlay(
        original: torch.Tensor, anomaly_map: torch.Tensor, threshold: float, opacity: float = 0.7
    ) -> torch.Tensor:
        """The image under the heatmap, `[3, H, W]` in [0, 1]; `opacity` in [0, 1] is the heatmap's where it is full.

        The scale is fixed: no colour up to half the threshold, full colour from twice the threshold. A scale that is
        stretched over each image would set a normal part alight.
        """
        strength = (anomaly_map / max(threshold, 1e-6) / 2).clamp(0, 1)  # [H, W]
        anchors = torch.tensor([[0.3, 0.0, 0.4], [0.75, 0.1, 0.35], [0.95, 0.45, 0.1], [1.0, 0.9, 0.3]])
        position = strength * (len(anchors) - 1)
        low = position.floor().clamp(max=len(anchors) - 2)
        fraction = (position - low)[..., None]
        colour = anchors[low.long()] * (1 - fraction) + anchors[low.long() + 1] * fraction  # [H, W, 3]
        covered = ((strength - 0.25) * 2).clamp(0, opacity)
        grey = original.mean(dim=0, keepdim=True)
        return original + (covered > 0) * (grey + covered * (colour.permute(2, 0, 1) - grey) - original)

    @staticmethod
    def to_image(image: torch.Tensor, output_type: str) -> PIL.Image.Image | np.ndarray | torch.Tensor:
        """`[3, H, W]` in [0, 1] -> a PIL image, an array `[H, W, 3]` or a tensor `[3, H, W]`."""
        image = image.detach().float().cpu().clamp(0, 1)
        if output_type == "pt":
            return image
        array = image.permute(1, 2, 0).numpy()
        if output_type == "np":
            return array
        return PIL.Image.fromarray((array * 255).round().astype(np.uint8))

    # ----------------------------------------------------------------------------------------------- saving, loading

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Writes `model_index.json` and the code of the pipeline and its components beside it.

        With the code in the folder, `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads it where
        this package is not installed.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        index_path = folder / self.config_name
        index = json.loads(index_path.read_text(encoding="utf-8"))
        index.pop("_name_or_path", None)
        index["_class_name"] = ["pipeline", type(self).__name__]
        (folder / "pipeline.py").write_text(self.source_code, encoding="utf-8")
        for name, (module, class_name) in self.component_classes.items():
            index[name] = [module, class_name]
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{module}.py").write_text(getattr(self, name).source_code, encoding="utf-8")
            for path in (folder / name).glob("*config.json"):
                config = json.loads(path.read_text(encoding="utf-8"))
                if config.pop("_name_or_path", None) is not None:
                    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "DDADPipeline":
        """Loads a pipeline from a folder or from the Hub.

        From the installed package no code of the repository is run: the components are built from the package's own
        classes, and only JSON and safetensors are fetched. Where the class itself came with a repository
        (`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`), diffusers loads it.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
            kwargs: `torch_dtype` (a dtype, or one for each component), `variant`, and `revision`, `token`,
                `cache_dir`, `local_files_only`, `force_download` as in huggingface_hub; a component's name replaces
                that component; an argument of `__init__` replaces the stored one.

        Raises:
            OSError: if a file is missing or damaged, or a weight is missing.
            ValueError: if the repository is of another kind.
        """
        if cls.__module__.startswith("diffusers_modules."):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs.pop("trust_remote_code", None)
        dtype, variant = kwargs.pop("torch_dtype", None), kwargs.pop("variant", None)
        hub = {
            key: kwargs.pop(key)
            for key in ("revision", "token", "cache_dir", "local_files_only", "force_download")
            if key in kwargs
        }
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if len(folder.parts) != 2 or folder.is_absolute():
                raise OSError(f"{folder} is neither a folder nor the id of a repository on the Hub (user/name).")
            folder = Path(snapshot_download(folder.as_posix(), allow_patterns=["*.json", "*.safetensors"], **hub))
        index_path = folder / cls.config_name
        if not index_path.is_file():
            raise OSError(f"{folder} holds no checkpoint: {cls.config_name} is missing.")
        try:
            index = json.loads(index_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OSError(f"{index_path} is damaged ({error}): download the checkpoint again.") from None
        class_name = index.pop("_class_name", None)
        if not isinstance(class_name, list) or class_name[-1] != cls.__name__:
            raise ValueError(f"{folder} holds a checkpoint of {class_name}, not of {cls.__name__}.")
        components = {name: kwargs.pop(name) for name in cls.component_classes if name in kwargs}
        settings = {key: value for key, value in index.items() if not key.startswith("_")}
        for name, expected in cls.component_classes.items():
            found = settings.pop(name, None)
            if name in components:
                continue
            if found is None or tuple(found) != expected:
                raise ValueError(f"{index_path}: `{name}` must be {list(expected)}, found {found}.")
            component_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
            components[name] = cls._load_component(folder, name, component_dtype, variant)
        return cls(**components, **{**settings, **kwargs})

    @classmethod
    def _load_component(cls, folder: Path, name: str, dtype: torch.dtype | None, variant: str | None):
        module, class_name = cls.component_classes[name]
        component_class = getattr(importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.{module}"), class_name)
        if not (folder / name).is_dir():
            raise OSError(f"The checkpoint {folder} is incomplete: the folder {name} is missing.")
        if not issubclass(component_class, torch.nn.Module):
            return component_class.from_pretrained(folder / name)
        try:
            component, info = component_class.from_pretrained(
                folder / name, torch_dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:
            raise OSError(f"The checkpoint's {folder / name} cannot be loaded: {error}") from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                keys = ", ".join(sorted(map(str, info[kind]))[:3])
                raise OSError(
                    f"The checkpoint's {folder / name} has {len(info[kind])} {kind.replace('_', ' ')} ({keys}, ...):"
                    " download it again."
                )
        return component
