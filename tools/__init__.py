"""Programs for those who develop ddad; no part of the package."""
