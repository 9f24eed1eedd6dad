"""Exported categories as an HTTP service: Gradio's server, which is FastAPI with a queue and tools for assistants.

A request's way: key and size (`Gate`) -> a place among those that wait -> a thread that reads and inspects -> JSON, or
a picture. What was answered is in the table of results before the answer leaves.
"""

import asyncio
import datetime
import hmac
import io
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fastapi
import PIL.Image
from fastapi.responses import JSONResponse, RedirectResponse, Response

from ddad.runtime.inspector import METADATA_NAME, Inspection, Inspector, load

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # a line has no network
from gradio import Server  # noqa: E402

KEY_VARIABLE = "DDAD_API_KEY"
# What is answered without the key: whether it runs, and what Gradio asks itself when it starts, which tells nothing.
OPEN = ("/health", "/gradio_api/startup-events")
# Readers and drawers; the engine has threads of its own.
WORKERS = 2
CLOSING_SECONDS = 30.0
Output = Literal["json", "overlay", "map"]
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one request may take, and how many may wait.

    Attributes:
        most_bytes: of a request's body; a longer one is answered by 413.
        most_waiting: requests that are inspected or wait for it; one more is answered by 429.
    """

    most_bytes: int = 50 * 2**20
    most_waiting: int = 64


class UnknownCategoryError(ValueError):
    """A category that is not served."""


class Shelf:
    """The categories that are served, by name; one whose folder has changed is taken up by `reload`.

    Args:
        folders: exported categories.
        engine: as for `load`.
        threads: as for `load`.

    Raises:
        OSError: as `load`.
        ValueError: if two categories have the same name.
    """

    def __init__(self, folders: Sequence[str | os.PathLike], engine: str | None = None, threads: int | None = None):
        self._folders, self._engine, self._threads = [Path(folder) for folder in folders], engine, threads
        self._held: dict[Path, tuple[str, Inspector]] = {}
        self.reload()

    @property
    def inspectors(self) -> dict[str, Inspector]:
        """By category, in the order in which the folders were given."""
        return {inspector.category: inspector for _, inspector in self._held.values()}

    def reload(self) -> list[str]:
        """Loads what has changed on disk; what is being inspected ends as it began.

        Returns:
            The categories that were loaded anew.

        Raises:
            OSError, ValueError: if a folder cannot be loaded; everything stays as it was.
        """
        held, fresh = {}, []
        for folder in self._folders:
            path = folder / METADATA_NAME
            state = path.read_text(encoding="utf-8") if path.is_file() else ""
            if folder in self._held and self._held[folder][0] == state:
                held[folder] = self._held[folder]
                continue
            held[folder] = state, load(folder, self._engine, self._threads)
            fresh.append(held[folder][1].category)
        names = [inspector.category for _, inspector in held.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"Two folders hold the same category: {', '.join(sorted(names))}.")
        self._held = held
        return fresh

    def get(self, category: str | None) -> Inspector:
        """A category, or the first.

        Raises:
            UnknownCategoryError: if there is no such one.
        """
        found = self.inspectors
        name = next(iter(found)) if category is None else category
        if name not in found:
            raise UnknownCategoryError(f"{name!r} is not served here; these are: {', '.join(found)}.")
        return found[name]


class Gate:
    """Lets requests through that carry the key and whose body is not too long; ASGI.

    Args:
        app: what comes after it.
        key: that every request but `/health` must carry, as `Authorization: Bearer KEY` or `X-API-Key`; None asks
            for none.
        most_bytes: of a body.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str | None, most_bytes: int):
        self.app, self.key, self.most_bytes = app, key, most_bytes

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        """See ASGI's specification, version 3."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._has_key(headers) and scope["path"] not in OPEN:
            said = "The key is missing or wrong: send it as X-API-Key, or as Authorization: Bearer."
            await JSONResponse({"error": said}, 401)(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.most_bytes:
            await too_long(self.most_bytes)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _has_key(self, headers: dict[str, str]) -> bool:
        if self.key is None:
            return True
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.key.encode())


def too_long(most_bytes: int) -> JSONResponse:
    """The answer to a body that is too long; the rest of it is not waited for."""
    said = f"A request holds {most_bytes / 2**20:.0f} MB at most: crop the image, or save it as PNG or JPEG."
    return JSONResponse({"error": said}, 413, {"connection": "close"})


def png(picture: PIL.Image.Image, form: str = "PNG") -> bytes:
    """A picture as a file."""
    data = io.BytesIO()
    picture.save(data, format=form)
    return data.getvalue()


class Service:
    """Inspects for many at once, a few at a time, and keeps what was answered.

    Args:
        shelf: the categories.
        images: folder whose files may be named by path; None lets no file be named.
        results: file that every answer is appended to as a line of JSON; None keeps none.
        limits: of requests.
    """

    def __init__(
        self, shelf: Shelf, images: Path | None = None, results: Path | None = None, limits: Limits | None = None
    ):
        self.shelf, self.limits = shelf, limits or Limits()
        self.images = None if images is None else images.resolve()
        self.waiting, self.answered, self.closing = 0, 0, False
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="inspect")
        self._results = None if results is None else results.open("a", encoding="utf-8")
        self._writing = threading.Lock()

    def find_file(self, path: str) -> Path:
        """A file that a request names, below the folder whose files may be.

        Raises:
            PermissionError: for one that lies elsewhere.
        """
        if self.images is None:
            raise PermissionError("No files may be named here: start the service with --images FOLDER.")
        found = (self.images / path).resolve()
        if not found.is_relative_to(self.images):
            raise PermissionError(f"{path} does not lie in the folder whose files may be named.")
        return found

    def inspect(
        self, image: bytes | Path, name: str, category: str | None, threshold: float | None, false_alarms: float | None
    ) -> tuple[Inspection, dict[str, Any]]:
        """What is found, and the line that is kept of it.

        Raises:
            UnknownCategoryError: for a category that is not served.
            ValueError: for an image that cannot be read.
        """
        inspector = self.shelf.get(category)
        if false_alarms is not None:
            threshold = inspector.threshold_at(false_alarms)
        found = inspector.inspect(image, threshold)
        line = {"category": inspector.category, **found.record(name).to_dict()}
        self.keep(line)
        return found, line

    def keep(self, line: dict[str, Any]) -> None:
        """Appends an answer to the results, and counts it."""
        with self._writing:
            self.answered += 1
            if self._results is not None:
                date = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
                self._results.write(json.dumps({"date": date, **line}) + "\n")
                self._results.flush()

    async def answer(self, output: Output, *asked: Any) -> Response:
        """The response to a request for an inspection, once one of the threads had time for it."""
        if self.closing:
            return JSONResponse({"error": "The service is being stopped."}, 503, {"retry-after": "5"})
        if self.waiting >= self.limits.most_waiting:
            said = f"{self.waiting} images wait already: try again in a moment."
            return JSONResponse({"error": said}, 429, {"retry-after": "1"})
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, self._respond, output, *asked)
        finally:
            self.waiting -= 1

    def _respond(self, output: Output, *asked: Any) -> Response:
        try:
            found, line = self.inspect(*asked)
        except UnknownCategoryError as error:
            return JSONResponse({"error": str(error)}, 404)
        except ValueError as error:
            return JSONResponse({"error": str(error).replace(f"{self.images}{os.sep}", "")}, 422)
        if output == "json":
            return JSONResponse(line)
        verdict = {"x-is-anomalous": str(found.is_anomalous).lower(), "x-image-score": f"{found.image_score:.4f}"}
        if output == "overlay":
            return Response(png(found.overlay), media_type="image/png", headers=verdict)
        return Response(png(PIL.Image.fromarray(found.anomaly_map), "TIFF"), media_type="image/tiff", headers=verdict)

    def close(self) -> None:
        """Ends when all that waits is answered."""
        self.closing = True
        self._workers.shutdown(wait=True)
        if self._results is not None:
            self._results.close()


def create_server(service: Service, key: str | None) -> Server:
    """The endpoints: `/inspect`, `/categories`, `/health`, `/reload`, and tools for assistants.

    Args:
        service: what inspects.
        key: that requests must carry.
    """
    server = Server(title="ddad", docs_url="/docs", redoc_url=None)
    server.add_middleware(Gate, key=key, most_bytes=service.limits.most_bytes)

    @server.get("/", include_in_schema=False)
    def root() -> Response:
        """Where the endpoints are described."""
        return RedirectResponse("docs")

    @server.get("/health")
    def health() -> dict[str, Any]:
        """Whether it inspects, and how much waits."""
        state = "stopping" if service.closing else "ok"
        return {"status": state, "waiting": service.waiting, "answered": service.answered}

    @server.get("/categories")
    def categories() -> list[dict[str, Any]]:
        """What is served, and by which thresholds."""
        return describe_categories(service)

    @server.post("/reload")
    def reload() -> Response:
        """Takes up folders that were exported anew."""
        try:
            return JSONResponse({"loaded": service.shelf.reload()})
        except (OSError, ValueError) as error:
            return JSONResponse({"error": f"Everything stays as it was: {error}"}, 409)

    @server.post("/inspect")
    async def inspect(
        request: fastapi.Request,
        category: str | None = None,
        threshold: float | None = None,
        false_alarms: float | None = None,
        output: Output = "json",
        name: str = "image",
    ) -> Response:
        """Inspects one image: the body is its file, or JSON that names one of this machine's as `path`."""
        image: bytes | Path = await read_body(request, service.limits.most_bytes)
        if len(image) > service.limits.most_bytes:
            return too_long(service.limits.most_bytes)
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                name = str(json.loads(image)["path"])
                image = service.find_file(name)
            except (ValueError, KeyError, TypeError):
                return JSONResponse({"error": 'JSON must be {"path": "a file"}; an image is the body itself.'}, 422)
            except PermissionError as error:
                return JSONResponse({"error": str(error)}, 403)
        return await service.answer(output, image, name, category, threshold, false_alarms)

    add_tools(server, service)
    return server


async def read_body(request: fastapi.Request, most_bytes: int) -> bytes:
    """The body, or a little more than may be of one that is too long, of whatever length it said to be."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            break
    return bytes(body)


def describe_categories(service: Service) -> list[dict[str, Any]]:
    """What is served: name, threshold, the part of good parts that is meant to fail, and the engine."""
    return [
        {
            "category": name,
            "threshold": round(inspector.threshold, 4),
            "false_alarms": round(inspector.metadata["false_alarms"], 4),
            "engine": inspector.engine,
        }
        for name, inspector in service.shelf.inspectors.items()
    ]


def add_tools(server: Server, service: Service) -> None:
    """What assistants and Gradio's clients call."""

    # Gradio would send what it queues to itself once more, without the key.
    @server.mcp.tool()
    @server.api(name="list_categories", queue=False)
    def list_categories() -> list[dict[str, Any]]:
        """Lists the categories (kinds of product) that can be inspected, with their thresholds."""
        return describe_categories(service)

    @server.mcp.tool()
    @server.api(name="inspect_file", queue=False)
    async def inspect_file(path: str, category: str = "") -> dict[str, Any]:
        """Finds the defects on the photograph of a product.

        Args:
            path: the file, below the folder that the service was started with.
            category: one that list_categories names; empty for the first.

        Returns:
            Verdict, score, threshold, and the defects as boxes in pixels; or an error.
        """
        try:
            image = service.find_file(path)
        except PermissionError as error:
            return {"error": str(error)}
        return json.loads((await service.answer("json", image, path, category or None, None, None)).body)


def serve(service: Service, host: str, port: int, key: str | None, started: Callable[[str], None] = print) -> None:
    """Serves until the process is told to end, then answers what waits.

    Args:
        service: what inspects.
        host: address to listen at.
        port: and the port.
        key: that requests must carry.
        started: called with a sentence once requests are answered.
    """
    server, ended = create_server(service, key), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=True,
        max_file_size=service.limits.most_bytes,
    )
    started(f"Serving {', '.join(service.shelf.inspectors)} at http://{host}:{port}; /docs describes the endpoints.")
    ended.wait()
    service.close()
    server.get_blocks().close()
