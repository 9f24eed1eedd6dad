"""The command `ddad-runtime`, on machines without PyTorch: `inspect`, `serve`, `watch`, `monitor` and `report`."""

import argparse
import json
import os
import sys
from pathlib import Path


def add_serving(parser: argparse.ArgumentParser, what: str) -> None:
    """What a service is told.

    Args:
        parser: of the command.
        what: the categories may be.
    """
    parser.add_argument("categories", nargs="+", metavar="CATEGORY", help=what)
    add_engine(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder whose files requests may name by path")
    parser.add_argument("--results", type=Path, metavar="FILE", help="every answer is appended as a line of JSON")
    parser.add_argument(
        "--max-megabytes", type=float, default=50, help="a longer body is answered by 413 (default: %(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=64, help="requests beyond are answered by 429 (default: %(default)s)"
    )
    parser.epilog = "Where DDAD_API_KEY is set requests must carry it, as X-API-Key or as Authorization: Bearer."


def add_engine(parser: argparse.ArgumentParser) -> None:
    """By what graphs are evaluated."""
    parser.add_argument(
        "--engine",
        choices=("onnx", "openvino"),
        help="what evaluates (default: the faster of those installed, timed once)",
    )
    parser.add_argument("--threads", type=int, help="of the engine (default: all cores)")


def run_service(arguments: argparse.Namespace) -> int:
    """Serves exported folders."""
    from ddad.runtime import service

    limits = service.Limits(int(arguments.max_megabytes * 2**20), arguments.max_waiting)
    shelf = service.Shelf(arguments.categories, arguments.engine, arguments.threads)
    served = service.Service(shelf, arguments.images, arguments.results, limits)
    service.serve(served, arguments.host, arguments.port, os.environ.get(service.KEY_VARIABLE))
    return 0


def add_watching(parser: argparse.ArgumentParser, what: str) -> None:
    """What a watch is told.

    Args:
        parser: of the command.
        what: the category may be.
    """
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder in which pictures appear, a camera (0, rtsp://...), or a video file"
    )
    parser.add_argument("--category", required=True, metavar="CATEGORY", help=what)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="results: inspections.csv, overlays, and its state",
    )
    add_engine(parser)
    parser.add_argument("--threshold", type=float, help="score above which an image is anomalous (default: measured)")
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between looks, or a camera's pictures (default: %(default)s)"
    )
    parser.add_argument("--webhook", metavar="ADDRESS", help="every result is posted there as JSON")
    parser.add_argument("--mqtt", metavar="ADDRESS", help="and published, mqtt://host:1883/a/topic")
    parser.add_argument("--all-overlays", action="store_true", help="draw good images too")
    parser.add_argument("--once", action="store_true", help="end when nothing is left to inspect")


def run_watch(arguments: argparse.Namespace) -> int:
    """Watches a folder or a camera."""
    from ddad.runtime.inspector import load
    from ddad.runtime.sinks import to_mqtt, to_webhook
    from ddad.runtime.watch import watch

    receivers = {}
    if arguments.webhook is not None:
        receivers[f"webhook {arguments.webhook}"] = to_webhook(arguments.webhook)
    if arguments.mqtt is not None:
        place = arguments.mqtt.rpartition("@")[2]  # without the password
        receivers[f"mqtt {place}"] = to_mqtt(arguments.mqtt)
    inspector = load(arguments.category, arguments.engine, arguments.threads)
    if arguments.threshold is not None:
        inspector.threshold = arguments.threshold
    watch(
        inspector,
        arguments.output,
        arguments.source,
        arguments.every,
        receivers,
        arguments.all_overlays,
        arguments.once,
    )
    return 0


def add_results(parser: argparse.ArgumentParser) -> None:
    """What was found, and by which periods it is told."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        help="results: the --output of a watch or of `ddad predict`, or the --results of a service",
    )
    parser.add_argument(
        "--by",
        default="auto",
        metavar="PERIOD",
        help="hour, day, or how many pictures make a period (default: what gives some dozen)",
    )


def add_monitoring(commands: argparse._SubParsersAction) -> None:
    """`monitor` and `report`, which need nothing but results."""
    monitor = commands.add_parser(
        "monitor",
        help="say what has changed on a line: parts, light, focus or material",
        description="Says in a sentence whether more parts fail than before and why, as far as pictures tell: whether"
        " they have become darker, less sharp or different all over; and prints what was found by hour or day.",
    )
    add_results(monitor)
    monitor.add_argument("--output", type=Path, metavar="FILE", help="an HTML file with the same drawn")
    monitor.set_defaults(run=run_monitor)
    report = commands.add_parser(
        "report",
        help="results as one HTML file for people who were not there",
        description="Writes counts, what has changed, and every image that was called defective under its heatmap and"
        " without its defect, into one file that opens anywhere and prints.",
    )
    add_results(report)
    report.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file, report.html say")
    report.add_argument("--title", default="Inspection", help="(default: %(default)s)")
    report.set_defaults(run=run_report)


def run_monitor(arguments: argparse.Namespace) -> int:
    """Prints what has changed; with `--output` draws it."""
    from ddad.runtime.html import write_report
    from ddad.runtime.monitor import by_period, describe_changes
    from ddad.runtime.results import read_results

    results = read_results(arguments.results)
    print("\n".join(describe_changes(results)))
    heads = ("period", "pictures", "fail %", "median", "95 %", "bright", "sharp", "distance")
    print("{:<20} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9}".format(*heads))
    for period in by_period(results, arguments.by):
        scores = f"{period.scores[0]:>7.2f} {period.scores[1]:>7.2f}"
        known = period.condition
        taken = "" if known is None else f"{known[0]:>7.3f} {known[1]:>7.3f} {known[2]:>9.3f}"
        print(f"{period.name:<20} {period.count:>9,} {100 * period.failing:>7.1f} {scores} {taken}")
    if arguments.output is not None:
        write_report(results, arguments.output, "What has changed", arguments.by)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from ddad.runtime.html import write_report
    from ddad.runtime.results import read_results

    write_report(read_results(arguments.results), arguments.output, arguments.title, arguments.by)
    print(f"Written to {arguments.output}.", file=sys.stderr)
    return 0


def run_inspect(arguments: argparse.Namespace) -> int:
    """A line of JSON an image; the exit status is 1 if one could not be read."""
    from ddad.runtime.inspector import load
    from ddad.runtime.records import Record

    inspector, status = load(arguments.category, arguments.engine, arguments.threads), 0
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    for path in arguments.images:
        try:
            found = inspector.inspect(path, arguments.threshold)
            line = found.record(path)
            if arguments.output is not None:
                found.overlay.save(arguments.output / f"{Path(path).stem}_overlay.png")
        except ValueError as error:
            line, status = Record(path, error=str(error)), 1
        print(json.dumps(line.to_dict()), flush=True)
    return status


def create_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    said = "Inspects images by categories that were exported."
    parser = argparse.ArgumentParser(prog="ddad-runtime", description=said)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    inspect = commands.add_parser("inspect", help="a line of JSON for each image")
    inspect.add_argument("category", metavar="CATEGORY", help="exported folder")
    inspect.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    inspect.add_argument("--output", type=Path, help="folder for the images under their heatmaps")
    inspect.add_argument("--threshold", type=float, help="(default: as exported)")
    add_engine(inspect)
    inspect.set_defaults(run=run_inspect)
    watch = commands.add_parser("watch", help="inspect what appears in a folder, or a camera's pictures")
    add_watching(watch, "exported folder")
    watch.set_defaults(run=run_watch)
    serve = commands.add_parser("serve", help="inspect images over HTTP")
    add_serving(serve, "exported folders")
    serve.set_defaults(run=run_service)
    add_monitoring(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; what is wrong with its input is one line on standard error."""
    arguments = create_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"ddad-runtime: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
