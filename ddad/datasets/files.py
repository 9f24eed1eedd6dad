"""Which files of a folder are images: told by their suffix, and by their content where that says nothing."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from ddad.datasets.names import is_hidden, words_of
from ddad.runtime.pictures import IMAGE_SUFFIXES

# Of the name of an image that says where to look on another one.
REGION_ENDING = "_region"
# Files of these suffixes are not opened to see whether they are images.
OTHER_SUFFIXES = words_of(
    """
    .txt .csv .json .jsonl .xml .yaml .yml .md .html .htm .py .ipynb .log .zip .tar .gz .7z .rar .pdf .doc .docx .xls
    .xlsx .ini .db .safetensors .npy .npz .pcd .ply .mp4 .avi .mov .lnk .url .exe .dll
    """
)
# How files of images begin: (offset, bytes).
SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),
    *((0, start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")),
    *((0, start) for start in (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    *((4, b"ftyp" + brand) for brand in (b"avif", b"avis", b"hei", b"hev", b"mif1", b"msf1")),
    (128, b"DICM"),
)


def is_image_content(path: Path) -> bool:
    """Whether a file begins as one of the known kinds of images does."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    if any(head[offset:].startswith(start) for offset, start in SIGNATURES):
        return True
    if head[:2] == b"BM":  # two letters are few: the header's length stands at 14
        return len(head) > 18 and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    return len(head) > 3 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\n\r#"


def looks_like_image(path: Path) -> bool:
    """Whether a file is to be read as an image, by its suffix, else by how it begins."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return path.is_file()
    return suffix not in OTHER_SUFFIXES and path.is_file() and is_image_content(path)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, hidden ones left out. Links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for place, names, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not is_hidden(PurePath(name)))
        for name in sorted(files):
            if not is_hidden(PurePath(name)):
                yield Path(place, name)


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and those below it, sorted, hidden ones left out; none if there is no such folder.

    What says where to look on an image beside it (`region_of`) is none itself.
    """
    paths = sorted(filter(looks_like_image, walk(folder))) if folder.is_dir() else []
    regions = {path for path in paths if path.stem.endswith(REGION_ENDING)}
    if regions:
        regions &= {region_of(path) for path in paths}
    return [path for path in paths if path not in regions]


def region_of(path: Path) -> Path | None:
    """The image beside one that is white where to look on it, `part_region.png` for `part.jpg`; None without any."""
    beside = path.with_name(f"{path.stem}{REGION_ENDING}.png")
    return beside if os.path.isfile(beside) else None  # which a name that is too long does not make fail


def other_files(folder: Path) -> list[Path]:
    """The files below a folder that are no images."""
    return [path for path in walk(folder) if not looks_like_image(path)]


def describe_others(paths: list[Path]) -> str:
    """How many files are no images, by suffix: `3 other files were left out (2 .txt, 1 .csv)`."""
    kinds = Counter(path.suffix.lower() or path.name for path in paths)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{len(paths)} other files were left out ({listed})"


def find_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted.

    Raises:
        ValueError: if the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give one that holds images.")
    paths = images_in(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return paths
