"""The distribution `ddad-runtime`: `ddad.runtime` alone, for machines without PyTorch.

    pip install "ddad-runtime[onnx,serve]"
    ddad-runtime serve bottle_exported

It holds the same files as the package `ddad` and is not to be installed beside it, which has them.
"""

import re
from pathlib import Path

from setuptools import setup

PACKAGE = Path("../../ddad")
VERSION = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)

setup(
    name="ddad-runtime",
    version=VERSION[1],
    description="Verdicts of categories exported by ddad, without PyTorch",
    long_description=(PACKAGE / "runtime" / "__init__.py").read_text(encoding="utf-8").split('"""')[1],
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["ddad.runtime"],
    package_dir={"ddad.runtime": str(PACKAGE / "runtime")},
    install_requires=["numpy>=1.26", "pillow>=10"],
    extras_require={
        "onnx": ["onnxruntime>=1.20"],
        "openvino": ["openvino>=2024.4"],
        "serve": ["gradio[mcp]>=6.0,<7"],
        "line": ["opencv-python-headless>=4.8", "paho-mqtt>=2"],
    },
    entry_points={"console_scripts": ["ddad-runtime = ddad.runtime.commands:main"]},
)
