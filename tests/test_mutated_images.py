"""Image files with random damage: the right image, or one sentence, and nothing else."""

import io
import random
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pillow_heif
import pillow_jxl  # noqa: F401 - registers itself
import pytest
import tifffile

from ddad import DDADImageProcessor
from tests.conftest import create_tiny_pipeline
from tests.helpers import deep_png, deep_tiff

pillow_heif.register_heif_opener()

KINDS = (
    ("PNG", "RGB", {}), ("PNG", "L", {}), ("PNG", "P", {}), ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "1", {}),
    ("PNG", "I;16", {}), ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}), ("TIFF", "RGB", {}), ("TIFF", "L", {"compression": "tiff_lzw"}),
    ("TIFF", "F", {}), ("TIFF", "I;16", {"compression": "tiff_adobe_deflate"}), ("TIFF", "CMYK", {}),
    ("TIFF", "1", {"compression": "group4"}), ("TIFF", "L", {"compression": "jpeg"}), ("BMP", "RGB", {}),
    ("BMP", "1", {}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("PPM", "RGB", {}),
    ("PPM", "L", {}), ("AVIF", "RGB", {}), ("JPEG2000", "RGB", {}), ("JPEG2000", "L", {}), ("HEIF", "RGB", {}),
    ("JXL", "RGB", {}), ("deep PNG", "RGB", {}), ("deep TIFF", "RGB", {}), ("deep float", "RGB", {}),
)  # fmt: skip


def encode_deep(chance: random.Random, form: str) -> bytes:
    """Colours of 16 bits."""
    values = np.random.default_rng(chance.randrange(2**31)).integers(0, 4000, (30, 40, 3)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep"
        if form == "deep float":
            tifffile.imwrite(path, (values / 4095).astype(np.float32), photometric="rgb")
            return path.read_bytes()
        return (deep_png(path, values, 2) if form == "deep PNG" else deep_tiff(path, values)).read_bytes()


def encode(chance: random.Random, kind: tuple) -> bytes:
    """A file of a kind, of a smooth picture with some noise."""
    form, mode, options = kind
    if form.startswith("deep"):
        return encode_deep(chance, form)
    height, width = chance.randint(20, 90), chance.randint(20, 90)
    noise = np.random.default_rng(chance.randrange(2**31))
    grey = np.linspace(0, 200, width)[None] + noise.normal(0, 8, (height, width))
    grey = grey.clip(0, 255)
    if mode == "F":
        picture = PIL.Image.fromarray((grey / 255).astype(np.float32))
    elif mode == "I;16":
        picture = PIL.Image.fromarray((grey * 16).astype(np.uint16))
    else:
        picture = PIL.Image.fromarray(np.stack([grey] * 3, axis=-1).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def damage(chance: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut off, taken out, doubled, or filled in, most often at the beginning, where a header is."""
    values = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        near = len(values) if chance.random() < 0.4 else min(len(values), 120)
        at = chance.randrange(near) if near else 0
        kind = chance.choice(("change", "change", "change", "cut", "drop", "double", "fill", "insert"))
        if kind == "change" and values:
            values[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == "cut":
            del values[at:]
        elif kind == "drop":
            del values[at : at + chance.randint(1, 60)]
        elif kind == "double":
            values[at:at] = values[at : at + chance.randint(1, 200)]
        elif kind == "fill":
            values[at : at + 8] = bytes([chance.choice((0, 255))] * len(values[at : at + 8]))
        else:
            values[at:at] = chance.randbytes(chance.randint(1, 16))
    return bytes(values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [1000])
def test_damaged_files_are_read_or_refused(tmp_path, count):
    processor, pipe = DDADImageProcessor(), create_tiny_pipeline()
    read = 0
    for seed in range(count):
        chance = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        path = tmp_path / f"{seed}.{chance.choice(('png', 'jpg', 'tif', 'eps', 'IMG', 'webp'))}"
        content = encode(chance, kind)
        path.write_bytes(content)
        whole = processor.read_image(path)
        path.write_bytes(damage(chance, content))
        try:
            image = processor.read_image(path)
        except ValueError as error:
            assert str(path) in str(error), (seed, kind)
            continue
        except BaseException as error:
            raise AssertionError(f"{seed}: {kind}") from error
        finally:
            path.unlink()
        read += 1
        assert image.shape[0] == 3 and 0 <= float(image.min()) <= float(image.max()) <= 1, (seed, kind)
        if seed % 50 < 2:
            assert np.isfinite(pipe(image, denoise=False).image_score[0])
        assert whole.shape[0] == 3
    assert 0.05 * count < read < 0.95 * count
