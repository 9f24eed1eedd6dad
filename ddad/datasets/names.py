"""Which names say good, which defective, which ground truth: of folders and of files. The rule stands in docs/data.md.

A silent wrong guess would train on defects, so a name is good only if every word of it is known, and a name that says
nothing clear is never guessed at.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

Kind = Literal["good", "defective", "masks", "unclear"]
Role = Literal["good", "defective", "masks", "not", "without", "neutral", "number", "doubt", "flaw", "unknown"]


def words_of(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# English, German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish, Turkish, Russian; without accents.
GOOD_WORDS = words_of(
    """
    good ok okay normal normals intact flawless pass passed io gut gute guten gutteil gutteile fehlerfrei normale bon
    bons bonne bonnes conforme conformes sain sains bueno buenos buena buenas correcto correctos buono buoni
    buona buone conformi regolare regolari defectfree defectless faultless bom boa boas aprovado aprovados aprovada
    aprovadas goed goede goedgekeurd dobry dobre dobra bra godkand godkant iyi saglam годные годный норма хорошие
    хороший исправные исправный
    """
)
DEFECTIVE_WORDS = words_of(
    """
    bad defect defects defective defected ng nok ko nio fail failed failure fault faults faulty anomaly
    anomalies anomalous abnormal broken damaged damage reject rejected rejects scrap nogood notok nonconform
    defekt defekte fehler fehlerhaft schlecht schlechtteile ausschuss anomalie anomalien mauvais mauvaise defaut
    defauts defectueux rebut rebuts malo malos mala malas defecto defectos defectuoso defectuosos anomalia
    anomalias rechazado rechazados cattivo cattivi difetto difetti difettoso difettosi scarto scarti
    ruim ruins defeito defeitos defeituoso defeituosos reprovado reprovados afgekeurd wadliwe wadliwy wady trasig
    underkand hatali kusurlu брак дефект дефекты дефектные дефектный
    """
)
MASK_WORDS = words_of(
    """
    mask masks groundtruth gt label labels annotation annotations segmentation segmentations maske masken masque
    masques mascara mascaras maschera maschere
    """
)
# What turns the word after it into its opposite, and what does so with the word before it.
NOT_WORDS = words_of(
    """
    not no non nicht kein keine ohne without sans sin senza pas zero nie niet nao inte khong ikke ei ne nu nem не без
    bukan tidak geen bez ej utan uden ilman fara nincs un
    """
)
WITHOUT_WORDS = words_of("free frei less degil")
# Of an image that somebody was not sure of, or that only seems to be good.
DOUBT_WORDS = words_of(
    """
    false pseudo unsure uncertain maybe perhaps questionable suspect suspected suspicious doubtful borderline almost
    nearly quasi fake former wrong recheck unknown unclear ambiguous verdacht verdaechtig fraglich unsicher falsch
    falsche douteux suspects dudoso dubbio incerto mislabeled mislabelled relabel disputed marginal
    """
)
# Of defects themselves: no folder is called so by chance, but a kind of defect says nothing on where good parts lie.
FLAW_WORDS = words_of(
    """
    scratch scratches scratched crack cracks cracked dent dents dented hole holes stain stains stained chipped
    contamination contaminated rust rusty burr burrs bent missing misplaced scuff torn kratzer riss risse delle dellen
    fleck flecken rayure rayures fissure fissures aranazo grieta graffio graffi crepa
    """
)
# What stands around such words and says nothing of the part.
NEUTRAL_WORDS = words_of(
    """
    dir dirs folder folders img imgs image images pic pics picture pictures photo photos foto fotos photograph
    photographs part parts teil teile bild bilder sample samples piece pieces unit units item items product products
    produkt produkte pieza piezas pezzo pezzi immagine immagini imagen imagenes imagem imagens data dataset set sets
    train training test testing val valid validation cam camera cameras kamera view views side top bottom left right
    front back links rechts oben unten vorne hinten batch batches lot lots charge chargen line linie station day shift
    session run raw crop crops cropped resized color colour gray grey rgb mono bmp png jpg jpeg tif tiff webp gif only
    all every copy v r a b c d e f g h i j l m p q s t u w y z dsc dscn pxl frame frames snap capture scan
    jan feb mar apr may jun jul aug sep oct nov dec class klasse kat category
    """
)

# Chinese, Japanese, Korean: parts of names, the longest first. What is not among them makes a name unclear.
_SIGNS_BY_ROLE: dict[Role, str] = {
    "good": "良品 合格品 合格 正常品 正常 良好 优良 優良 完好 良 好 양품 정상 합격 양호",
    "defective": """
        不良品 不良 不合格 缺陷 异常 異常 次品 瑕疵 欠陥 欠陷 不具合 故障 キズ 残次品 残次 废品 廢品 损坏 破损 坏 劣品
        불량 결함 이상 불합격 비정상 하자
    """,
    "masks": "掩码 掩膜 遮罩 标注 標注 真值 マスク 마스크 라벨",
    "not": "不是 不 非 没有 沒有 没 无 無 未 否 비 무 미 불",
    "without": "以外 なし 無し ナシ 없음 없는 아님 아닌 ではない でない 제외",
    "doubt": "疑似 可疑 疑 待定 未知 의심",
    "flaw": "划痕 裂纹 擦伤 凹陷 污渍 傷 割れ 欠け 汚れ 흠집 균열 스크래치 찍힘",
    "neutral": """
        图片 图像 圖像 圖片 照片 样本 样品 樣本 产品 產品 零件 部件 工件 件 品 图 圖 数据集 数据 數據 集 训练 訓練
        测试 測試 验证 文件夹 目录 画像 写真 サンプル 製品 部品 データ セット 学習 用 の 的 类 類 组 組 枚 個 カメラ
        相机 카메라 左 右 上 下 前 后 後 正面 背面 第 号 番 批次 批 이미지 사진 제품 부품 샘플 데이터 학습 훈련
        테스트 시험
    """,
}
SIGNS: dict[str, Role] = {sign: role for role, text in _SIGNS_BY_ROLE.items() for sign in text.split()}
_BY_LENGTH = sorted(SIGNS, key=len, reverse=True)
# Ideographs, kana and Hangul stand together without spaces; all other letters are words.
_CJK = "\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_CJK}]+|[^\W\d_{_CJK}]+|\d+")
_LATIN = str.maketrans({"ł": "l", "đ": "d", "ø": "o", "ı": "i", "ß": "ss", "æ": "ae"})
# Names that a program made up: letters in them are no words.
_MADE_UP = re.compile(r"[0-9a-f]{12,}|[0-9a-f]{4,}(-[0-9a-f]{4,}){2,}.*", flags=re.IGNORECASE)


def is_hidden(path: PurePath) -> bool:
    """Whether a path, relative to where somebody looks, is what programs leave in folders and no image of anybody."""
    return any(
        (part.startswith(".") and part != "..") or part in ("__MACOSX", "Thumbs.db", "@eaDir") for part in path.parts
    )


def _role_of(word: str) -> Role:
    for words, role in (
        (MASK_WORDS, "masks"), (GOOD_WORDS, "good"), (DEFECTIVE_WORDS, "defective"), (NOT_WORDS, "not"),
        (WITHOUT_WORDS, "without"), (DOUBT_WORDS, "doubt"), (FLAW_WORDS, "flaw"), (NEUTRAL_WORDS, "neutral"),
    ):  # fmt: skip
        if word in words:
            return role  # type: ignore[return-value]
    return "unknown"


def read_name(name: str) -> list[tuple[str, Role]]:
    """The words of a name in their order, without accents and capitals, and what each says."""
    if _MADE_UP.fullmatch(name):
        return [(name, "number")]
    name = unicodedata.normalize("NFKC", name)
    name = re.sub(r"(?<=[^\W\d_])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", " ", name).lower()
    name = re.sub(r"(?<![^\W\d_])([a-z])\.([a-z])\.(?:([a-z])\.)?", r"\1\2\3 ", name)  # i.O., n.i.O.
    read: list[tuple[str, Role]] = []
    for token in _TOKENS.findall(name):
        if token.isdigit():
            read.append((token, "number"))
        elif re.match(rf"[{_CJK}]", token):
            while token:
                sign = next((sign for sign in _BY_LENGTH if token.startswith(sign)), token[0])
                read.append((sign, SIGNS.get(sign, "unknown")))
                token = token[len(sign) :]
        else:
            plain = unicodedata.normalize("NFD", token.translate(_LATIN))
            plain = re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", plain)  # Cyrillic letters with marks are others
            plain = unicodedata.normalize("NFC", plain)
            read.append((plain, _role_of(plain)))
    if re.search("[?？]", name):
        read.append(("?", "doubt"))
    words = [word for word, role in read if role != "number"]
    joined = "".join(words)
    if len(words) > 1:  # "no good", "ground truth", "not OK"
        for known, role in ((MASK_WORDS, "masks"), (GOOD_WORDS, "good"), (DEFECTIVE_WORDS, "defective")):
            if joined in known:
                return [(joined, role)]  # type: ignore[list-item]
    return read


def _verdicts(roles: Sequence[Role]) -> tuple[set[str], bool]:
    """What the words of a name say once negations are taken into account, and whether one is left over."""
    used, said = set[int](), set[str]()
    for position, role in enumerate(roles):
        if role not in ("good", "defective"):
            continue
        before, after = position - 1, position + 1
        negations = [
            place
            for place, wanted in ((before, "not"), (after, "without"))
            if 0 <= place < len(roles) and roles[place] == wanted and place not in used
        ]
        used.update(negations)
        said.add(role if len(negations) != 1 else {"good": "defective", "defective": "good"}[role])
        if len(negations) == 2:
            said.add("unclear")
    left = any(role in ("not", "without") and place not in used for place, role in enumerate(roles))
    return said, left


def kind_of(name: str) -> Kind:
    """What a name says of its images; `unclear` for one that says nothing, or good and something unknown."""
    roles = [role for _, role in read_name(name)]
    if "masks" in roles:
        return "masks"
    said, left = _verdicts(roles)
    if left or "doubt" in roles or len(said) != 1:
        return "unclear"
    if said == {"defective"}:
        return "defective"
    known = not {"unknown", "flaw"} & set(roles)
    return "good" if said == {"good"} and known else "unclear"


def is_neutral(name: str) -> bool:
    """Whether a name says nothing of its images, and is known to: `batch 3`, `2026-11-27`, `left camera`."""
    roles = {role for _, role in read_name(name)}
    words = [word for word, _ in read_name(name)]
    numbered = len(words) == 2 and words[0] in ("no", "nr") and words[1].isdigit()  # "no" is "number" here
    return numbered or roles <= {"neutral", "number"}


def _is_dubious(name: str) -> bool:
    """Whether a name that stands above or beside another takes from what that one says."""
    roles = {role for _, role in read_name(name)}
    return bool(roles & {"doubt", "flaw", "not", "without"}) and not is_neutral(name)


def kind_in(path: PurePath) -> Kind:
    """What the folders of a relative path say of the file in it.

    Good needs every folder below the one that is named good to say nothing, and none above it to take it back.

    Raises:
        ValueError: if they contradict each other.
    """
    parts = path.parts[:-1]
    kinds = [kind_of(part) for part in parts]
    if "masks" in kinds:
        return "masks"
    said = set(kinds) - {"unclear"}
    if said == {"good", "defective"}:
        raise ValueError(f"The folders of {path.as_posix()} are named as good and as defective.")
    if said == {"good"}:
        deepest = max(position for position, kind in enumerate(kinds) if kind == "good")
        below, above = parts[deepest + 1 :], parts[:deepest]
        if not all(map(is_neutral, below)) or any(map(_is_dubious, above)):
            return "unclear"
    return said.pop() if said else "unclear"


Label = Literal["good", "defective", "masks", "doubt", "flaw", "good?", ""]


def label_in(stem: str, common: Collection[str] = ()) -> Label:
    """What a file's own name says: a verdict, ground truth, a doubt, a kind of defect, or nothing.

    Args:
        stem: the name without its suffix.
        common: words that all the files beside it have: the part's name, which says nothing.
    """
    read = [(word, "neutral" if role == "unknown" and word in common else role) for word, role in read_name(stem)]
    roles = [role for _, role in read]
    said, left = _verdicts(roles)
    if "masks" in roles:
        return "masks"
    if "doubt" in roles or len(said) > 1 or (said and left):
        return "doubt"
    if said == {"defective"}:
        return "defective"
    if "flaw" in roles:
        return "flaw"
    if said == {"good"}:
        return "good?" if "unknown" in roles else "good"
    return ""


def common_words(stems: Sequence[str]) -> frozenset[str]:
    """The words that all names have; of a single name, none."""
    if len(stems) < 2:
        return frozenset()
    sets = [frozenset(word for word, _ in read_name(stem)) for stem in stems]
    return frozenset.intersection(*sets)


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


def _kind_or_unclear(path: PurePath) -> str:
    try:
        return kind_in(path)
    except ValueError:
        return "unclear"


def describe_found(paths: Sequence[PurePath]) -> str:
    """How many images lie where, and what the names say."""
    counts = Counter(path.parent.as_posix() for path in paths)
    words = {"good": "good", "defective": "defective", "masks": "masks", "unclear": "not clear"}
    lines = [
        f"{name} ({count}, {words[_kind_or_unclear(PurePath(name) / 'x')]})" for name, count in sorted(counts.items())
    ]
    shown = ", ".join(lines[:12])
    return f"{shown}, and {len(lines) - 12} folders more" if len(lines) > 12 else shown


HOW_TO_DECIDE = (
    "Only what is clearly named good trains: name the folders of good parts with --good FOLDER (below the folder that"
    " is given; repeatable; --good . for the images in the folder itself), or give that folder alone."
)


class _Sorting:
    """The images of one folder, as they are sorted into a `Choice`."""

    def __init__(self, paths: Sequence[PurePath], masks: Collection[int], marked: Collection[int]):
        self.paths, self.choice, self.marked = paths, Choice(masks=sorted(masks)), set(marked)
        images = [position for position in range(len(paths)) if position not in set(masks)]
        # By folder: what names there have in common says nothing.
        stems: dict[PurePath, list[str]] = {}
        for position in images:
            stems.setdefault(paths[position].parent, []).append(paths[position].stem)
        self.common = {folder: common_words(names) for folder, names in stems.items()}
        self.images = images

    def label(self, position: int) -> Label:
        path = self.paths[position]
        found = label_in(path.stem, self.common[path.parent])
        # Where all are called so, it is the part that is: a printed label, a face mask.
        if found == "masks" and any(role == "masks" and word in self.common[path.parent]
                                    for word, role in read_name(path.stem)):  # fmt: skip
            return ""
        return found

    def sort_by_folders(self) -> list[int]:
        """What the folders' names decide; returns the others.

        Raises:
            ValueError: for a file among good images whose own name contradicts.
        """
        choice, unclear = self.choice, []
        for position in self.images:
            kind, label = kind_in(self.paths[position]), self.label(position)
            if kind == "masks" or (kind == "good" and label == "masks"):
                choice.masks.append(position)
            elif kind == "defective" or position in self.marked:
                choice.defective.append(position)
            elif kind == "unclear":
                unclear.append(position)
            elif label in ("", "good", "good?"):
                choice.good.append(position)
            else:
                raise ValueError(
                    f"{self.paths[position].as_posix()} lies among good images, and its own name says otherwise or"
                    " leaves a doubt. Rename it, move it, or name the folders whose images are all good with --good"
                    " FOLDER."
                )
        return unclear

    def sort_by_names(self, unclear: list[int], unmarked: Collection[int]) -> list[int]:
        """What the files' own names decide, or a ground truth that marks nothing; returns the others."""
        labels = {position: self.label(position) for position in unclear}
        if not set(labels.values()) & {"good", "good?", "defective", "masks", "doubt"}:
            labels = dict.fromkeys(unclear, "")
        choice, left = self.choice, []
        for position, label in labels.items():
            if label == "defective":
                choice.defective.append(position)
            elif label == "masks":
                choice.masks.append(position)
            elif (label == "good" or position in unmarked) and not _below_good(self.paths[position]):
                choice.good.append(position)
            else:
                left.append(position)
        return left


def choose_good(
    paths: Sequence[PurePath],
    root_name: str = "",
    good: Sequence[str] = (),
    masks: Collection[int] = (),
    marked: Collection[int] = (),
    unmarked: Collection[int] = (),
) -> Choice:
    """Decides which images are of good parts: what is clearly named so, or what the user named.

    Folders decide first. Where they say nothing, the files' own names do (`part_003_OK.bmp`), if all of them do.

    Args:
        paths: of image files, relative to the folder that was given.
        root_name: that folder's own name.
        good: folders below it that the user named as holding good parts; `.` is the folder itself.
        masks: positions of files that are ground truth by what they hold.
        marked: positions of images on which a ground truth marks a defect: they never train.
        unmarked: positions of images whose ground truth marks nothing: they are good.

    Raises:
        ValueError: for anything that is not clear, with what was found and how to decide.
    """
    sorting = _Sorting(paths, masks, marked)
    if good:
        return _choose_named(sorting, good)
    choice, unclear = sorting.choice, sorting.sort_by_folders()
    if unclear:
        unclear = sorting.sort_by_names(unclear, unmarked)
    own = kind_of(root_name)
    if not unclear:
        if choice.good and own == "defective":
            raise ValueError(f"{root_name} is itself named as defective. Found: {describe_found(paths)}.")
        return choice
    flat = all(paths[position].parent == PurePath(".") for position in unclear)
    alone = not choice.good and not choice.defective and not choice.masks
    labelled = [paths[position].name for position in unclear if sorting.label(position)]
    if flat and alone and not labelled and own in ("good", "unclear") and not _is_dubious(root_name):
        choice.good = unclear
        return choice
    named = f"{root_name} is itself named as {own}. " if own == "defective" else ""
    files = ""
    if labelled or (flat and not alone):
        shown = labelled or [paths[position].name for position in unclear]
        files = f" The files' names do not tell all of them apart, such as {', '.join(shown[:3])}."
    raise ValueError(
        f"It is not clear which of these images show good parts. {named}Found: {describe_found(paths)}.{files}"
        f" {HOW_TO_DECIDE}"
    )


def _below_good(path: PurePath) -> bool:
    """Whether a folder is named good and one around or below it takes that back."""
    return any(kind_of(part) == "good" for part in path.parts[:-1])


def _choose_named(sorting: _Sorting, good: Sequence[str]) -> Choice:
    """The user's word goes before a name's; ground truth stays what it is, and what it marks does not train."""
    paths, choice = sorting.paths, sorting.choice
    given = {PurePath(name) for name in good}
    chosen = []
    for position in sorting.images:
        path = paths[position]
        # `.` is the images right in the folder, any other name everything below it.
        hit = next((one for one in (path.parent, *path.parent.parents) if one in given and (
            one != PurePath(".") or path.parent == one)), None)  # fmt: skip
        kind = _kind_or_unclear(path)
        below = PurePath(*path.parts[len(hit.parts) :]) if hit is not None else path
        if hit is not None and _kind_or_unclear(below) == "masks":
            choice.masks.append(position)
        elif position in sorting.marked:
            choice.defective.append(position)
        elif hit is not None:
            chosen.append(position)
        elif kind == "masks":
            choice.masks.append(position)
        elif kind == "defective":
            choice.defective.append(position)
    if not chosen and paths:
        raise ValueError(f"There is no image in {', '.join(good)}. Found: {describe_found(paths)}.")
    # Where some files there are named defective and others are not, the names tell them apart.
    bad = {position for position in chosen if sorting.label(position) == "defective"}
    if 0 < len(bad) < len(chosen):
        choice.defective += sorted(bad)
        chosen = [position for position in chosen if position not in bad]
    truth = {position for position in chosen if sorting.label(position) == "masks"}
    choice.masks += sorted(truth)
    choice.good += [position for position in chosen if position not in truth]
    return choice
