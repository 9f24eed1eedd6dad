"""Stores what is found on the examples of checkpoints, for the page to show at once: `python -m tools.examples`.

To be run again when a checkpoint or its examples change; results of another state are not shown.
"""

import argparse
from pathlib import Path

from ddad.app.examples import FOLDER_NAME, write_results
from tools.serve import ROOT


def main() -> None:
    """Inspects the examples of the given checkpoints, or of all bundled ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    chosen = parser.parse_args().checkpoints or sorted((ROOT / "checkpoints").iterdir())
    for checkpoint in chosen:
        if (checkpoint / FOLDER_NAME).is_dir():
            write_results(checkpoint, lambda path: print(path, flush=True))


if __name__ == "__main__":
    main()
