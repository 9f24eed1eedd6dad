"""Layouts of data sets: what is recognised, and what is said of those that are wrong."""

import numpy as np
import PIL.Image
import pytest

from ddad.datasets.layouts import Sample, find_images, make_contact_sheet, read_dataset, read_mask
from ddad.datasets.names import kind_of
from tests.conftest import ROOT

SHARED = 12


def write(path, value=0, size=(SHARED, SHARED), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, value).save(path)
    return path


def write_all(root, names):
    for name in names:
        write(root / name)
    return root


MVTEC = [
    "train/good/000.png", "train/good/001.png", "test/good/000.png", "test/scratch/000.png", "test/scratch/001.png",
    "test/hole/000.png", "ground_truth/scratch/000_mask.png", "ground_truth/scratch/001_mask.png",
    "ground_truth/hole/000_mask.png",
]  # fmt: skip
BTAD = ["train/ok/1.bmp", "test/ok/2.bmp", "test/ko/3.bmp", "ground_truth/ko/3.png"]
MVTEC_AD_2 = [
    "train/good/000.png", "validation/good/000.png", "test_public/good/000.png", "test_public/bad/000.png",
    "test_public/ground_truth/bad/000_mask.png", "test_private/001.png",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "layout", "train", "good", "defects"),
    [
        (MVTEC, "mvtec", 2, 1, ["hole", "scratch", "scratch"]),
        (BTAD, "btad", 1, 1, ["ko"]),
        (MVTEC_AD_2, "mvtec_ad_2", 2, 1, ["bad"]),
        (["a.png", "b.jpg", ".hidden/c.png", "__MACOSX/a.png", "._a.png"], "folder", 2, 0, []),
        (["OK/1.png", "OK/2.png", "NG/3.png", "masks/3.bmp"], "folder", 1, 1, ["defective"]),
        (["good/1.png", "bad/dent/3.png", "ground_truth/bad/dent/3_mask.png"], "folder", 0, 1, ["dent"]),
    ],
)
def test_layouts_are_recognised(names, layout, train, good, defects, tmp_path):
    dataset = read_dataset(write_all(tmp_path / "part", names))
    assert (dataset.name, dataset.data_format) == ("part", layout)
    assert len(dataset.train_paths) == train and len(dataset.select("test", defective=False)) == good
    defective = dataset.select("test", defective=True)
    assert sorted(one.defect for one in defective) == defects
    assert all(one.mask is not None and one.mask.stem.startswith(one.path.stem) for one in defective)
    assert f"layout {layout}: {train} good images to train" in dataset.describe()
    assert read_dataset(tmp_path / "part", layout) == dataset


REPORTS = ROOT.parent / "shared" / "reports"


@pytest.mark.parametrize(
    "name",
    [
        "good",
        "OK",
        "Normal",
        "normal_dir",
        "ok_images",
        "GoodParts",
        "defect_free",
        "no_defect",
        "non-defective",
        "fehlerfrei",
        "gut",
        "i.O.",
        "bon",
        "conformes",
        "bueno",
        "buoni",
        "良品",
        "正常",
        "合格",
        "양품",
        "정상",
        "nicht_defekt",
        "ohne_fehler",
        "pass",
    ],
)
def test_folders_of_good_parts_are_known_by_their_names(name):
    assert kind_of(name) == "good"


@pytest.mark.parametrize(
    "name",
    [
        "bad",
        "NG",
        "nok",
        "KO",
        "abnormal",
        "abnormal_dir",
        "BadParts",
        "defective",
        "not_ok",
        "notOK",
        "NoGood",
        "n.i.O.",
        "Fehler",
        "Ausschuss",
        "défauts",
        "mauvais",
        "defectos",
        "rechazado",
        "difetti",
        "scarti",
        "不良品",
        "不良",
        "不合格",
        "異常",
        "异常",
        "缺陷",
        "欠陥",
        "불량",
        "결함",
        "reject",
    ],
)
def test_folders_of_defective_parts_are_known_by_their_names(name):
    assert kind_of(name) == "defective"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mask_dir", "masks"),
        ("GroundTruth", "masks"),
        ("ground_truth", "masks"),
        ("masken", "masks"),
        ("掩码", "masks"),
    ]
    + [(name, "unclear") for name in ("crack", "colour", "batch1", "train", "images", "bottle", "good_and_bad")],
)
def test_other_folders(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.png", "b/c.png"], r"\. \(1, not clear\), b \(1, not clear\)"),
        (["batch1/a.png", "batch2/b.png"], "batch1 .*batch2"),
        (["good/a.png", "crack/b.png", "masks/crack/b.png"], r"crack \(1, not clear\), good \(1, good\)"),
        (["good/bad/a.png"], "named as good and as defective"),
        (["train/good/a.png", "train/bad/b.png", "test/good/c.png"], "must hold good images only"),
        (["train/good/a.png", "train/mask/b.png", "test/good/c.png"], "must hold good images only"),
        (["a/train/good/1.png", "a/test/good/2.png", "b/train/good/1.png"], r"several categories \(a, b\)"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_was_found(names, found, tmp_path):
    with pytest.raises(ValueError, match=found):
        read_dataset(write_all(tmp_path / "part", names))


def test_a_folder_named_as_defective_trains_nobody(tmp_path):
    with pytest.raises(ValueError, match="NG is itself named as defective"):
        read_dataset(write_all(tmp_path / "NG", ["1.png", "2.png"]))


def test_the_user_decides_where_names_do_not(tmp_path):
    names = ["batch1/a.png", "batch1/deep/b.png", "batch2/c.png", "crack/d.png", "bad/e.png", "masks/e.png", "f.png"]
    root = write_all(tmp_path / "part", names)

    def trains(*good):
        return {path.relative_to(root).as_posix() for path in read_dataset(root, good=good).train_paths}

    assert trains("batch1", "batch2") <= {"batch1/a.png", "batch1/deep/b.png", "batch2/c.png"}
    assert read_dataset(root, good=["batch1"]).select("test", defective=True)[0].mask == root / "masks" / "e.png"
    assert trains(".") <= {"f.png"}
    with pytest.raises(ValueError, match="There is no image in batch3"):
        trains("batch3")


@pytest.mark.skipif(not REPORTS.is_dir(), reason="the reports lie beside the project alone")
@pytest.mark.parametrize(
    ("name", "train", "defective"),
    [
        ("folders/a_normal_abnormal", 9, 4), ("folders/b_dirs", 9, 4), ("folders/f_ok_nok", 9, 4),
        ("folders/k_dot", 8, 0), ("masks/exif_upright", 4, 3), ("masks/jpegmask", 4, 3), ("masks/loco", 10, 4),
        ("masks/uppercase", 9, 4), ("folders/c_hazelnut_toy", None, 0), ("folders/e_mvtec_root", None, 0),
        ("folders/o_train_bad", None, 0),
    ],
)  # fmt: skip
def test_reported_folders(name, train, defective):
    if train is None:
        with pytest.raises(ValueError, match="Found:|several categories"):
            read_dataset(REPORTS / name)
        return
    dataset = read_dataset(REPORTS / name)
    assert len(dataset.train_paths) == train and len(dataset.select("test", defective=True)) == defective
    for one in dataset.select("test", defective=True):
        assert one.mask is None or 0 < read_mask(one, (32, 32)).mean() < 0.2


def test_a_mask_is_turned_as_its_photograph_is(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored on its side
    image = tmp_path / "image.jpg"
    PIL.Image.new("L", (20, 10)).save(image, exif=exif)
    upright = write(tmp_path / "upright.png", size=(10, 20))
    truth = np.zeros((20, 10), dtype=np.uint8)
    truth[:5] = 255
    PIL.Image.fromarray(truth).save(upright)
    np.testing.assert_array_equal(read_mask(Sample(image, "test", "dent", upright), (20, 10)), truth > 0)
    raw = write(tmp_path / "raw.png", 0, size=(20, 10))
    with pytest.raises(ValueError, match="It fits the photograph before its EXIF turns it"):
        read_mask(Sample(image, "test", "dent", raw), (8, 8))
    PIL.Image.fromarray(np.rot90(truth)).save(tmp_path / "turned.png", exif=exif)
    turned = read_mask(Sample(image, "test", "dent", tmp_path / "turned.png"), (20, 10))
    np.testing.assert_array_equal(turned, truth > 0)


def test_specks_of_a_jpeg_mask_are_no_defect(tmp_path, caplog):
    image = write(tmp_path / "image.png", size=(64, 64))
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[20:30, 20:30] = 255
    PIL.Image.fromarray(truth).save(tmp_path / "mask.jpg", quality=40)
    assert (np.array(PIL.Image.open(tmp_path / "mask.jpg")) > 0).sum() > 130
    read = read_mask(Sample(image, "test", "dent", tmp_path / "mask.jpg"), (64, 64))
    assert (read != (truth > 0)).sum() <= 12 and "stored as JPEG" in caplog.text


def test_an_inverted_mask_is_asked_about(tmp_path):
    image, mask = write(tmp_path / "image.png", size=(20, 20)), write(tmp_path / "mask.png", 255, size=(20, 20))
    with pytest.raises(ValueError, match="100% of .*mask.png is marked as defect: is it inverted"):
        read_mask(Sample(image, "test", "dent", mask), (8, 8))


def test_several_masks_are_one_ground_truth(tmp_path):
    root = write_all(tmp_path / "part", ["train/good/1.png", "validation/good/2.png", "test/good/3.png"])
    write(root / "test" / "dent" / "4.png", size=(20, 20))
    for number, place in enumerate(((0, 0, 5, 5), (10, 10, 20, 20))):
        mask = PIL.Image.new("L", (20, 20))
        mask.paste(255, place)
        (root / "ground_truth" / "dent" / "4").mkdir(parents=True, exist_ok=True)
        mask.save(root / "ground_truth" / "dent" / "4" / f"{number:03d}.png")
    dataset = read_dataset(root)
    assert dataset.data_format == "mvtec_loco" and len(dataset.train_paths) == 2
    (one,) = dataset.select("test", defective=True)
    assert read_mask(one, (20, 20)).sum() == 125
    elsewhere = read_dataset(root, masks=root / "ground_truth")
    assert elsewhere.select("test", defective=True)[0].mask == one.mask


def test_a_contact_sheet_shows_what_trains(tmp_path):
    paths = [write(tmp_path / f"{number}.png", 200, size=(40, 20)) for number in range(30)]
    paths[0].write_text("broken")
    sheet = np.array(make_contact_sheet(paths))
    assert sheet.shape == (4 * 160, 6 * 160, 3)
    assert sheet[80, 80].tolist() == [128] * 3 and sheet[80, 240].tolist() == [200] * 3


def test_visa_by_its_split_and_by_its_annotations(tmp_path):
    root = tmp_path / "candle"
    for index in range(12):
        write(root / "Data" / "Images" / "Normal" / f"{index}.JPG")
    write(root / "Data" / "Images" / "Anomaly" / "0.JPG")
    write(root / "Data" / "Masks" / "Anomaly" / "0.png")
    lines = [f"candle/Data/Images/Normal/{index}.JPG,normal," for index in range(12)]
    lines.append("candle/Data/Images/Anomaly/0.JPG,burnt,candle/Data/Masks/Anomaly/0.png")
    (root / "image_anno.csv").write_text("image,label,mask\n" + "\n".join(lines) + "\n")
    dataset = read_dataset(root)
    assert (dataset.data_format, len(dataset.train_paths)) == ("visa", 11)
    assert [one.defect for one in dataset.select("test")] == ["good", "burnt"]

    split = tmp_path / "split_csv" / "1cls.csv"
    split.parent.mkdir()
    rows = [
        "candle,train,normal,candle/Data/Images/Normal/0.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/1.JPG,",
    ]
    rows += [
        "candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png",
        "pcb1,train,normal,x,",
    ]
    split.write_text("object,split,label,image,mask\n" + "\n".join(rows) + "\n")
    dataset = read_dataset(root)
    assert [(one.split, one.defect) for one in dataset.samples] == [
        ("train", "good"),
        ("test", "good"),
        ("test", "anomaly"),
    ]
    assert dataset.samples[2].mask == root / "Data" / "Masks" / "Anomaly" / "0.png"
    (root / "Data" / "Images" / "Normal" / "1.JPG").unlink()
    with pytest.raises(ValueError, match="1 files that the CSV of .*candle names are not there"):
        read_dataset(root)


def test_every_fifth_good_image_of_a_plain_folder_tests(tmp_path):
    write_all(tmp_path, [f"good/{index}.png" for index in range(10)] + ["defective/0.png"])
    dataset = read_dataset(tmp_path)
    assert len(dataset.train_paths) == 8
    assert not set(dataset.train_paths) & {one.path for one in dataset.select("test")}


def test_what_is_wrong_is_said(tmp_path, caplog):
    with pytest.raises(ValueError, match="is not a folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images .* where the layout folder has them"):
        read_dataset(tmp_path / "empty")
    root = write_all(tmp_path / "part", MVTEC)
    with pytest.raises(ValueError, match="has not the layout visa"):
        read_dataset(root, "visa")
    (root / "ground_truth" / "hole" / "000_mask.png").unlink()
    dataset = read_dataset(root)
    assert "1 defective images have no mask" in caplog.text and "1 of these have no mask" in dataset.describe()
    (hole,) = (one for one in dataset.samples if one.defect == "hole")
    with pytest.raises(ValueError, match="has no mask"):
        read_mask(hole, (8, 8))


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 1), ("L", 255), ("1", 1), ("I;16", 300), ("RGB", (0, 0, 3)), ("RGBA", (0, 9, 0, 255))]
)
def test_every_value_above_zero_is_defect(mode, value, tmp_path):
    image = write(tmp_path / "image.png", size=(20, 10))
    mask = PIL.Image.new(
        mode,
        (20, 10),
        0
        if not isinstance(value, tuple)
        else (0,) * (len(value) - 1) + (255,) * (len(value) == 4) + (0,) * (len(value) == 3),
    )
    mask.paste(value, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    truth = read_mask(Sample(image, "test", "dent", tmp_path / "mask.png"), (40, 40))
    assert truth.shape == (40, 40) and truth[:, :20].all() and not truth[:, 20:].any()
    assert not read_mask(Sample(image, "test"), (40, 40)).any()


def test_a_mask_of_another_size_is_refused(tmp_path):
    image, mask = write(tmp_path / "image.png", size=(20, 10)), write(tmp_path / "mask.png", 1, size=(10, 20))
    with pytest.raises(ValueError, match=r"mask.png has \(10, 20\) pixels, its image .*image.png \(20, 10\)"):
        read_mask(Sample(image, "test", "dent", mask), (8, 8))


def test_transparent_pixels_and_palettes_are_read_by_their_colour(tmp_path):
    image = write(tmp_path / "image.png", size=(4, 4))
    values = np.zeros((4, 4), dtype=np.uint8)
    values[0, 0] = 1
    mask = PIL.Image.fromarray(values).convert("P")
    mask.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    mask.save(tmp_path / "mask.png")
    assert read_mask(Sample(image, "test", "dent", tmp_path / "mask.png"), (4, 4)).sum() == 1
