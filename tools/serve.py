"""Runs the page as its users do, `python app.py`, on a free port of this machine: for tests, pictures and load."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_START = 120


@contextmanager
def running_page(program: Path = ROOT / "app.py", **environment: str) -> Iterator[str]:
    """The address of the page, which stops in the end.

    Args:
        program: what is run.
        environment: variables to set beside the present ones.

    Raises:
        RuntimeError: if the page does not answer in time; with what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"} | environment
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, str(program)], cwd=ROOT, env=variables, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + LONGEST_START
            while True:
                try:
                    urllib.request.urlopen(url, timeout=2)
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(f"The page did not answer: {log.read()}") from None
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)
