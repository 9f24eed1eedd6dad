"""The files of a checkpoint's folder, and the tags by which it is found on the Hub."""

import os
from pathlib import Path

INDEX_NAME = "model_index.json"
CHECKSUMS_NAME = "checksums.json"
VERSIONS_NAME = "versions.json"
RECORD_NAME = "training.json"
EVALUATION_NAME = "evaluation.json"
FIGURE_NAME = "figure.webp"
CURVE_NAME = "training.webp"
CHOSEN_NAME = "repositories.txt"
"""Beside checkpoints: further ones on the Hub that the page offers, one a line."""
UNFINISHED_NAME = "checkpoint.new"
"""A checkpoint that is being written; what a killed command leaves."""

TAG = "ddad"
TAGS = (TAG, "anomaly-detection", "defect-detection", "diffusers")

BUNDLED_BASE = Path(__file__).parents[2] / "checkpoints" / "base"
"""The base network that a clone of the project holds; an installed package has none."""
# Of an unfinished training in a checkpoint's folder; in it the averaged weights as a network that can be loaded: what
# the run has learnt so far.
STATE_FOLDER, AVERAGE_NAME = "training_state", "average"
# Beside it: how far the run is, a line of JSON each second.
PROGRESS_NAME = "training_progress.jsonl"


def kept_below(name: str) -> Path:
    """A folder of what is kept for this user: `$DDAD_HOME/NAME`, else `~/.cache/ddad/NAME`."""
    return Path(os.environ.get("DDAD_HOME") or Path.home() / ".cache" / "ddad").expanduser() / name
