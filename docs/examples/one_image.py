"""One image: verdict, heatmap, and the part without its defects. Usage: python one_image.py cell.png"""

import sys

from ddad import DDADPipeline

pipe = DDADPipeline.from_pretrained("checkpoints/solar_cell_mono")  # or "user/name" on the Hub
result = pipe(sys.argv[1])

verdict = "defective" if result.is_anomalous[0] else "good"
print(f"{verdict}: score {result.image_score[0]:.2f}, threshold {result.threshold:.2f}")
result.overlay[0].save("overlay.png")
result.denoised_image[0].save("normal.png")

y, x = divmod(int(result.anomaly_map[0].argmax()), result.anomaly_map[0].shape[1])
print(f"most anomalous at x {x}, y {y}")
