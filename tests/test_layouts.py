"""Layouts of data sets: what is recognised, and what is said of those that are wrong."""

import numpy as np
import PIL.Image
import pytest

from ddad.datasets.layouts import Sample, find_images, read_dataset, read_mask

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
        (["a.png", "b/c.jpg"], "folder", 2, 0, []),
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
