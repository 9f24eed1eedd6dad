"""From good images to statistics, settings and threshold; no network is trained."""
