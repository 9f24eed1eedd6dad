"""Parts that lie in any orientation, few photographs: `python -m benchmarks.orientation CATEGORY --data ...`.

Every image of a category is turned by an angle of its own, and its mask with it. Of 16, 32, 64 and 128 good ones come
statistics of appearance, with copies turned by 5 degrees at most or by any angle, and the likelihood of good images in
held-out folds under both: what a fit chooses by.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.evidence import figures, read_category
from ddad import DDADDenoiser, DDADImageProcessor, DDADPipeline, DDADRenderer
from ddad.calibration.backbone import create_appearance_extractor
from ddad.calibration.calibration import empty_components, round_to_half
from ddad.calibration.factors import Views
from ddad.calibration.fitting import assign_folds, fit_statistics
from ddad.calibration.gaussians import principal_components
from ddad.calibration.observing import count_copies, spread
from ddad.calibration.part import load_base, read_once
from ddad.datasets.folder import rotate
from ddad.datasets.lookalikes import group_lookalikes, shrink_image
from ddad.datasets.nuisance import vary
from ddad.datasets.orientation import lie_in_any_orientation
from ddad.report.markdown import table

SIZE, BACKBONE = 256, "tf_efficientnet_lite2"
COUNTS = (16, 32, 64, 128)


def turned(images: torch.Tensor, seed: int) -> torch.Tensor:
    """`[N, C, S, S]`, each by an angle of its own."""
    angles = 360 * torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    return rotate(images, angles)


@torch.no_grad()
def main() -> None:
    """Prints a table a category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--as-they-lie", action="store_true", help="turn nothing")
    arguments = parser.parse_args()
    networks = {name: load_base(None)[name] for name in ("unet", "scheduler", "feature_extractor")}
    for name in arguments.categories:
        train, test, defective, masks = read_category(name, arguments.data)
        processor = DDADImageProcessor()
        kept = [train[i] for i in spread(len(train), max(COUNTS))]
        images = torch.stack(list(read_once(kept, processor, SIZE, None)))
        shown = torch.stack(list(read_once(test, processor, SIZE, None)))
        if not arguments.as_they_lie:
            images, shown = turned(images, 0), turned(shown, 1)
            if masks is not None:
                masks = turned(torch.from_numpy(masks).float()[:, None], 1)[:, 0].numpy() > 0.5
        rows = []
        for count in COUNTS:
            if count > 1.5 * len(images):
                break
            chosen = images[spread(len(images), count)]
            row = [str(len(chosen)), "yes" if lie_in_any_orientation(chosen) else "no"]
            for degrees in (5.0, 180.0):
                likelihood, measured = measure(networks, chosen, shown, degrees, defective, masks)
                row += [
                    f"{likelihood:.3f}",
                    " / ".join(f"{measured[k]:.1f}" for k in ("image_auroc", "pixel_auroc", "pro")),
                ]
            rows.append(row)
            print(name)
            print(
                table(["photographs", "looks turned", "likelihood, 5", "image / pixel / PRO", "180", ""], rows),
                flush=True,
            )


def measure(
    networks: dict,
    images: torch.Tensor,
    test: torch.Tensor,
    degrees: float,
    defective: np.ndarray,
    masks: np.ndarray | None,
) -> tuple[float, dict[str, float | int]]:
    """The log likelihood of held-out images, and what is measured on test images."""
    extractor = create_appearance_extractor(SIZE, networks["feature_extractor"], BACKBONE)
    extractor.fit(image[None] for image in images)
    round_to_half(extractor)
    pipe = DDADPipeline(
        **networks,
        **empty_components(networks["feature_extractor"], extractor, (20,), 0.95),
        denoiser=DDADDenoiser(),
        image_processor=DDADImageProcessor(),
        renderer=DDADRenderer(),
    )
    model = pipe.appearance
    some = torch.cat([model.to_grid(pipe.extract_appearance(images[i][None])) for i in spread(len(images), 64)])
    model.basis.copy_(principal_components(some, model.config.num_channels).half())
    groups = group_lookalikes(shrink_image(image) for image in images)
    folds, copies = torch.tensor(assign_folds(groups, [True] * len(images))), count_copies(len(images), degrees)
    values = []
    for number, image in enumerate(images):
        generator = torch.Generator().manual_seed(number)
        varied = [vary(image[None], degrees, "mild", generator) for _ in range(copies)]
        values.append(model.reduce(pipe.extract_appearance(torch.cat([image[None], *varied]))))
    original = torch.arange(len(images) * (1 + copies)) % (1 + copies) == 0
    views = Views(torch.cat(values), folds.repeat_interleave(1 + copies), original)
    statistics = fit_statistics(views)
    good = statistics.distances(views.values[original][:, None], folds)[:, 0]
    seen = torch.cat([model.reduce(pipe.extract_appearance(image[None])) for image in test])
    distances = torch.cat([good, statistics.of_all().distance(seen)])
    side = round(distances.shape[1] ** 0.5)
    found = figures([distances.view(-1, 1, side, side)], len(images), defective, masks)
    return statistics.log_likelihoods[statistics.num_factors], found


if __name__ == "__main__":
    main()
