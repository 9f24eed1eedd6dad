"""Writes the tables of docs/benchmarks.md from the results: `make benchmark-table`."""

import json
import sys
from pathlib import Path
from typing import Any

from ddad.report.markdown import table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks begin: `make benchmark-table` -->", "<!-- benchmarks end -->"
COLUMNS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pro": "PRO",
    "fit_seconds": "fit, s",
    "seconds_an_image": "map, ms",
    "peak_memory_mb": "memory, MB",
    "size_mb": "stored, MB",
}
# The paper's other rivals, and why they have no row of numbers.
NOT_RUN = {
    "Reverse Distillation": "its decoder mirrors a ResNet, and ImageNet weights of ResNets are in no package",
    "FastFlow": "anomalib has it for ResNet-18, WideResNet-50, CaiT and DeiT alone, whose weights are in no package",
    "DRAEM": "97 million parameters at 256x256: one step of 8 images took 200 s of a core, an image's map 7 s",
    "GANomaly": "189 million parameters at 256x256: one step of 32 images took 88 s of a core, and it gives no map",
    "Dinomaly (UniAD's successor)": "DINOv2's weights are in no package",
}


def format_value(key: str, value: float | None) -> str:
    """One cell."""
    if value is None:
        return ""
    if key == "seconds_an_image":
        return f"{1000 * value:.0f}"
    return f"{value:.1f}" if key in ("image_auroc", "pixel_auroc", "pro", "size_mb") else f"{value:.0f}"


def format_table(results: dict[str, Any]) -> str:
    """One data set's table in Markdown."""
    # Ours first, whenever they were measured.
    methods = sorted(results["methods"].values(), key=lambda one: not one["name"].startswith("ddad"))
    columns = [key for key in COLUMNS if any(key in one for one in methods)]
    usual, rows = max(one["test_images"] for one in methods), []
    for one in methods:
        note = one["note"] if one["test_images"] == usual else f"{one['note']}; {one['test_images']} test images"
        rows.append([one["name"], *(format_value(key, one.get(key)) for key in columns), note])
    rows += [[name, *[""] * len(columns), f"not run: {why}"] for name, why in NOT_RUN.items()]
    shown = table(["", *(COLUMNS[key] for key in columns), ""], rows)
    machine = results["machine"]
    gpu = machine["gpu"] or "no GPU"
    caption = (
        f"{results['data']} Looked at by {results['looked_at']}."
        f" Machine: {machine['cores']} cores ({', '.join(machine['features'])}), {gpu}."
        " Memory is the process's peak; the fit of our rows is the checkpoint's training, which is not in it."
        f" {results.get('note', '')}"
    )
    return f"{shown}\n\n{caption}"


def render() -> str:
    """All tables, under a heading each."""
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"### {path.stem.replace('_', ' ').capitalize()}\n\n{format_table(results)}")
    return "\n\n".join(parts)


def insert(text: str, tables: str) -> str:
    """A text with the tables between its two marks.

    Raises:
        ValueError: if a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"docs/benchmarks.md needs the lines {BEGIN} and {END}: the tables go between them.")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    """Writes them into docs/benchmarks.md."""
    PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), render()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
