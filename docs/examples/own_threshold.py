"""Your own threshold from your own good parts. Usage: python own_threshold.py folder_of_good_images suspect.png"""

import sys
from pathlib import Path

import numpy as np

from ddad import DDADPipeline

pipe = DDADPipeline.from_pretrained("checkpoints/solar_cell_mono")
good = pipe.score(sorted(Path(sys.argv[1]).glob("*.png")), pixel_score="kl")  # evaluates the networks once
suspect = pipe.score(sys.argv[2], pixel_score="kl")

for alpha in (0.0, 0.5, 1.0):  # the feature score alone, both, the pixel score alone: no network runs here
    normal_scores = pipe(good, alpha=alpha, denoise=False).image_score
    threshold = float(np.quantile(normal_scores, 0.99))  # one false alarm in a hundred
    result = pipe(suspect, alpha=alpha, threshold=threshold, denoise=False)
    print(f"alpha {alpha}: score {result.image_score[0]:.2f}, threshold {threshold:.2f}: {result.is_anomalous[0]}")
