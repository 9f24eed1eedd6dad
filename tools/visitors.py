"""How the page serves many visitors at once: `python -m tools.visitors --visitors 30`.

Each visitor does what a browser does, with its protocol: uploads an image, waits for verdict and heatmap, then for the
normal version. Prints how long they waited, and how many were told that the page is busy.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ddad.app.examples import photographs
from tools.serve import ROOT, running_page

CATEGORY = "solar_cell_mono"
LONGEST_WAIT = 600


@dataclass
class Visit:
    """Seconds until the heatmap and the normal version were there, or what the page said instead."""

    heatmap: float | None = None
    normal_version: float | None = None
    error: str | None = None


class Visitor:
    """One browser session, without the browser."""

    def __init__(self, url: str, number: int):
        self.api = f"{url}/gradio_api"
        self.session = f"visitor{number}"
        self.http = httpx.Client(timeout=LONGEST_WAIT)
        config = self.http.get(f"{url}/config").json()
        self.events: dict[str, int] = {}
        for one in config["dependencies"]:
            self.events.setdefault(one["api_name"].lstrip("_"), one["id"])

    def run(self, event: str, data: list[Any]) -> Iterator[str]:
        """Runs one event; what it shows, each time as text.

        Raises:
            RuntimeError: with what the page says, if it refuses.
        """
        body = {"data": data, "fn_index": self.events[event], "session_hash": self.session}
        joined = self.http.post(f"{self.api}/queue/join", json=body)
        if joined.status_code != 200:
            raise RuntimeError(joined.json().get("detail", joined.text))
        with self.http.stream("GET", f"{self.api}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_generating":
                    yield json.dumps(message["output"], ensure_ascii=False)
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"].get("error") or "no reason given")
                    return
        raise RuntimeError("The page hung up.")

    def visit(self, image: Path, category: str = CATEGORY) -> Visit:
        """Gives an image and waits."""
        result, started = Visit(), time.monotonic()
        try:
            with image.open("rb") as file:
                uploaded = self.http.post(f"{self.api}/upload", files={"files": (image.name, file)}).json()[0]
            given = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
            for shown in self.run("inspect_image", [given, category, 0.7, time.time() * 1000]):
                if result.heatmap is None and "efect found" in shown:
                    result.heatmap = time.monotonic() - started
            result.normal_version = time.monotonic() - started
        except (RuntimeError, httpx.HTTPError) as error:
            result.error = str(error)
        return result


def describe(name: str, seconds: list[float]) -> str:
    """One line of the report."""
    if not seconds:
        return f"{name}: nobody"
    return (
        f"{name}: {len(seconds)} visitors, first {min(seconds):.1f} s, median {statistics.median(seconds):.1f} s,"
        f" last {max(seconds):.1f} s"
    )


def main() -> None:
    """Runs the page and its visitors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=30)
    count = parser.parse_args().visitors
    image = photographs(ROOT / "checkpoints" / CATEGORY)[0]
    with running_page() as url:
        Visitor(url, 0).visit(image)  # the first visit warms the page up
        visitors = [Visitor(url, number) for number in range(1, count + 1)]
        with ThreadPoolExecutor(count) as threads:
            visits = list(threads.map(lambda one: one.visit(image), visitors))
    print(describe("heatmap", [one.heatmap for one in visits if one.heatmap is not None]))
    print(describe("normal version", [one.normal_version for one in visits if one.normal_version is not None]))
    for message in sorted({one.error for one in visits if one.error}):
        print(f"{sum(one.error == message for one in visits)} were told: {message}")


if __name__ == "__main__":
    main()
