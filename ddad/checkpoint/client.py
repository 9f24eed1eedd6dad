"""The connection to the Hub, for programs that somebody waits for: no request waits without end."""

import functools
from typing import Any

from huggingface_hub import constants, get_session, set_client_factory

# Seconds; the library itself waits without end for most answers. A commit of many files takes the Hub a while.
LONGEST_WAIT = {"GET": 20, "HEAD": 20}
LONGEST_WAIT_TO_SEND = 180


@functools.cache  # once a process: each time would add another hook to those of the client before
def bound_waiting() -> None:
    """Limits how long every request of this process to the Hub waits for an answer."""
    session = get_session()

    def limit(request: Any) -> None:
        seconds = LONGEST_WAIT.get(request.method, LONGEST_WAIT_TO_SEND)
        given = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: given.get(kind) or seconds for kind in kinds}

    hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], limit]}
    set_client_factory(lambda: type(session)(event_hooks=hooks, follow_redirects=True))


def reach() -> None:
    """Asks the Hub for a sign of life, once, before requests that the library tries six times; bounds all waiting.

    Raises:
        OSError, or an error of the HTTP library: if there is none, or HF_HUB_OFFLINE is set.
    """
    bound_waiting()
    get_session().head(constants.ENDPOINT, timeout=LONGEST_WAIT["HEAD"] / 2)
