"""What several tests need: files that Pillow cannot write, pictures of parts, and a process without this package."""

import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import PIL.Image
import torch


def deep_png(path, values, colour_type):
    """A PNG of 16 bits a channel, `[H, W, C]`, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def deep_tiff(path, values, photometric=2, order="<"):
    """An uncompressed TIFF of 16 bits a channel."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 8),
            (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)]  # fmt: skip
    at = 8 + len(data)
    bits = (258, 3, channels, 16 if channels == 1 else at)
    at += 2 * channels
    tags = sorted([*tags, bits])
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    pack = [
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value))
        for tag, kind, count, value in tags
    ]
    directory = struct.pack(order + "H", len(tags)) + b"".join(pack) + bytes(4)
    path.write_bytes(head + data + np.full(channels, 16, f"{order}u2").tobytes() + directory)
    return path


def striped_images(folder, count, offset=0.0, seed=0):
    """Good parts; `offset` is how bright the lamp is."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        values = (
            110 + offset + 60 * np.sin(np.arange(80) / 6 + generator.normal(0, 0.3)) + generator.normal(0, 3, (80, 80))
        )
        PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return folder


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\nshowpage\n%%EOF\n"


WITHOUT_PACKAGE = """
    import sys
    sys.modules["ddad"] = None  # importing it fails
    import json
    import numpy as np
    from diffusers import DiffusionPipeline

    results = []
    for folder in sys.argv[2:]:
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        pipe.set_progress_bar_config(disable=True)
        output = pipe(np.load(sys.argv[1]), threshold=0.0)
        total = float(np.abs(output.anomaly_map[0]).sum())
        results.append([output.image_score[0], total, output.denoised_image[0].size])
        half = pipe.with_region(np.arange(64)[None].repeat(64, 0) < 32)
        looked = half(np.load(sys.argv[1]), denoise=False, false_alarms=0.1)
        assert 0.4 < looked.region[0].mean() < 0.6 and half.config.category == pipe.config.category
        pipe.save_pretrained(folder + "_again")
    assert type(pipe).__module__.startswith("diffusers_modules.")
    print(json.dumps(results))
"""


def run_without_package(*arguments, home, code=WITHOUT_PACKAGE, **environment):
    """Runs a program where this package cannot be imported; what it prints last, as JSON."""
    picture, *folders = arguments
    np.save(home / "picture.npy", picture)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(home / "picture.npy"), *map(str, folders)],
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | {"HF_HOME": str(home / "hf"), "PYTHONPATH": ""} | environment,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


PHOTOGRAPH_SIZE = 96


def photographs(parts, shots, seed=0):
    """Parts of one design, each with a texture of its own, photographed under another lamp, `[3, S, S]` in [0, 1]."""
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, PHOTOGRAPH_SIZE)
    design = 0.3 * np.sign(np.sin(12 * x))[:, None] * np.ones(PHOTOGRAPH_SIZE)
    images = []
    for _ in range(parts):
        texture = np.kron(random.normal(0, 0.08, (PHOTOGRAPH_SIZE // 3, PHOTOGRAPH_SIZE // 3)), np.ones((3, 3)))
        for _ in range(shots):
            lamp = random.uniform(-0.1, 0.1) + random.uniform(-0.2, 0.2) * x
            noise = random.normal(0, 0.01, (PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE))
            values = 0.5 + design + random.uniform(0.7, 1.3) * texture + lamp + noise
            images.append(torch.from_numpy(values.clip(0, 1)).float().expand(3, -1, -1))
    return images


def png(seed=0, size=(64, 64)):
    """The file of a picture of noise."""
    data = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def runtime_command(*arguments, without=()):
    """`ddad-runtime` as it runs where PyTorch, and what else is named, is not installed."""
    missing = ("torch", "diffusers", "scipy", *without)
    program = f"""
import sys
for name in {missing}:
    sys.modules[name] = None
from ddad.runtime.commands import main
sys.exit(main(sys.argv[1:]))
"""
    return [sys.executable, "-c", program, *map(str, arguments)]
