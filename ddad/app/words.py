"""Text of strangers on the page: addresses, file names, categories, cards and the Hub's answers are words, not markup.

Every value that comes from outside goes into Markdown through `as_text`, and every message through `refused`. The
page's Markdown components are `Words`, which let no HTML through at all: what a sentence should have escaped and did
not is read as it was written, never obeyed.
"""

import re
from typing import Any

import gradio as gr

# Letters of any alphabet, digits and plain punctuation stay; all else could be markup, of HTML, Markdown or LaTeX. So
# could the colon and the full stop: an address becomes a link without further signs.
PLAIN = re.compile(r"[^\w ,;?%/]|_")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def as_text(value: Any) -> str:
    """A value for Markdown or HTML that is read exactly as it is written.

    Signs become numeric entities, which CommonMark and HTML both take for text whatever stands around them. Line
    breaks and what turns the direction of writing become spaces.
    """
    words = CONTROLS.sub(" ", str(value))
    return PLAIN.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found.group()), words)


def refused(error: gr.Error) -> str:
    """What was refused, and why, where it was asked."""
    return f"**{as_text(str(error.title).rstrip('.'))}.** {as_text(error.message)}"


class Words(gr.Markdown):
    """Markdown whose words come from the program; HTML in it is shown, not obeyed."""

    is_template = True  # for the browser it is Markdown

    def postprocess(self, value: str | None) -> str | None:
        """The text, with no element of HTML in it."""
        text = super().postprocess(value)
        return text if text is None else text.replace("<", "&lt;")
