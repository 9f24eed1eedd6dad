"""Which good images show the same part: photographed twice, under another lamp, or with an overlapping cut.

Scores of a part whose other photograph trained say nothing about parts that nobody has seen. On the magnetic tiles a
threshold from folds that split such photographs lets 23 and 41 % of new good tiles fail (two splits) where it promises
5 %; from folds that keep them together, 9 and 4 %. Aligned parts of one design are alike too, but in few ways: those
are taken off first.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering

from ddad.images_ddad import DDADImageProcessor

Item = TypeVar("Item")

SIDE = 64
# Two that train and two that judge.
LEAST_IMAGES = 4
# Structure coarser than this many of the 64 pixels is lighting.
LIGHTING_SIGMA = 6.0
# Design and pose vary in so many ways; of few images one for each twenty, or nothing would be left of them.
COMMON_COMPONENTS = 8
# Photographs of different tiles correlate by less than this, of the same tile by more.
LEAST_CORRELATION = 0.5
SAME_IMAGE = 0.999
# A few parts photographed often: so many photographs each at least, and so alike on average.
LEAST_PHOTOGRAPHS, CLOSELY_ALIKE = 4, 0.8


def shrink_image(image: torch.Tensor) -> torch.Tensor:
    """All of an image that is compared, `[C, H, W]` -> `[1, 64, 64]`; again it changes nothing."""
    return F.adaptive_avg_pool2d(image.mean(dim=0, keepdim=True), SIDE)


def fine_structure(image: torch.Tensor) -> np.ndarray:
    """An image without its lighting: `[C, H, W]` -> `[64 * 64]` of mean 0 and norm 1, or 0 if there is nothing."""
    small = shrink_image(image)[None]
    values = (small - DDADImageProcessor.blur(small, LIGHTING_SIGMA)).flatten().double().numpy()
    structure: np.ndarray = normalise(values[None])[0]
    return structure


def normalise(rows: np.ndarray) -> np.ndarray:
    """Rows less their mean, over their norm; a row without structure becomes zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-6, rows / np.maximum(norms, 1e-6), 0.0)


def group_lookalikes(images: Iterable[torch.Tensor]) -> list[int]:
    """The number of the group of each image; images of one group seem to show the same part.

    Their fine structure, less the leading principal components of all of it, is compared by correlation, and images
    are joined by average linkage, which makes no chains. With N images this takes about 30 N^2 bytes.

    Args:
        images: `[3, H, W]` each, in any range, or what `shrink_image` makes of them.
    """
    rows = np.stack([fine_structure(image) for image in images])
    if len(rows) < 2:
        return [0] * len(rows)
    alike = rows @ rows.T
    blocks = join_blocks(alike)
    if blocks is not None:
        return merge_groups([blocks])
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows @ rows.T)  # ascending
    common = vectors[:, len(rows) - min(COMMON_COMPONENTS, len(rows) // 20) :]
    rows = normalise(rows - common @ (common.T @ rows))
    return merge_groups([join(rows @ rows.T), join_identical(alike)])


def join(correlations: np.ndarray) -> np.ndarray:
    """Groups by average linkage: members correlate by more than `LEAST_CORRELATION` on average."""
    clusters = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - LEAST_CORRELATION
    )
    labels: np.ndarray = clusters.fit_predict(1 - np.clip(correlations, -1, 1))
    return labels


def join_identical(correlations: np.ndarray) -> np.ndarray:
    """Groups of images that are the same but for compression."""
    return connected_components(correlations > SAME_IMAGE, directed=False)[1]  # type: ignore[no-any-return]


def join_blocks(correlations: np.ndarray) -> np.ndarray | None:
    """Groups of a few parts photographed often, which have nothing in common: what they share would be taken off.

    They are groups only if they are far apart, many images each, and closely alike inside: parts of one design are
    alike all over, and tell nothing here: None.
    """
    labels = join(correlations)
    names, counts = np.unique(labels, return_counts=True)
    often = 1 < len(names) <= len(labels) / 4 and counts.min() >= LEAST_PHOTOGRAPHS
    inside = [correlations[np.ix_(labels == name, labels == name)].mean() for name in names] if often else [0.0]
    return labels if min(inside) > CLOSELY_ALIKE else None


def merge_groups(labellings: Sequence[np.ndarray]) -> list[int]:
    """The groups of images that are together in any of some groupings, numbered in the order of the images."""
    pairs = np.zeros((len(labellings[0]), len(labellings[0])), dtype=bool)
    for labels in labellings:
        pairs |= labels[:, None] == labels[None]
    labels = connected_components(pairs, directed=False)[1]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(label), len(numbers)) for label in labels]


def check_enough(images: int) -> None:
    """Raises a ValueError for fewer than four good images."""
    if images < LEAST_IMAGES:
        raise ValueError(f"{images} good images are too few: at least {LEAST_IMAGES} are needed, and 50 to be of use.")


def split_images(images: list[Item], groups: Sequence[int], held_out: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Splits at random into images that train and images that are held out for calibration.

    Images of one group, which show the same part, stay together: a part that trained cannot judge. Only if the groups
    are too large to hold out two images are single images held out.

    Args:
        images: their paths or numbers.
        groups: the group of each; see `group_lookalikes`.
        held_out: how many are held out, or a few less; two at least, and two at least are not.
        seed: of the choice.

    Raises:
        ValueError: for fewer than four images.
    """
    count = max(2, held_out)
    check_enough(len(images))
    count = min(count, len(images) - 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(groups[i], []).append(i)
    held: list[int] = []
    for group in members.values():
        if len(held) + len(group) <= count:
            held += group
    chosen = set(held if len(held) >= 2 else order[:count])
    return [image for i, image in enumerate(images) if i not in chosen], [images[i] for i in sorted(chosen)]


def choose_judges(groups: Sequence[int], most: int, seed: int) -> list[int]:
    """Images whose scores a threshold rests on: of as many groups as there are, before a second of any.

    A hundred photographs of thirty parts say as little of other parts as thirty: where whole groups of magnetic tiles
    judged, the 95 % quantile of scores was 6.7, and that of new tiles is 4.9.

    Args:
        groups: the group of each image; see `group_lookalikes`.
        most: how many.
        seed: of the choice.

    Returns:
        Their numbers, ascending.
    """
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    turns = []
    for number in order:
        seen[groups[number]] = seen.get(groups[number], -1) + 1
        turns.append((seen[groups[number]], number))
    turns.sort(key=lambda turn: turn[0])  # stable: at random within a turn
    return sorted(number for _, number in turns[:most])
