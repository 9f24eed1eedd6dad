"""Which folder holds what, by its name: good parts, defective ones, masks. The rule stands in docs/data.md.

A silent wrong guess would train on defects, so a name that says nothing clear is never guessed at.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

Kind = Literal["good", "defective", "masks", "unclear"]


def words_of(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# English, German, French, Spanish, Italian; written without accents.
GOOD_WORDS = words_of(
    """
    good ok okay normal normals intact flawless pass passed io gut gute gutteil gutteile fehlerfrei normale bon
    bons bonne bonnes conforme conformes sain sains bueno buenos buena buenas correcto correctos buono buoni
    buona buone conformi regolare regolari defectfree defectless faultless
    """
)
DEFECTIVE_WORDS = words_of(
    """
    bad defect defects defective defected ng nok ko nio fail failed failure fault faults faulty anomaly
    anomalies anomalous abnormal broken damaged damage reject rejected rejects scrap nogood notok nonconform
    defekt defekte fehler fehlerhaft schlecht schlechtteile ausschuss anomalie anomalien mauvais mauvaise defaut
    defauts defectueux rebut rebuts malo malos mala malas defecto defectos defectuoso defectuosos anomalia
    anomalias rechazado rechazados cattivo cattivi difetto difetti difettoso difettosi scarto scarti
    """
)
MASK_WORDS = words_of(
    """
    mask masks groundtruth gt label labels annotation annotations segmentation segmentations maske masken masque
    masques mascara mascaras maschera maschere
    """
)
NEGATIONS = frozenset(
    ["not", "no", "non", "nicht", "kein", "keine", "ohne", "without", "free", "sans", "sin", "senza", "pas", "zero"]
)
# Chinese, Japanese, Korean: parts of names, the defective ones first, since they contain the good ones.
DEFECTIVE_SIGNS = (
    "不良",
    "不合格",
    "缺陷",
    "异常",
    "異常",
    "次品",
    "瑕疵",
    "欠陥",
    "キズ",
    "불량",
    "결함",
    "이상",
    "불합격",
)
GOOD_SIGNS = ("良品", "合格", "正常", "良", "양품", "정상", "합격")
MASK_SIGNS = ("掩码", "掩膜", "标注", "マスク", "마스크")


def is_hidden(path: PurePath) -> bool:
    """Whether a path, relative to where somebody looks, is what programs leave in folders and no image of anybody."""
    return any(
        (part.startswith(".") and part != "..") or part in ("__MACOSX", "Thumbs.db", "@eaDir") for part in path.parts
    )


def kind_of(name: str) -> Kind:
    """What a folder's name says of the images in it; `unclear` for a name that says nothing."""
    name = unicodedata.normalize("NFKC", name)
    for signs, kind in ((MASK_SIGNS, "masks"), (DEFECTIVE_SIGNS, "defective"), (GOOD_SIGNS, "good")):
        if any(sign in name for sign in signs):
            return kind  # type: ignore[return-value]
    plain = unicodedata.normalize("NFD", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    plain = "".join(letter for letter in plain.lower() if not unicodedata.combining(letter))
    words = re.findall(r"[a-z]+", re.sub(r"\b([a-z])\.([a-z])\.(?:([a-z])\.)?", r"\1\2\3", plain))
    joined = "".join(words)
    if any(word in MASK_WORDS for word in words) or joined in MASK_WORDS:
        return "masks"
    if joined in GOOD_WORDS or joined in DEFECTIVE_WORDS:
        return "good" if joined in GOOD_WORDS else "defective"
    good, defective = (any(word in known for word in words) for known in (GOOD_WORDS, DEFECTIVE_WORDS))
    if good == defective:
        return "unclear"
    negated = any(word in NEGATIONS for word in words)
    return "good" if good != negated else "defective"


@dataclass
class Choice:
    """What of a folder is what: positions among the paths that were given.

    Attributes:
        good: images of good parts.
        defective: images of defective ones.
        masks: ground truth.
    """

    good: list[int] = field(default_factory=list)
    defective: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)


def describe_found(paths: Sequence[PurePath]) -> str:
    """How many images lie where, and what the names say."""
    counts = Counter(path.parent.as_posix() for path in paths)
    words = {"good": "good", "defective": "defective", "masks": "masks", "unclear": "not clear"}
    lines = [f"{name} ({count}, {words[kind_in(PurePath(name) / 'x')]})" for name, count in sorted(counts.items())]
    shown = ", ".join(lines[:12])
    return f"{shown}, and {len(lines) - 12} folders more" if len(lines) > 12 else shown


def kind_in(path: PurePath) -> Kind:
    """What the folders of a relative path say of the file in it.

    Raises:
        ValueError: if they contradict each other.
    """
    kinds = {kind_of(part) for part in path.parts[:-1]} - {"unclear"}
    if "masks" in kinds:
        return "masks"
    if kinds == {"good", "defective"}:
        raise ValueError(f"The folders of {path.as_posix()} are named as good and as defective.")
    return kinds.pop() if kinds else "unclear"


def choose_good(paths: Sequence[PurePath], root_name: str = "", good: Sequence[str] = ()) -> Choice:
    """Decides which images are of good parts: what is clearly named so, or what the user named.

    Args:
        paths: of image files, relative to the folder that was given.
        root_name: that folder's own name.
        good: folders below it that the user named as holding good parts; `.` is the folder itself.

    Raises:
        ValueError: for anything that is not clear, with what was found and how to decide.
    """
    choice, unclear = Choice(), list[int]()
    kinds: dict[Kind, list[int]] = {
        "good": choice.good, "defective": choice.defective, "masks": choice.masks, "unclear": unclear,
    }  # fmt: skip
    if good:
        given = {PurePath(name) for name in good}
        for position, path in enumerate(paths):
            # `.` is the images right in the folder, any other name everything below it.
            if path.parent in given or given & set(path.parent.parents) - {PurePath(".")}:
                choice.good.append(position)
            elif kind_in(path) != "good":  # the user's word goes before a name's
                kinds[kind_in(path)].append(position)
        if not choice.good and paths:
            raise ValueError(f"There is no image in {', '.join(good)}. Found: {describe_found(paths)}.")
        return choice
    for position, path in enumerate(paths):
        kinds[kind_in(path)].append(position)
    if not unclear:
        return choice
    flat = all(paths[position].parent == PurePath(".") for position in unclear)
    if flat and len(unclear) == len(paths) and kind_of(root_name) in ("good", "unclear"):
        choice.good = unclear
        return choice
    named = f"{root_name} is itself named as {kind_of(root_name)}. " if kind_of(root_name) == "defective" else ""
    raise ValueError(
        f"It is not clear which of these images show good parts. {named}Found: {describe_found(paths)}. Only what is"
        " clearly named good trains: name the folders of good parts with --good FOLDER (repeatable; --good . for the"
        " images in the folder itself), or give that folder alone."
    )
