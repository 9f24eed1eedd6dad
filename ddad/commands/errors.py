"""What went wrong with the Hub, in a sentence that says what to do."""

import json
from collections.abc import Iterator
from typing import Any

GOES_ON = "The same command goes on where it stopped."


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def explain_status(status: int, response: Any) -> str | None:
    """What a refusal of the Hub means; None for one that speaks for itself."""
    if status == 401:
        return "The Hub does not accept your token: log in with `hf auth login`, or set HF_TOKEN to a valid one."
    if status == 403:
        return "Your token may not do this on the Hub: it needs access to the repository, to write for `publish`."
    if status == 404:
        return "The Hub has no such repository or file, or it is private: check the name, or log in."
    if status == 429:
        after = response.headers.get("retry-after")
        wait = f"in {after} seconds" if after else "in some minutes"
        return f"The Hub asks to wait, there were too many requests: try again {wait}. {GOES_ON}"
    if status >= 500:
        return f"The Hub has a fault of its own ({status}): try again later. {GOES_ON}"
    return None


def explain(error: BaseException) -> str | None:
    """What to tell somebody whose command failed at the Hub; None for what has another cause."""
    for cause in chain(error):
        name, module = type(cause).__name__, type(cause).__module__
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int) and module.startswith(("huggingface_hub", "httpx", "ddad")):
            return explain_status(status, response)
        if name == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set, so nothing is asked of the Hub: unset it, or give a folder."
        if module.startswith("httpx") and "Timeout" in name:
            return f"The Hub does not answer in time: check the network, or try again later. {GOES_ON}"
        if module.startswith("httpx"):
            return f"The Hub cannot be reached ({cause}): check the network. {GOES_ON}"
        if isinstance(cause, json.JSONDecodeError):
            frames = cause.__traceback__
            while frames is not None:
                if "huggingface_hub" in frames.tb_frame.f_code.co_filename:
                    return (
                        "What answers is not the Hub (a page instead of data): a proxy may stand between. Check"
                        " HF_ENDPOINT."
                    )
                frames = frames.tb_next
    return None
