"""From a folder of good images to a saved pipeline."""
