"""Any number of images on a Ray cluster: a row each in a folder of Parquet files; the same command again goes on.

Usage: pip install "ray[data]"; python predict_on_ray.py EXPORTED_CATEGORY RESULTS FOLDER [WORKERS]
`ddad export` makes the first; all three must lie where every machine finds them.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import ray

from ddad.runtime import load
from ddad.runtime.pictures import IMAGE_SUFFIXES
from ddad.runtime.records import Record

ROWS_A_FILE = 500  # what an interruption loses at most, of each worker


class Inspect:
    """Loads the category once a worker."""

    def __init__(self, category: str):
        self.inspector = load(category, threads=1)

    def __call__(self, row: dict) -> dict:
        """A file's path -> a row as `ddad predict` prints it; one that cannot be read is a row with its error."""
        try:
            record = self.inspector.inspect(row["image"]).record(row["image"])
        except ValueError as error:
            record = Record(row["image"], error=str(error))
        line = record.to_dict()
        return {**line, "regions": json.dumps(line["regions"]), "error": line["error"] or ""}


def main(category: str, results: str, folder: str, workers: int = 2) -> None:
    """Inspects what has no row yet."""
    files = Path(results).glob("*.parquet")
    done = {name for file in files for name in parquet.read_table(file, columns=["image"])["image"].to_pylist()}
    paths = [str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    new = [{"image": path} for path in paths if path not in done]
    print(f"{len(done)} images are done, {len(new)} to do.")
    if new:
        blocks = max(workers, len(new) // ROWS_A_FILE)
        data = ray.data.from_items(new, override_num_blocks=blocks)
        data.map(Inspect, fn_constructor_args=(category,), concurrency=workers).write_parquet(results, mode="append")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
