"""The page in the browser: it calls the pipeline and computes nothing itself."""

from ddad.app.page import create_page

__all__ = ["create_page"]
