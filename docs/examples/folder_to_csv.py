"""A folder of images: their scores as a table, the worst first. Usage: python folder_to_csv.py folder scores.csv"""

import csv
import sys
from pathlib import Path

from ddad import DDADPipeline

pipe = DDADPipeline.from_pretrained("checkpoints/solar_cell_mono")
paths = sorted(Path(sys.argv[1]).glob("*.png"))
# Eight images in one evaluation; the normal versions are left out, which makes it about ten times faster.
result = pipe(paths, denoise=False, batch_size=8)

rows = sorted(zip(result.image_score, result.is_anomalous, paths, strict=True), reverse=True)
with open(sys.argv[2], "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "score", "defective"])
    writer.writerows([path.name, f"{score:.3f}", int(anomalous)] for score, anomalous, path in rows)
print(f"{sum(result.is_anomalous)} of {len(paths)} images are defective.")
