"""The pipeline as the installed package has it: loaded without anybody's code, fitted, saved with check sums."""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ddad
from ddad import pipeline as published
from ddad.checkpoint.loading import load_pipeline
from ddad.checkpoint.names import CHECKSUMS_NAME, INDEX_NAME, VERSIONS_NAME
from ddad.checkpoint.settings import check_settings
from ddad.pipeline import ImageInput

if TYPE_CHECKING:  # published components cannot import each other, so their types stand here
    from ddad.calibration_ddad import DDADCalibration
    from ddad.denoising_ddad import DDADDenoiser
    from ddad.features_ddad import DDADFeatureExtractor
    from ddad.gaussians_ddad import DDADGaussianModel
    from ddad.images_ddad import DDADImageProcessor
    from ddad.memory_ddad import DDADMemory
    from ddad.refining_ddad import DDADRefiner
    from ddad.rendering_ddad import DDADRenderer
    from ddad.scheduling_ddad import DDADScheduler
    from ddad.unet_ddad import DDADUNet2DModel

VERSIONS_OF = ("torch", "diffusers", "timm")
# What check sums are kept of, beside the index: weights, settings, and which file holds which weight.
CHECKED_FILES = ("*/*.safetensors", "*/*config.json", "*/*.index*.json")


class DDADPipeline(published.DDADPipeline):
    """The published pipeline, and what only an installed package can do: see `ddad.pipeline.DDADPipeline`."""

    unet: "DDADUNet2DModel"
    scheduler: "DDADScheduler"
    feature_extractor: "DDADFeatureExtractor"
    residual: "DDADGaussianModel"
    appearance_extractor: "DDADFeatureExtractor"
    appearance: "DDADGaussianModel"
    calibration: "DDADCalibration"
    denoiser: "DDADDenoiser"
    image_processor: "DDADImageProcessor"
    renderer: "DDADRenderer"
    refiner: "DDADRefiner | None"
    memory: "DDADMemory | None"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> "DDADPipeline":
        """Loads a pipeline from a folder or from the Hub.

        No code of the repository is run: the components are built from the package's own classes, and only JSON and
        safetensors are fetched.

        Args:
            pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
            kwargs: `torch_dtype` or `dtype` (a dtype, or one for each component), `device_map` (one device for all),
                and `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` as in huggingface_hub; a
                component's name replaces that component; an argument of `__init__` replaces the stored one.

        Raises:
            OSError: if a file is missing or damaged, or a weight is missing.
            ValueError: if the repository is of another kind, or a value makes no sense.
            TypeError: for an unknown argument.
        """
        pipe: DDADPipeline = load_pipeline(cls, pretrained_model_name_or_path, **kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: published.DDADPipeline, **kwargs: Any) -> "DDADPipeline":
        """A second pipeline on the same networks, which take no more memory.

        Args:
            pipeline: the first.
            kwargs: arguments of `__init__` that replace those of the first: `alpha`, `threshold`, a component.

        Raises:
            ValueError: if a value makes no sense.
        """
        check_settings(cls, "the pipeline", kwargs)
        names = inspect.signature(cls.__init__).parameters
        known: dict[str, Any] = {**pipeline.config, **pipeline.components}  # type: ignore[attr-defined]  # no types
        return cls(**{**{name: value for name, value in known.items() if name in names}, **kwargs})

    @classmethod
    def fit(cls, images: Sequence[ImageInput], category: str = "my_part", **kwargs: Any) -> tuple["DDADPipeline", Any]:
        """Makes a pipeline for a part from a handful of good photographs, in a minute or two and without training.

        Normal versions come from a base network that never saw the part.

        Args:
            images: photographs of good parts, four at least; twenty or more are better.
            category: what the part is called.
            kwargs: `base`, `image_size`, `device` and more of `ddad.calibration.part.fit_part`.

        Returns:
            The pipeline, and what was understood of the images (`PartReport`): whether they are enough, what to
            expect, and which look unlike the rest.

        Raises:
            ValueError: if there are too few images, or one cannot be read.
            OSError: if there is no base network.
        """
        from ddad.calibration.part import fit_part  # which makes pipelines itself

        pipe, _, report = fit_part(images, category, **kwargs)
        return pipe, report

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As the published pipeline; and check sums, by which a flipped byte is found on loading, and versions."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        index_path = folder / INDEX_NAME
        # Weights and settings are saved before.
        checksums = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted([index_path, *(path for kind in CHECKED_FILES for path in folder.glob(kind))])
        }
        (folder / CHECKSUMS_NAME).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
        versions = {"ddad": ddad.__version__}
        for name in VERSIONS_OF:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        (folder / VERSIONS_NAME).write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
