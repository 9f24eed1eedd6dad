"""What is published with every checkpoint must run where this package is not installed."""

import ast
import re
import sys
from pathlib import Path

import pytest

import ddad
from ddad import DDADPipeline

PACKAGE = Path(ddad.__file__).parent
MODULES = list(dict.fromkeys(["pipeline", *(module for module, _ in DDADPipeline.component_classes.values())]))
# torchvision comes with timm, huggingface_hub with diffusers.
ALLOWED = {"torch", "torchvision", "numpy", "PIL", "diffusers", "timm", "huggingface_hub"} | sys.stdlib_module_names


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


FOLDERS = ("datasets", "report", "checkpoint", "calibration", "training", "evaluation", "app", "commands")
# Tools may import what is published and the folders named here; nothing else, and nothing back up.
MAY_IMPORT = {
    "datasets": set(),
    "report": set(),
    "evaluation": {"datasets", "report"},
    "checkpoint": {"datasets", "evaluation", "report"},
    "calibration": {"checkpoint", "datasets", "evaluation", "report"},
    "training": {"calibration", "checkpoint", "datasets", "evaluation"},
    "app": {"calibration", "checkpoint", "datasets", "report"},
    "commands": {"calibration", "checkpoint", "datasets", "evaluation", "report", "training"},
    "cli": {"commands"},
}
# diffusers loads a pipeline from one file, which can import none of its siblings.


def imported_folders(path: Path) -> set[str]:
    """The folders and tools of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {one[1] for one in parts if one[0] == "ddad" and len(one) > 1 and one[1] in {*FOLDERS, "cli"}}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder):
    files = [PACKAGE / "cli.py"] if folder == "cli" else sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    for path in files:
        # Where users begin stands `fit` too, which makes pipelines itself.
        also = {"calibration"} if path.name == "installed.py" else set()
        assert imported_folders(path) <= MAY_IMPORT[folder] | {folder} | also, path


def test_every_module_at_the_top_is_published_or_a_tool():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*MODULES, "__init__", "cli"}


def test_no_test_imports_a_test():
    """What several tests need lies in `helpers`, `conftest` or a module that is none."""
    for path in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"^from tests[\w.]*\.test_", path.read_text(encoding="utf-8"), flags=re.MULTILINE), path
