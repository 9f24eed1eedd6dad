"""Where an image lies among good parts: a drawing in the page's colours, with words for who cannot see it."""

from html import escape

BINS = 24
WIDTH, HEIGHT, BASE, TOP = 640, 210, 172, 34
GOOD_COLOUR, FLAGGED_COLOUR, THIS_COLOUR = "#3b82f6", "#f59e0b", "#dc2626"


def bin_counts(normal_scores: list[float], low: float, high: float) -> list[int]:
    """How many scores lie in each of the bins between `low` and `high`; what lies beyond counts in the last."""
    counts = [0] * BINS
    for score in normal_scores:
        counts[min(max(int((score - low) / (high - low) * BINS), 0), BINS - 1)] += 1
    return counts


def draw_histogram(normal_scores: list[float], score: float, threshold: float) -> str:
    """The scores of held-out good parts as bars, the threshold as a line, and this image as a mark of its own.

    The scale ends at three times the threshold (or at the highest score of a good part): an image far beyond it stands
    at the end, so that the good parts stay apart.

    Args:
        normal_scores: image scores of held-out good parts; none are drawn as none.
        score: the image's score.
        threshold: the threshold.

    Returns:
        HTML.
    """
    low = min([*normal_scores, 0.0])
    high = max([*normal_scores, 3 * threshold, low + 1.0])
    counts = bin_counts(normal_scores, low, high)
    above = sum(score > threshold for score in normal_scores)

    def place(value: float) -> float:
        return WIDTH * min(max((value - low) / (high - low), 0.0), 1.0)

    tallest, width, bars = max([*counts, 1]), WIDTH / BINS, []
    for number, count in enumerate(counts):
        if count:
            height = (BASE - TOP) * count / tallest
            middle = low + (number + 0.5) * (high - low) / BINS
            colour = GOOD_COLOUR if middle <= threshold else FLAGGED_COLOUR
            bars.append(
                f'<rect x="{number * width + 1:.1f}" y="{BASE - height:.1f}" width="{width - 2:.1f}"'
                f' height="{height:.1f}" fill="{colour}"/>'
            )
    mark, line = min(max(place(score), 8), WIDTH - 8), place(threshold)
    beyond = " (beyond the scale)" if score > high else ""
    words = (
        f"Your image scores {score:.1f}{beyond}; the threshold is {threshold:.1f}. Of {len(normal_scores)} good parts"
        f" {above} score above it."
    )
    anchor = "start" if mark < WIDTH / 3 else "end" if mark > 2 * WIDTH / 3 else "middle"
    return f"""<figure style="margin:0"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}"
 style="width:100%;height:auto;font:15px sans-serif" fill="currentColor">{"".join(bars)}
<line x1="0" y1="{BASE}" x2="{WIDTH}" y2="{BASE}" stroke="currentColor"/>
<line x1="{line:.1f}" y1="{TOP - 8}" x2="{line:.1f}" y2="{BASE}" stroke="currentColor" stroke-dasharray="5 4"/>
<text x="{line:.1f}" y="{BASE + 18}" text-anchor="middle">threshold {threshold:.1f}</text>
<path class="your-image" data-score="{score:.2f}" d="M{mark:.1f} {BASE} l-8 -16 h5 V{TOP} h6 V{BASE - 16} h5 z"
 fill="{THIS_COLOUR}"/>
<text x="{mark:.1f}" y="{TOP - 14}" text-anchor="{anchor}" font-weight="bold">your image {score:.1f}{beyond}</text>
</svg><figcaption style="font-size:0.9em">{escape(words)}</figcaption></figure>"""
