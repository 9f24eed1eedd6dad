"""Verdicts of an exported category on a machine without PyTorch: numpy, Pillow, and onnxruntime or openvino.

    from ddad.runtime import load

    inspector = load("bottle_exported")
    found = inspector.inspect("photograph.png")
    print(found.is_anomalous, found.image_score, found.threshold, found.regions)
    found.overlay.save("heatmap.png")

`ddad export` writes such a folder and compares it with the pipeline that it came from.
"""

from ddad.runtime.inspector import Inspection, Inspector, load
from ddad.runtime.regions import Region

__all__ = ["Inspection", "Inspector", "Region", "load"]
