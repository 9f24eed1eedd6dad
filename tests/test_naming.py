"""Which images train: layout x naming x language x capitals x masks. Exactly the good ones, or a refusal."""

import itertools
from pathlib import PurePath

import numpy as np
import PIL.Image
import pytest

from ddad.datasets.layouts import read_dataset
from ddad.datasets.names import choose_good, kind_of, label_in

GOOD = ["good", "OK", "normal", "i.O.", "fehlerfrei", "conformes", "bueno", "buoni", "良品", "正常", "양품", "정상",
        "no_defect", "无缺陷", "欠陥なし", "결함없음", "aprovado", "goed", "dobre"]  # fmt: skip
BAD = ["bad", "NG", "abnormal", "n.i.O.", "Ausschuss", "défauts", "rechazado", "scarti", "不良品", "异常", "불량",
       "비정상", "not ok", "不正常", "非良品", "良品以外", "reprovado", "nie OK", "OK değil", "não OK",
       "不OK"]  # fmt: skip
DOUBTFUL = ["false_ok", "pseudo_good", "ok_unsure", "good_scratched", "OK?", "good_and_bad", "semi_ok", "ok_but_dirty",
            "疑似良品", "good-not", "normal_x_deviation", "almost good", "ok maybe", "good_crack"]  # fmt: skip


def write(path, value=90, mark=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(abs(hash(path.as_posix())) % 2**32).integers(60, 120, (20, 24))
    values = values.astype(np.uint8) if value else np.zeros((20, 24), np.uint8)
    if mark:
        values[3:8, 4:9] = 255
    PIL.Image.fromarray(values).save(path)


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name):
    assert kind_of(name) == "good"


@pytest.mark.parametrize("name", BAD)
def test_names_that_negate(name):
    assert kind_of(name) == "defective"


@pytest.mark.parametrize("name", DOUBTFUL)
def test_names_that_qualify(name):
    assert kind_of(name) == "unclear"
    with pytest.raises(ValueError, match="not clear"):
        choose_good([PurePath(name, f"{number}.png") for number in range(4)] + [PurePath("bad/1.png")])


@pytest.mark.parametrize(("good", "bad"), itertools.product(GOOD, BAD))
@pytest.mark.parametrize("naming", ["folder", "file", "both"])
def test_verdicts_in_folders_and_files(good, bad, naming):
    """Every pair of names, as folders, as parts of file names, and as both: the good ones train and no other."""
    if naming == "folder":
        paths = [f"{good}/{n}.png" for n in range(5)] + [f"{bad}/{n}.png" for n in range(3)]
    elif naming == "file":
        paths = [f"cam1_{n:03d}_{good}.png" for n in range(5)] + [f"cam1_{n:03d}_{bad}.png" for n in range(5, 8)]
    else:
        paths = [f"{good}/p_{n}_{good}.png" for n in range(5)] + [f"{bad}/p_{n}_{bad}.png" for n in range(3)]
    choice = choose_good([PurePath(path) for path in paths])
    assert (choice.good, choice.defective, choice.masks) == ([0, 1, 2, 3, 4], [5, 6, 7], [])


@pytest.mark.parametrize("bad", [*BAD, *DOUBTFUL])
def test_a_defect_among_good_files_is_refused_or_tests(bad):
    """One image of a plain folder that says what it is: it never trains."""
    paths = [PurePath(f"IMG_{number:04d}.png") for number in range(6)] + [PurePath(f"IMG_0006_{bad}.png")]
    with pytest.raises(ValueError, match="not clear"):
        choose_good(paths)
    if label_in(paths[-1].stem) != "good?":  # a word that is not known may be the part's name: the folder says good
        with pytest.raises(ValueError, match="lies among good images"):
            choose_good([PurePath("good") / path for path in paths])


@pytest.mark.parametrize("below", ["scratch", "crack", "old machine", "rework", "bad lighting", "x2"])
def test_a_folder_below_good_that_is_not_known_is_refused(below):
    with pytest.raises(ValueError):
        choose_good([PurePath("good", below, "1.png"), PurePath("good", "2.png")])


@pytest.mark.parametrize("below", ["cam1", "2026-11-27", "batch 3", "left", "S0001", "图片", "no_3"])
def test_a_folder_below_good_that_says_nothing_trains(below):
    assert choose_good([PurePath("good", below, "1.png"), PurePath("good", "2.png")]).good == [0, 1]


def test_names_of_parts_and_made_up_names_say_nothing():
    for names in (
        [f"label_printer_{n}" for n in range(4)], [f"mask_ffp2_{n}" for n in range(4)],
        ["0bad11ee-9bad-4bad-8bad-00ff00ff00ff", "3f5c11ee-9aaa-4bbb-8ccc-00ff00ff00ee"], ["DSC_0001", "DSC_0002"],
        [f"widget_ok_{n}" for n in range(3)],
    ):  # fmt: skip
        choice = choose_good([PurePath(f"{name}.png") for name in names])
        assert len(choice.good) == len(names), names
    assert label_in("part_scratch_3") == "flaw" and label_in("IMG_0001") == ""


SPLITS = [("train", "test"), ("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("Training", "Test")]
MASKS = [
    "none",
    "folder",
    "beside _GT",
    "beside _mask",
    "beside _label",
    "beside suffix",
    "below Label",
    "lossy",
    "alpha",
]
FORMATS = ["png", "bmp", "tiff"]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("layout", [*SPLITS, None], ids=str)
@pytest.mark.parametrize(("good", "bad"), [("good", "scratch"), ("OK", "NG"), ("正常", "不良品"), ("정상", "비정상")])
@pytest.mark.parametrize("form", FORMATS)
def test_exactly_these_train(masks, layout, good, bad, form, tmp_path):
    """Good images train and defective ones test, with ground truth where there is one; ground truth is no image."""
    train = tmp_path / "part" / (layout[0] if layout else "") / good
    test = tmp_path / "part" / (layout[1] if layout else "") / (bad if layout or bad != "scratch" else "bad")
    for number in range(6):
        write(train / f"g{number}.{form}")
    for number in range(2):
        write(test / f"d{number}.{form}")
        mask = {
            "folder": tmp_path / "part" / "ground_truth" / test.name / f"d{number}.png",
            "beside _GT": test / f"d{number}_GT.png", "beside _mask": test / f"d{number}_mask.png",
            "beside _label": test / f"d{number}_label.png", "below Label": test / "Label" / f"d{number}_label.png",
            "beside suffix": test / f"d{number}.{'gif' if form == 'png' else 'png'}",
            "lossy": tmp_path / "part" / "masks" / f"d{number}.jpg", "alpha": test / f"d{number}_mask.png",
        }.get(masks)  # fmt: skip
        if mask is None:
            continue
        if masks == "alpha":
            mask.parent.mkdir(parents=True, exist_ok=True)
            layer = np.zeros((20, 24, 4), np.uint8)
            layer[3:8, 4:9, 3] = 255
            PIL.Image.fromarray(layer).save(mask)
        else:
            write(mask, 0, mark=True)
    dataset = read_dataset(tmp_path / "part")
    names = {path.stem for path in dataset.train_paths}
    kept = {one.path.stem for one in dataset.select("test", defective=False)}
    assert names | kept == {f"g{number}" for number in range(6)} and len(names) >= 4
    defective = dataset.select("test", defective=True)
    assert sorted(one.path.stem for one in defective) == ["d0", "d1"]
    assert all((one.mask is not None) == (masks != "none") for one in defective)


@pytest.mark.parametrize("ending", ["_GT", "_label", "-mask", "_ground_truth", "_seg", ".mask"])
def test_ground_truth_that_marks_something_keeps_its_image_from_training(ending, tmp_path):
    """A flat folder in which every image has its ground truth beside it (KolektorSDD2): good where it is empty."""
    for number in range(6):
        write(tmp_path / "part" / f"{number}.png")
        write(tmp_path / "part" / f"{number}{ending}.png", 0, mark=number > 3)
    dataset = read_dataset(tmp_path / "part")
    good = [*dataset.train_paths, *(one.path for one in dataset.select("test", defective=False))]
    assert sorted(path.stem for path in good) == ["0", "1", "2", "3"]
    assert {one.path.stem for one in dataset.select("test", defective=True)} == {"4", "5"}


def test_a_user_who_names_a_folder_does_not_train_its_ground_truth(tmp_path):
    for number in range(5):
        write(tmp_path / "Train" / f"{number:04d}.png")
    write(tmp_path / "Train" / "Label" / "0004_label.png", 0, mark=True)
    dataset = read_dataset(tmp_path, good=["Train"])
    named = {one.path.name for one in dataset.samples if not one.defective}
    assert named == {"0000.png", "0001.png", "0002.png", "0003.png"}
    for number in range(3):
        write(tmp_path / "stock" / f"{number}_OK.png")
        write(tmp_path / "stock" / f"{number}_NG.png")
    named = {one.path.stem for one in read_dataset(tmp_path, good=["stock"]).samples if not one.defective}
    assert named == {"0_OK", "1_OK", "2_OK"}


def test_links_are_followed_once(tmp_path):
    for number in range(3):
        write(tmp_path / "store" / f"{number}.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "again").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(read_dataset(tmp_path / "data").train_paths) == 3


TABLE = "object,split,label,image,mask\n" + "".join(
    f"nut,{'train' if n < 4 else 'test'},{'normal' if n < 5 else 'anomaly'},nut/Data/é{n}.png,\n" for n in range(6)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("capitals", [False, True])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_tables_of_spreadsheets(encoding, delimiter, capitals, ends, tmp_path):
    for number in range(6):
        write(tmp_path / "nut" / "Data" / f"é{number}.png")
    (tmp_path / "nut" / "image_anno.csv").write_text("image,label,mask\n")
    (tmp_path / "split_csv").mkdir()
    table = TABLE.replace("object,split,label,image,mask", "Object,SPLIT,Label,Image,Mask") if capitals else TABLE
    content = table.replace(",", delimiter).replace("\n", ends).encode(encoding)
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(content)
    dataset = read_dataset(tmp_path / "nut")
    assert len(dataset.train_paths) == 4 and [one.path.stem for one in dataset.select("test", True)] == ["é5"]


def test_tables_that_are_wrong_are_told(tmp_path, caplog):
    for number in range(6):
        write(tmp_path / "nut" / "Data" / f"é{number}.png")
    (tmp_path / "nut" / "image_anno.csv").write_text("image,label,mask\n")
    path = tmp_path / "split_csv" / "1cls.csv"
    path.parent.mkdir()
    path.write_text(TABLE.replace("split,", "part,", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="1cls.csv lacks the columns split; it has object, part"):
        read_dataset(tmp_path / "nut")
    path.write_text(TABLE.replace("nut,test", "nut,elsewhere"), encoding="utf-8")
    with pytest.raises(ValueError, match="names a split 'elsewhere'"):
        read_dataset(tmp_path / "nut")
    path.write_text(TABLE.replace("nut,test", "nut,train"), encoding="utf-8")
    assert [one.path.stem for one in read_dataset(tmp_path / "nut").samples] == [f"é{n}" for n in range(5)]
    assert "1 defective images that" in caplog.text and "are left out" in caplog.text
