"""The page in the browser: it calls the pipeline and computes nothing itself."""

import ddad.app.compute  # noqa: F401  ZeroGPU must be known before anything touches CUDA
from ddad.app.page import LAUNCH, create_page

__all__ = ["LAUNCH", "create_page"]
