"""Whether a picture has enough pixels for what judges it."""

from typing import Any

TOO_SMALL = 4  # times that a picture is enlarged, from which on the verdict says little


def looked_size(pipe: Any) -> int:
    """Height and width, in pixels, of what the network sees that decides most of a category's verdicts."""
    if pipe.config.feature_score == "residual":
        return pipe.unet.config.sample_size
    return pipe.appearance_extractor.config.image_size


def far_too_small(size: tuple[int, int], pipe: Any) -> tuple[str, str] | None:
    """What is wrong with a picture of so few pixels, and what to do; None where it has enough.

    Args:
        size: its width and height.
        pipe: what judges it.
    """
    return too_small_for(size, looked_size(pipe))


def too_small_for(size: tuple[int, int], looked: int) -> tuple[str, str] | None:
    """As `far_too_small`, of a category that looks at pictures of `looked` pixels."""
    if TOO_SMALL * min(size) >= looked:
        return None
    return (
        f"Your image has {size[0]}x{size[1]} pixels, and this category looks at {looked}x{looked}.",
        "Enlarged so far it is blurred, which looks unusual by itself: give a larger picture.",
    )
