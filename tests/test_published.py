"""What is published with every checkpoint must run where this package is not installed."""

import ast
import re
import sys
from pathlib import Path

import pytest

import ddad
from ddad import DDADPipeline

PACKAGE = Path(ddad.__file__).parent
MODULES = ["pipeline", *(module for module, _ in DDADPipeline.component_classes.values())]
ALLOWED = {"torch", "numpy", "PIL", "diffusers", "timm", "huggingface_hub"} | sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_published_modules_import_third_parties_alone(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        assert {name.split(".")[0] for name in names} <= ALLOWED
    # diffusers scans the text, docstrings too, for relative imports and packages.
    assert not re.search(r"^\s*(?:from|import)\s+(?:ddad|\.)", source, flags=re.MULTILINE)


def test_every_module_at_the_top_is_published_or_a_tool():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*MODULES, "__init__", "cli"}
