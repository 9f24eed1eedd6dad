"""How many good parts are called defective once light, sensor, lens or position have changed a little."""

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ddad.datasets.nuisance import NUISANCES
from ddad.pipeline import DDADPipeline
from ddad.report.markdown import table

# Each is inspected eleven times.
MOST_IMAGES = 40


def evaluate_nuisances(pipe: DDADPipeline, good: Sequence[Path]) -> dict[str, float | int]:
    """False alarms at the stored threshold, in percent of good images, as they are and under each nuisance alone.

    Args:
        pipe: the pipeline.
        good: good test images, of which `MOST_IMAGES` are looked at, evenly.
    """
    chosen = good[:: max(1, len(good) // MOST_IMAGES)][:MOST_IMAGES]
    alarms = dict.fromkeys(("none", *NUISANCES), 0)
    for path in tqdm(chosen, desc="Nuisances", mininterval=1, unit="image"):
        image = pipe.image_processor.read_image(path)[None] * 2 - 1
        changed = [image, *(change(image, 1.0) for change in NUISANCES.values())]
        verdicts = pipe([(image[0].clamp(-1, 1) + 1) / 2 for image in changed], denoise=False).is_anomalous
        for name, verdict in zip(alarms, verdicts, strict=True):
            alarms[name] += verdict
    return {"images": len(chosen)} | {name: round(100 * count / len(chosen), 1) for name, count in alarms.items()}


def describe_nuisances(rates: dict[str, float | int]) -> str:
    """The rates as a table in Markdown."""
    names = [name for name in rates if name != "images"]
    heads = ["as they are" if name == "none" else name for name in names]
    return (
        f"Of {rates['images']} good images so many are called defective, in percent, once all of them have changed in"
        " one way (3 grey levels of noise, a tenth of light or contrast, JPEG of quality 50, shifted by 2 %, zoomed by"
        f" 3 %, blurred by a pixel):\n\n{table(heads, [[f'{rates[name]:.0f}' for name in names]])}"
    )
