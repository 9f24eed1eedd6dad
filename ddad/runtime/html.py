"""Results as one file of HTML for people who were not there: nothing is loaded from anywhere, and it prints."""

import base64
import datetime
import html
import io
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import PIL.Image

from ddad.runtime.monitor import Period, by_period, describe_changes, share_failing
from ddad.runtime.results import Kept

MOST_SHOWN, SIDE = 100, 420
WIDTH, HEIGHT, MARGIN = 640, 150, 34
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: 0 } h2 { margin-top: 2em } table { border-collapse: collapse } .said { font-size: 1.1em }
td, th { padding: .2em .8em .2em 0; text-align: right } td:first-child, th:first-child { text-align: left }
figure { break-inside: avoid; margin: 0 0 1.5em; display: inline-block; vertical-align: top; width: 48% }
figure img { width: 49%; border-radius: 4px } figcaption { font-size: 13px; overflow-wrap: anywhere }
svg { width: 100%; max-width: 640px; height: auto; break-inside: avoid; display: block }
@media print { body { margin: 0; max-width: none } }
"""


def text(value: object) -> str:
    """A value as HTML shows it."""
    return html.escape(str(value))


def picture(source: PIL.Image.Image, name: str) -> str:
    """A picture inside the file, small."""
    small = source.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return f'<img alt="{text(name)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def chart(title: str, names: Sequence[str], values: Sequence[float], form: str = "{:.2f}") -> str:
    """A line of values over periods, from the lowest to the highest with some room."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.15, abs(high) * 0.02, 1e-6)
    low, high = low - room, high + room

    def place(number: int, value: float) -> tuple[float, float]:
        across = (WIDTH - 2 * MARGIN) * (number / max(len(values) - 1, 1)) + MARGIN
        return across, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low)

    points = [place(number, value) for number, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{text(name)}: {form.format(value)}</title></circle>'
        for (x, y), name, value in zip(points, names, values, strict=True)
    )
    ends = (
        f'<text x="{MARGIN}" y="{HEIGHT - 8}">{text(names[0])}: {form.format(values[0])}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 8}" text-anchor="end">{text(names[-1])}: {form.format(values[-1])}'
        "</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}" font-size="12" fill="#475569">'
        f'<text x="{MARGIN}" y="18" font-weight="bold">{text(title)}</text>'
        f'<polyline points="{line}" fill="none" stroke="#4f46e5" stroke-width="2"/><g fill="#4f46e5">{marks}</g>{ends}'
        "</svg>"
    )


def charts(periods: Sequence[Period]) -> str:
    """What changed over the periods, drawn; nothing of fewer than two."""
    if len(periods) < 2:
        return ""
    names = [period.name for period in periods]
    drawn = [
        chart("Parts that fail, %", names, [100 * period.failing for period in periods], "{:.1f}"),
        chart("Score that 95 % of pictures stay below", names, [period.scores[1] for period in periods]),
    ]
    known = [(period.name, period.condition) for period in periods if period.condition is not None]
    if len(known) > 1:
        for number, title in enumerate(("Brightness", "Sharpness", "Distance of the whole picture from good ones")):
            drawn.append(chart(title, [name for name, _ in known], [values[number] for _, values in known], "{:.3f}"))
    return "\n".join(drawn)


def table_of(periods: Sequence[Period]) -> str:
    """The same as a table."""
    heads = ("Period", "pictures", "fail, %", "score: median", "95 %", "brightness", "sharpness", "distance")
    rows = [
        [
            text(period.name), f"{period.count:,}", f"{100 * period.failing:.1f}",
            *(f"{value:.2f}" for value in period.scores),
            *(("", "", "") if period.condition is None else (f"{value:.3f}" for value in period.condition)),
        ]
        for period in periods
    ]  # fmt: skip
    cells = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{cells}</table>"


def gallery(results: Sequence[Kept]) -> str:
    """The images that were called defective, the strongest first, under their heatmaps and without their defects."""
    found = sorted(
        (one for one in results if one.record.is_anomalous), key=lambda one: -(one.record.image_score or 0.0)
    )
    figures = []
    for one in found[:MOST_SHOWN]:
        pictures = []
        for path, what in ((one.overlay, "under its heatmap"), (one.normal, "without its defect")):
            if path is not None:
                with PIL.Image.open(path) as source:
                    pictures.append(picture(source, f"{one.record.image} {what}"))
        regions = len(one.record.regions)
        said = f"score {one.record.image_score:.1f}, {regions} region{'s' * (regions != 1)}, {one.date:%Y-%m-%d %H:%M}"
        figures.append(
            f"<figure>{''.join(pictures)}<figcaption>{text(one.record.image)}<br>{text(said)}</figcaption></figure>"
        )
    if not figures:
        return "<p>None.</p>"
    more = len(found) - len(figures)
    rest = f"<p>The {len(figures)} with the highest scores; {more:,} more are in the table of results.</p>"
    return "\n".join(figures) + (rest if more > 0 else "")


def version() -> str:
    """Of what made the file."""
    for name in ("ddad", "ddad-runtime"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "ddad"


def write_report(results: Sequence[Kept], path: str | Path, title: str, by: str = "auto") -> None:
    """Writes the file.

    Args:
        results: in the order of their dates.
        path: of the file; an interruption leaves no half of it.
        title: what it is about.
        by: see `by_period`.
    """
    inspected = [one for one in results if one.record.is_anomalous is not None]
    broken = [one for one in results if one.record.is_anomalous is None]
    failing = sum(bool(one.record.is_anomalous) for one in inspected)
    categories = sorted({one.category for one in results if one.category})
    thresholds = sorted({one.record.threshold for one in inspected if one.record.threshold is not None})
    periods = by_period(results, by) if inspected else []
    limits = (
        " to ".join(f"{value:.2f}" for value in dict.fromkeys((thresholds[0], thresholds[-1])))
        if thresholds
        else "none"
    )
    facts = [
        f"{len(inspected):,} inspected, {failing:,} with defects ({100 * share_failing(inspected):.1f} %),"
        f" {len(broken):,} that could not be read",
        f"Threshold {limits}, in standard deviations of good parts"
        + (f"; category {', '.join(categories)}" * bool(categories)),
        f"{results[0].date:%Y-%m-%d %H:%M} to {results[-1].date:%Y-%m-%d %H:%M}; made by {version()} on"
        f" {datetime.datetime.now():%Y-%m-%d %H:%M}",
    ]
    unread = "".join(f"<li>{text(one.record.image)}: {text(one.record.error)}</li>" for one in broken[:MOST_SHOWN])
    said = "".join(f'<p class="said">{text(sentence)}</p>' for sentence in describe_changes(results))
    content = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{text(title)}</title><style>{STYLE}</style></head><body>
<h1>{text(title)}</h1>
<ul>{"".join(f"<li>{text(fact)}</li>" for fact in facts)}</ul>
<h2>What has changed</h2>
{said}
{charts(periods)}
{table_of(periods) if periods else ""}
<h2>Called defective</h2>
{gallery(results)}
{f"<h2>Could not be read</h2><ul>{unread}</ul>" if broken else ""}
</body></html>
"""
    target = Path(path)
    fresh = target.with_name(f".{target.name}")
    fresh.write_text(content, encoding="utf-8")
    os.replace(fresh, target)
