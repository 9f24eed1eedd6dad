"""What an evaluation looks like: contact sheets of the best and worst cases, histograms, ROC and PRO curves."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from sklearn.metrics import roc_curve

from ddad.datasets.layouts import Sample, read_mask
from ddad.evaluation.metrics import pixel_curves
from ddad.evaluation.scoring import ScoredImages
from ddad.pipeline import DDADPipeline

SIDE, GAP, CAPTION = 220, 8, 22
ROWS = 4
HEADS = ("image", "ground truth", "heatmap", "normal version")
COLOURS = {"combined": "tab:red", "kl": "tab:blue", "residual": "tab:green", "rgb": "black"}


def choose_cases(scores: np.ndarray, defective: np.ndarray) -> dict[str, np.ndarray]:
    """Which images a contact sheet shows: defective ones of the lowest and highest scores, and good ones likewise."""
    order = np.argsort(scores, kind="stable")
    bad, good = (np.array([index for index in order if defective[index] == wanted]) for wanted in (True, False))
    return {
        "defective, the lowest scores": bad[:ROWS],
        "defective, the highest scores": bad[::-1][:ROWS],
        "good, the highest scores": good[::-1][:ROWS],
        "good, the lowest scores": good[:ROWS],
    }


def draw_sheet(pipe: DDADPipeline, samples: list[Sample], scores: np.ndarray) -> PIL.Image.Image:
    """Rows of image, ground truth, heatmap and normal version, with their scores."""
    defective = np.array([sample.defective for sample in samples])
    cases = choose_cases(scores, defective)
    rows = sum(len(chosen) for chosen in cases.values())
    width = len(HEADS) * (SIDE + GAP) + GAP
    sheet = PIL.Image.new("RGB", (width, rows * (SIDE + CAPTION + GAP) + (len(cases) + 1) * CAPTION), "white")
    draw, font, large = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(13), PIL.ImageFont.load_default(16)
    top = 0
    for title, chosen in cases.items():
        draw.text((GAP, top + 3), title, fill="black", font=large)
        top += CAPTION
        for index in chosen:
            sample = samples[index]
            result = pipe(sample.path)
            original = pipe.renderer.to_image(pipe.image_processor.read_image(sample.path), "pil")
            known = sample.mask is not None or not sample.defective
            truth = read_mask(sample, (SIDE, SIDE)) if known else np.zeros((SIDE, SIDE), dtype=bool)
            pictures = [original, PIL.Image.fromarray(truth), result.overlay[0], result.denoised_image[0]]
            for column, picture in enumerate(pictures):
                left = GAP + column * (SIDE + GAP)
                sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (left, top + CAPTION))
                note = HEADS[column]
                if column == 0:
                    note = f"{sample.defect}/{sample.path.name}"
                elif column == 1 and not known:
                    note = "no ground truth"
                elif column == 2:
                    note = f"score {scores[index]:.1f}, threshold {result.threshold:.1f}"
                draw.text((left, top + 4), note, fill="black", font=font)
            top += SIDE + CAPTION + GAP
    return sheet


def draw_curves(
    scored: ScoredImages,
    samples: list[Sample],
    masks: np.ndarray | None,
    threshold: float,
    folder: Path,
    inside: np.ndarray | None = None,
) -> None:
    """Writes `histogram.png` and `curves.png`; of pixels those `inside` count, `[S, S]` bool.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'ddad[evaluate]'") from error
    defective = np.array([sample.defective for sample in samples])
    combined = scored.scores["combined"]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(combined.min(), np.quantile(combined, 0.99), 50)
    for label, chosen, colour in (("good", ~defective, "tab:blue"), ("defective", defective, "tab:red")):
        axes.hist(combined[chosen].clip(max=bins[-1]), bins=bins, alpha=0.6, label=label, color=colour)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set(xlabel="image score (the last bar holds all above)", ylabel="images")
    axes.legend()
    figure.savefig(folder / "histogram.png", dpi=130)

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2 if masks is not None else 1, squeeze=False)[0]
    for form, colour in COLOURS.items():
        if form not in scored.scores:
            continue
        rates, recall, _ = roc_curve(defective, scored.scores[form])
        panels[0].plot(rates, recall, label=form, color=colour)
        if masks is not None:
            known = ~defective | masks.any(axis=(1, 2))
            curves = pixel_curves(scored.maps[form][known], masks[known], inside)
            shown = np.linspace(0, 0.3, 301)
            panels[1].plot(
                shown, np.interp(shown, curves.false_positive_rate, curves.overlap), label=form, color=colour
            )
    panels[0].set(xlabel="good images called defective", ylabel="defective images found", title="ROC of images")
    if masks is not None:
        panels[1].set(xlabel="false-positive rate of pixels", ylabel="overlap of a region", title="PRO")
    panels[-1].legend()
    figure.savefig(folder / "curves.png", dpi=130)


def write_figures(
    pipe: DDADPipeline, samples: list[Sample], scored: ScoredImages, masks: np.ndarray | None, folder: str | Path
) -> list[Path]:
    """Writes `cases.webp`, `histogram.png` and `curves.png` into a folder, and returns their paths."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    threshold: Any = pipe.threshold
    inside = None if pipe.inside is None else pipe.inside[0, 0].numpy() > 0
    draw_curves(scored, samples, masks, threshold, target, inside)
    draw_sheet(pipe, samples, scored.scores["combined"]).save(target / "cases.webp", quality=88)
    return [target / name for name in ("cases.webp", "histogram.png", "curves.png")]
