"""Writes docs/api.md from the docstrings: `python -m tools.reference`, or `make reference`."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import ddad

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "api.md"
EXAMPLES = ROOT / "docs" / "examples"
HEAD = """# Reference

Written by `make reference` from the docstrings; do not edit. Everything here is importable from `ddad`.

The pipeline is a diffusers `DiffusionPipeline`, its components are `ModelMixin`s and `SchedulerMixin`s: what these
have (`save_pretrained`, `push_to_hub`, `to`, `set_progress_bar_config`, ...) works as it does in diffusers.

## Examples

Run by the tests, from the root of this repository.
"""
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
ITEM = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


def format_docstring(text: str) -> str:
    """Google's sections as Markdown: a bold heading and a list."""
    lines, section = [], False
    for line in inspect.cleandoc(text).splitlines():
        name, colon, rest = line.partition(":")
        if colon and name in SECTIONS and not rest:
            lines += [f"**{name}**", ""]
            section = True
        elif section and (item := ITEM.match(line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith(" " * 8):
            lines.append("  " + line.strip())
        else:
            lines.append(line.strip() if section else line)
    return "\n".join(lines)


def format_signature(function: Any) -> str:
    """The arguments with their defaults, on lines of their own where they are many."""
    parameters = inspect.signature(function).parameters.values()
    shown = [
        str(one.replace(annotation=inspect.Parameter.empty)) for one in parameters if one.name not in ("self", "cls")
    ]
    line = ", ".join(shown)
    return line if len(line) < 80 else "\n" + textwrap.indent(",\n".join(shown), "    ") + ",\n"


def public_members(cls: type) -> list[tuple[str, Any]]:
    """Methods and properties that the class itself defines, in the order of the file."""
    members = [(name, value) for name, value in vars(cls).items() if not name.startswith("_") or name == "__call__"]
    plain = [(name, getattr(value, "__func__", value)) for name, value in members]
    return [(name, value) for name, value in plain if inspect.isfunction(value) or isinstance(value, property)]


def write_class(name: str) -> str:
    """One class of the package."""
    cls = getattr(ddad, name)
    parts = [f"## {name}\n", format_docstring(cls.__doc__), ""]
    if "Args:" in cls.__doc__ or hasattr(cls, "__dataclass_fields__"):
        parts += [f"```python\n{name}({format_signature(cls.__init__)})\n```\n"]
    for member, value in public_members(cls):
        if not value.__doc__:
            continue
        if isinstance(value, property):
            parts += [f"### `{member}`\n", format_docstring(value.__doc__), ""]
        else:
            called = "pipe" if member == "__call__" else f".{member}"
            parts += [f"### `{member}`\n", f"```python\n{called}({format_signature(value)})\n```\n"]
            parts += [format_docstring(value.__doc__), ""]
    return "\n".join(parts)


def write_reference() -> str:
    """The whole page."""
    lines = []
    for path in sorted(EXAMPLES.glob("*.py")):
        first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
        lines.append(f"- [{path.name}](examples/{path.name}): {first}")
    names = ["DDADPipeline", "DDADPipelineOutput", "DDADScores"]
    names += [name for name in ddad.__all__ if name not in names]
    return HEAD + "\n" + "\n".join(lines) + "\n\n" + "\n".join(write_class(name) for name in names).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(write_reference(), encoding="utf-8")
    print(TARGET)
