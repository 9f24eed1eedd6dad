"""What several tests need, and Pillow cannot write."""

import struct
import zlib

import numpy as np


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
