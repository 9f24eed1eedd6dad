"""What a person is told of the photographs that a part was learnt from: one headline, and sentences that are true."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_score

from ddad.datasets.lookalikes import LEAST_IMAGES
from ddad.features_ddad import DDADFeatureExtractor

State = Literal["unreliable", "suspects", "few", "learnt"]

# Fewer synthetic defects found than this, in percent, or ranked worse than this: it will not work.
LEAST_FOUND, LEAST_AUROC = 60.0, 85.0
# So many more, in percent, with all images than with half of them: further ones will help.
STILL_GROWS = 3.0
# With fewer parts the threshold rests on too few scores to be sure of.
ENOUGH_PARTS = 20
# Photographs are of two kinds of part if their features, pooled over the picture, fall into two groups so well: the
# silhouette of seven data sets of one kind was 0.17 to 0.33, that of any two of them together 0.52 to 0.92.
TWO_KINDS = 0.45
BATCH = 8


@dataclass(frozen=True)
class PartReport:
    """What was understood of the photographs of a part, and what to expect.

    Attributes:
        images: how many.
        image_auroc: how well synthetic defects in them are told from them, in percent.
        found: the part of synthetic defects that is found, in percent, by the number of images.
        false_alarms: the expected part of good parts that is called defective, in percent, and its 90 % interval.
        same_part: photographs that seem to show the same part, by name.
        unlike: photographs that look unlike the rest, by name: they may show a defect.
        threshold: the image score above which a part is defective.
        seconds: that it took.
        other_kind: the smaller group, by name, where the photographs seem to show two kinds of part.
        turned: whether the parts lie in any orientation, and copies turned by any angle were learnt too.
    """

    images: int
    image_auroc: float
    found: dict[int, float]
    false_alarms: tuple[float, float, float]
    same_part: list[list[str]]
    unlike: list[str]
    threshold: float
    seconds: float
    other_kind: list[str] = field(default_factory=list)
    turned: bool = False

    @property
    def parts(self) -> int:
        """How many different parts the photographs seem to show."""
        return self.images - sum(len(group) - 1 for group in self.same_part)

    @property
    def works(self) -> bool:
        """Whether synthetic defects are found well enough to go on, on parts enough."""
        found = self.found[max(self.found)] >= LEAST_FOUND and self.image_auroc >= LEAST_AUROC
        return found and self.parts >= LEAST_IMAGES

    @property
    def suspects(self) -> list[str]:
        """The photographs that somebody should look at first."""
        return list(dict.fromkeys([*self.other_kind, *self.unlike]))

    @property
    def state(self) -> State:
        """What matters most: the first of these that holds is the headline."""
        if not self.works:
            return "unreliable"
        if self.suspects:
            return "suspects"
        return "few" if self.parts < ENOUGH_PARTS or self.grows else "learnt"

    @property
    def grows(self) -> bool:
        """Whether clearly more synthetic defects are found with all images than with half of them."""
        counts = sorted(self.found)
        return self.found[counts[-1]] - self.found[counts[max(0, len(counts) - 2)]] > STILL_GROWS

    def headline(self, name: str) -> str:
        """The state in a line."""
        return {
            "unreliable": f"⚠ {name} cannot be relied on yet",
            "suspects": f"⚠ Look at {count_of(len(self.suspects), 'photograph')} of {name} first",
            "few": f"✓ {name} is learnt from {self.images} photographs; more parts will make it surer",
            "learnt": f"✓ {name} is learnt from {self.images} photographs",
        }[self.state]

    def sentences(self) -> list[str]:
        """All of it in words, what matters most first."""
        lines = []
        if self.parts < LEAST_IMAGES:
            lines.append(
                f"The {self.images} photographs seem to show {count_of(self.parts, 'part')}: give photographs of at"
                f" least {LEAST_IMAGES} different ones, {ENOUGH_PARTS} are better."
            )
        elif not self.works:
            lines.append(
                "Too few of the test defects below are found to rely on it: these photographs do not show well enough"
                " what a good part looks like. Give more of them, with the part always in the same place, or train a"
                " network with `ddad train`."
            )
        if self.other_kind:
            lines.append(
                f"The photographs seem to show two kinds of part; {shown(self.other_kind)} are unlike the others."
                " Learn each kind by itself."
            )
        if self.unlike:
            lines.append(f"Unlike the rest, and perhaps defective: {shown(self.unlike)}. Leave them out?")
        if self.turned:
            lines.append("The parts lie in any orientation: copies turned by any angle were learnt too.")
        counts = sorted(self.found)
        curve = ", ".join(f"with {count} images {self.found[count]:.0f} %" for count in counts)
        lines.append(f"Of defects pasted into your images as a test, {curve} are found.")
        expected, low, high = self.false_alarms
        lines.append(
            f"Expect {expected:.0f} % of good parts to be called defective (90 % interval: {low:.0f} to {high:.0f} %)."
        )
        if self.works and self.grows:
            lines.append("More photographs will help: with half as many clearly fewer are found.")
        elif self.works and self.parts < ENOUGH_PARTS:
            lines.append(f"More parts narrow that interval: photographs of {ENOUGH_PARTS} different ones are better.")
        if self.same_part and self.parts >= LEAST_IMAGES:
            groups = "; ".join(", ".join(group[:3]) for group in self.same_part[:3])
            lines.append(
                f"{sum(map(len, self.same_part))} photographs seem to show the same part as another ({groups}):"
                " different parts teach more."
            )
        return lines


def count_of(count: int, noun: str) -> str:
    """`1 part`, `2 parts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def pooled_features(extractor: DDADFeatureExtractor, images: Sequence[torch.Tensor]) -> np.ndarray:
    """Means and standard deviations over the picture of a backbone's features, `[M, 2C]`: wherever the part lies."""
    pooled = []
    for start in range(0, len(images), BATCH):
        batch = torch.stack([images[index] for index in range(start, min(start + BATCH, len(images)))])
        features = extractor(batch.to(extractor.device, extractor.dtype)).float()
        pooled.append(torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1).cpu())
    return torch.cat(pooled).numpy()


def find_other_kind(pooled: np.ndarray, names: Sequence[str]) -> list[str]:
    """The smaller of two groups that images fall into, by name; none where they are of one kind.

    A single image that is unlike the rest is no kind.

    Args:
        pooled: `[M, C]`.
        names: of the images.
    """
    if len(names) < LEAST_IMAGES or np.allclose(pooled, pooled[0], atol=1e-4):
        return []
    groups = AgglomerativeClustering(2, linkage="average").fit_predict(pooled)
    smaller = int(np.argmin(np.bincount(groups, minlength=2)))
    members = [name for name, group in zip(names, groups, strict=True) if group == smaller]
    if len(members) < 2 or silhouette_score(pooled, groups) < TWO_KINDS:
        return []
    return members
