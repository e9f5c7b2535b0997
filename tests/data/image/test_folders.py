"""The user's own images: which files are found, what is refused and how, and the stores that hold them."""

import errno
import json
import multiprocessing
import os
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from quartet.data.image import decode, folders
from quartet.data.image.augment import Augment
from quartet.data.image.decode import to_uint8
from quartet.data.image.folders import list_images
from quartet.data.image.images import FolderData

OFF = {"fill": "zero", "flip": False, "randaugment": 0, "colour": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
SETTINGS = {
    "image_size": None,
    "channels": "auto",
    "memory_gb": 1.0,
    "disk_gb": 0.0,
    "num_workers": 0,
    "on_corrupt": "error",
    "on_overlap": "error",
    "batch_size": 4,
    "split": [0.6, 0.2, 0.2],
    "split_seed": 0,
    "folds": None,
    "fold": None,
    "seed": 0,
    "augment": Augment(crop=0, **OFF),
}
COUNTER = iter(range(10**6))


def save(path, size=8, mode="RGB", **options):
    """A image unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(next(COUNTER))
    Image.fromarray(random.integers(256, size=(size, size, 3), dtype=np.uint8)).convert(mode).save(path, **options)


def tree(root, *folders, n=10, **options):
    for folder in folders:
        for i in range(n):
            save(root / folder / f"{i:02}.png", **options)
    return root


@pytest.fixture
def photos(tmp_path):
    return tree(tmp_path / "photos", "cat", "dog")


@pytest.fixture
def official(tmp_path):
    folders = [f"{part}/{label}" for part in ("train", "val", "test") for label in ("cat", "dog")]
    return tree(tmp_path / "photos", *folders, n=4)


def make(path, **changes):
    return FolderData(**{**SETTINGS, "path": str(path), **changes})


def ready(path, **changes):
    data = make(path, **changes)
    data.setup()
    return data


def names(data):
    return sorted(name for ids in data.ids.values() for name in ids)


def refused(path, kind: type[Exception] = ValueError, **changes):
    """The message, one line that names the folder."""
    with pytest.raises(kind) as error:
        ready(path, **changes)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


# what is found


def test_one_tree_is_split_in_every_class(photos):
    data = ready(photos)
    assert data.spec.classes == ("cat", "dog") and data.spec.class_counts == (6, 6)
    assert data.report()["classes"] == {label: {"train": 6, "val": 2, "test": 2} for label in ("cat", "dog")}
    assert names(data) == [f"{label}/{i:02}.png" for label in ("cat", "dog") for i in range(10)]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val"])
def test_official_parts_are_kept_under_their_usual_names(official, val):
    (official / "val").rename(official / val)
    data = ready(official)
    for part, folder in (("train", "train"), ("val", val), ("test", "test")):
        assert data.ids[part] == [f"{folder}/{label}/{i:02}.png" for label in ("cat", "dog") for i in range(4)]


@pytest.mark.parametrize(
    ("absent", "sizes"), [(["val"], (6, 2, 8)), (["test"], (6, 8, 2)), (["val", "test"], (4, 2, 2))]
)
def test_parts_that_are_missing_are_taken_of_train(official, absent, sizes):
    for part in absent:
        shutil.rmtree(official / part)
    data = ready(official, split=[0.5, 0.25, 0.25])
    assert tuple(len(ids) for ids in data.ids.values()) == sizes
    assert all(name.startswith("train/") for part in absent for name in data.ids[part])


def test_images_are_found_in_folders_of_a_class_and_other_files_are_counted(photos, capsys):
    save(photos / "cat" / "more" / "deep.PNG")
    for name in ("notes.txt", "cat/list.csv", "loose.png"):
        (photos / name).write_text("no image")
    for name in (".DS_Store", "__MACOSX/._01.png", "cat/.hidden.png", ".git/a.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("hidden")
    data = ready(photos)
    assert len(names(data)) == 21 and "cat/more/deep.PNG" in names(data)
    assert data.report()["notes"][1:] == ["3 files left out, not images or not in a class folder"]
    assert "3 files left out" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif"])
def test_formats(tmp_path, suffix):
    for label in ("a", "b"):
        for i in range(5):
            save(tmp_path / label / f"{i}.{suffix}")
    data = ready(tmp_path, channels=3, batch_size=2)
    first = int(data.ids["train"].index(sorted(data.ids["train"])[0]))
    expected = to_uint8(tmp_path / data.ids["train"][first], 3, 8).transpose(1, 2, 0)
    assert np.array_equal(data.raw_images("train", [first])[0], expected)


def test_labels_and_images_belong_together(photos):
    for i in range(10):
        Image.new("RGB", (8, 8), (250, i, 0)).save(photos / "cat" / f"{i:02}.png")
        Image.new("RGB", (8, 8), (0, i, 250)).save(photos / "dog" / f"{i:02}.png")
    data = ready(photos)
    for part in data.ids:
        ids = range(len(data.ids[part]))
        assert [data.spec.classes[label] for label in data.labels(part, ids)] == [n[:3] for n in data.ids[part]]
        assert [int(p[0, 0, 2] > 100) for p in data.raw_images(part, ids)] == data.labels(part, ids)


# size and channels


def test_a_common_size_is_found_and_a_given_one_wins(photos):
    assert ready(photos).spec.sizes == {"in_channels": 3, "image_size": 8, "n_classes": 2}
    assert ready(photos, image_size=5).datasets["val"].gather(torch.tensor([0]))["inputs"]["image"].shape[-1] == 5


@pytest.mark.parametrize("other", [(9, 9), (8, 9)])
def test_several_sizes_are_brought_to_the_usual_one(photos, capsys, other):
    for i in range(10):
        Image.effect_noise(other, 50 + i).save(photos / "cat" / f"{i:02}.png")
    assert ready(photos).spec.sizes["image_size"] == 64
    assert "resized to 64×64; data.image_size=<pixels>" in capsys.readouterr().out


def test_large_images_must_be_asked_for(tmp_path):
    assert ready(tree(tmp_path, "a", "b", n=5, size=130)).spec.sizes["image_size"] == 64


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_channels_are_found_by_the_format(tmp_path, mode, channels):
    assert ready(tree(tmp_path, "a", "b", n=5, mode=mode)).spec.sizes["in_channels"] == channels


def test_sixteen_bits_and_grey_palettes_are_grey(tmp_path):
    for i in range(10):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        noise = Image.effect_noise((8, 8), 50 + i)
        deep = Image.fromarray(np.asarray(noise).astype(np.uint16) * 256)
        noise = deep if i % 3 else noise.convert("P")  # the palette that grey gets is grey
        noise.save(folder / f"{i}.png")
    assert ready(tmp_path).spec.sizes["in_channels"] == 1


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1)])
def test_given_channels_win(tmp_path, mode, channels):
    data = ready(tree(tmp_path, "a", "b", n=5, mode=mode), channels=channels)
    assert data.raw_images("train", [0]).shape == (1, 8, 8, channels)


def test_nothing_outside_train_is_fitted(official):
    """Not the size, the channels, the mean: other images in val and test give the same preprocessing."""
    before = ready(official).preprocessing()
    for part in ("val", "test"):
        shutil.rmtree(official / part)
    tree(official, "val/cat", "val/dog", "test/cat", "test/dog", n=5, size=20, mode="L")
    after = ready(official).preprocessing()
    assert {**after, "fingerprint": 0} == {**before, "fingerprint": 0}
    assert after["fingerprint"] != before["fingerprint"]


def test_restored_in_another_place_it_is_the_same(photos, tmp_path):
    data = ready(photos)
    photos.rename(tmp_path / "elsewhere")
    restored = make(tmp_path / "elsewhere", image_size=20, channels=1)  # what was fitted wins
    restored.restore(json.loads(json.dumps(data.preprocessing())))
    restored.fit = None  # type: ignore[method-assign]
    restored.setup()
    assert restored.ids == data.ids and restored.spec == data.spec
    assert np.array_equal(restored.raw_images("test", [0, 1]), data.raw_images("test", [0, 1]))


@pytest.mark.parametrize("change", ["content", "name"])
def test_changed_images_are_refused_by_a_restored_module(photos, change):
    restored = make(photos)
    restored.restore(ready(photos).preprocessing())
    if change == "content":
        save(photos / "cat" / "03.png")
    else:
        (photos / "cat" / "03.png").rename(photos / "cat" / "99.png")
    with pytest.raises(ValueError, match="the data have changed since the run"):
        restored.setup()


# images that cannot be read


def damage(photos):
    """Each kind of damage once; what the message says of each."""
    (photos / "cat" / "00.png").write_bytes(b"")
    (photos / "cat" / "01.png").write_bytes(b"<html>not found</html>")
    Image.new("RGB", (1, 1)).save(photos / "cat" / "02.png")
    save(photos / "dog" / "03.jpg", size=64)
    whole = (photos / "dog" / "03.jpg").read_bytes()
    (photos / "dog" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    return [
        "cat/00.png (0 bytes)",
        "cat/01.png (not an image)",
        "cat/02.png (1×1 pixel)",
        "dog/03.jpg (image file is trunc",
    ]


def test_all_images_that_cannot_be_read_are_named_in_one_line(photos):
    expected = damage(photos)
    message = refused(photos)
    assert message.startswith("4 images in data.path=") and "data.on_corrupt=skip" in message
    assert all(piece in message for piece in expected)


def test_a_truncated_image_alone_is_named(photos):
    whole = (photos / "cat" / "05.png").read_bytes()
    (photos / "cat" / "05.png").write_bytes(whole[:-40])
    message = refused(photos)
    assert message.startswith("1 image in data.path=") and "cat/05.png" in message


def test_of_many_the_first_are_named(photos):
    for i in range(8):
        (photos / "dog" / f"{i:02}.png").write_bytes(b"")
    assert "dog/03.png (0 bytes) and 4 more;" in refused(photos)


@pytest.mark.parametrize(("memory_gb", "disk_gb"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_skip_leaves_them_out_and_counts(photos, memory_gb, disk_gb, capsys):
    damage(photos)
    data = ready(photos, on_corrupt="skip", memory_gb=memory_gb, disk_gb=disk_gb)
    assert len(names(data)) == 17 and not {"cat/00.png", "dog/03.jpg"} & {*names(data)}
    assert any(
        note.startswith("4 files left out, cannot be read: cat/00.png (0 bytes), ") for note in data.report()["notes"]
    )
    assert "4 files left out, cannot be read" in capsys.readouterr().out
    assert sum(len(data.datasets[part]) for part in data.ids) == 17


def test_a_class_of_which_nothing_can_be_read(photos):
    """Found by looking, or only by decoding."""
    for path in (photos / "dog").iterdir():
        path.write_bytes(b"")
    assert "there is one class only ('cat')" in refused(photos, on_corrupt="skip")
    for path in (photos / "dog").iterdir():
        save(path)
        path.write_bytes(path.read_bytes()[:-40] + path.name.encode())
    assert "no example of the class 'dog' is left to train on" in refused(photos, on_corrupt="skip")


# the same image twice


def test_a_image_in_train_and_test_is_found_by_content(official):
    shutil.copy(official / "test/cat/01.png", official / "train/cat/zz.png")
    shutil.copy(official / "val/dog/01.png", official / "train/dog/zz.png")
    message = refused(official)
    assert "2 images in" in message and "are in two parts" in message and "data.on_overlap=drop" in message
    assert "train/cat/zz.png = test/cat/01.png, train/dog/zz.png = val/dog/01.png" in message


def test_dropped_overlaps_leave_train_first_and_test_never(official):
    shutil.copy(official / "test/cat/01.png", official / "train/cat/zz.png")
    shutil.copy(official / "test/cat/02.png", official / "val/cat/zz.png")
    data = ready(official, on_overlap="drop")
    assert not any(name.endswith("zz.png") for name in names(data)) and len(data.ids["test"]) == 8
    assert any(note.startswith("2 files left out of train (or val)") for note in data.report()["notes"])


def test_a_image_in_two_classes_is_refused_or_left_out_altogether(photos):
    shutil.copy(photos / "cat/01.png", photos / "dog/zz.png")
    message = refused(photos)
    assert "are in two classes: cat/01.png = dog/zz.png, dog/zz.png = cat/01.png" in message
    data = ready(photos, on_overlap="drop")
    assert len(names(data)) == 19 and not {"cat/01.png", "dog/zz.png"} & {*names(data)}


def test_repeated_images_of_one_class_count_once(official):
    shutil.copy(official / "train/cat/01.png", official / "train/cat/zz.png")
    shutil.copy(official / "test/cat/01.png", official / "test/cat/zz.png")  # an official test part is left alone
    data = ready(official)
    assert "train/cat/zz.png" not in names(data) and "test/cat/zz.png" in names(data)
    assert "1 file left out of train, repeated" in data.report()["notes"]


# what is no set of images


def test_a_path_that_does_not_exist(tmp_path):
    assert "does not exist; give the folder" in refused(tmp_path / "nowhere", FileNotFoundError)


def test_a_file_instead_of_a_folder(photos):
    assert "is a file; give the folder" in refused(photos / "cat" / "01.png")


def test_no_path():
    with pytest.raises(ValueError, match=r"data\.path must be your folder with one folder of images for each class"):
        FolderData(**{**SETTINGS, "path": None})


def test_relative_paths_and_home(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv("HOME", str(photos.parent))
    assert names(ready("photos")) == names(ready("~/photos")) == names(ready(photos))


def test_no_class_folders(tmp_path):
    save(tmp_path / "loose.png")
    assert "has no class folders; put the images of each class" in refused(tmp_path)


def test_no_class_folders_in_a_part(official):
    shutil.rmtree(official / "test")
    save(official / "test" / "loose.png")
    assert "photos/test has no class folders" in refused(official)


def test_a_class_folder_without_images(photos):
    (photos / "fox").mkdir()
    (photos / "fox" / "list.txt").write_text("none yet")
    assert "photos/fox holds no images (.jpg" in refused(photos)


def test_a_single_class(tmp_path):
    assert "there is one class only ('cat')" in refused(tree(tmp_path, "cat"))


def test_a_class_with_one_example(photos):
    save(photos / "fox" / "1.png")
    assert "only one example of the class 'fox' (fox/1.png)" in refused(photos)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_train_does_not_know(official, part):
    tree(official, f"{part}/fox", n=2)
    message = refused(official)
    assert f"no training example has the class 'fox', but {part} has ({part}/fox/00.png, {part}/fox/01.png)" in message


def test_a_class_of_which_the_split_leaves_nothing_to_train_on(photos):
    tree(photos, "fox", n=2)
    assert "no training example has the class 'fox'" in refused(photos, split=[0.2, 0.4, 0.4])


def test_parts_without_train(official):
    shutil.rmtree(official / "train")
    assert "has the folders test, val; test, val mean parts of the data" in refused(official)


@pytest.mark.parametrize("name", ["fox", "valid"])
def test_folders_beside_the_parts(official, name):
    tree(official, f"{name}/cat", n=2)
    assert "so there must be train, each part once, and nothing else" in refused(official)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_no_permission(photos, monkeypatch, what):
    hidden = str(photos / "dog") if what == "folder" else str(photos / "dog" / "03.png")

    def guarded(call):
        def guard(path, *arguments, **keywords):
            if str(path) == hidden:
                raise PermissionError(13, "Permission denied", hidden)
            return call(path, *arguments, **keywords)

        return guard

    monkeypatch.setattr(os, "scandir", guarded(os.scandir))
    monkeypatch.setattr("builtins.open", guarded(open))
    message = refused(photos, PermissionError, on_corrupt="skip")
    assert message.startswith(f"no permission to read {hidden};") and "chmod -R u+rX" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_size", 0, "must be an integer of at least 1 or null, not 0"),
        ("memory_gb", -1.0, "must be a number of at least 0, not -1.0"),
        ("disk_gb", -1, "must be a number of at least 0, not -1"),
        ("num_workers", -1, "must be an integer of at least 0 or null, not -1"),
        ("channels", 2, "must be one of auto, 1, 3, not 2"),
        ("on_corrupt", "ignore", "must be one of error, skip, not 'ignore'"),
        ("on_overlap", "skip", "must be one of error, drop, not 'skip'"),
    ],
)
def test_values_out_of_range_are_named(key, value, words):
    with pytest.raises(ValueError) as error:
        make("anywhere", **{key: value})
    assert str(error.value) == f"data.{key} {words}"


# held in memory, mapped from the cache, or decoded in training


MAP: dict[str, Any] = {"memory_gb": 0.0, "disk_gb": 1.0}
FILES: dict[str, Any] = {"memory_gb": 0.0, "disk_gb": 0.0, "num_workers": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUARTET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def held(data):
    store = data.datasets["train"].store
    return "files" if store.images is None else "map" if store.mapped else "memory"


def same(a, b):
    return all(
        torch.equal(a["inputs"]["image"], b["inputs"]["image"]) and torch.equal(a[k], b[k]) for k in ("target", "index")
    )


@pytest.fixture(params=[MAP, FILES], ids=["map", "files"])
def both(photos, request):
    """The same images in memory and elsewhere."""
    return ready(photos), ready(photos, **request.param)


def test_every_store_gives_the_batches_of_memory_in_the_same_order(both):
    memory, other = both
    loaders = memory.train_dataloader(), other.train_dataloader()
    assert (held(memory), held(other)) == ("memory", "map" if other.disk_gb else "files")
    for _ in range(2):
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == 3
        assert all(same(a, b) for a, b in zip(*batches, strict=True))
    assert all(same(a, b) for a, b in zip(memory.val_dataloader(), other.val_dataloader(), strict=True))
    assert memory.ids == other.ids


def test_statistics_and_report_do_not_depend_on_where_images_are(both):
    memory, other = both
    assert memory.preprocessing() == other.preprocessing()
    over = "more than data.memory_gb=0.0"
    note = f"mapped from the cache: {over}" if other.disk_gb else f"decoded in training: {over} and data.disk_gb=0.0"
    assert other.report()["notes"][1:] == [note]
    assert {**memory.report(), "notes": 0} == {**other.report(), "notes": 0}


def test_figures_and_examples_are_there_for_files_too(both):
    for part in ("train", "test"):
        assert np.array_equal(*(data.raw_images(part, np.array([2, 0])) for data in both))
        assert both[0].labels(part, [2, 0]) == both[1].labels(part, [2, 0])


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 2), (3, 1)])
def test_seeking_gives_the_batches_that_would_have_come(both, epoch, step):
    whole, resumed = both[0].train_dataloader(), both[1].train_dataloader()
    whole.seek(epoch, 0)
    resumed.seek(epoch, step)
    expected, found = list(whole)[step:], list(resumed)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))
    assert (resumed.epoch, resumed.step) == (epoch + 1, 0)


def test_the_position_is_that_of_the_next_batch_however_far_workers_are_ahead(both):
    loader = both[1].train_dataloader()
    next(iter(loader))
    assert (loader.epoch, loader.step) == (0, 1)


def test_loaders_leave_the_global_generator_alone(both):
    state = torch.get_rng_state()
    list(both[1].train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("store", [MAP, FILES])
def test_what_is_left_out_is_the_same_everywhere(official, store):
    damaged = (official / "train/cat/02.png").read_bytes()[:-40]
    (official / "train/cat/02.png").write_bytes(damaged)
    shutil.copy(official / "train/cat/01.png", official / "train/cat/zz.png")
    shutil.copy(official / "test/cat/01.png", official / "test/cat/zz.png")
    shutil.copy(official / "test/dog/01.png", official / "val/dog/zz.png")
    settings = {"on_corrupt": "skip", "on_overlap": "drop"}
    memory, other = ready(official, **settings), ready(official, **settings, **store)
    assert memory.ids == other.ids and memory.preprocessing() == other.preprocessing()
    assert memory.report()["notes"] == other.report()["notes"][:-1]
    for part in ("train", "val", "test"):
        everything = torch.arange(len(memory.ids[part]))
        assert same(*(data.datasets[part].gather(everything) for data in (memory, other)))


# the cache


def decoded_never(monkeypatch):
    monkeypatch.setattr(decode, "to_uint8", None)


def test_a_second_start_decodes_nothing(photos, cache, monkeypatch, capsys):
    first = ready(photos, **MAP)
    assert f"first use of {photos}: decoding it into {cache}" in capsys.readouterr().out
    decoded_never(monkeypatch)
    second = ready(photos, **MAP)
    assert first.preprocessing() == second.preprocessing() and len(list(cache.glob("*.uint8"))) == 1
    assert all(same(*batches) for batches in zip(first.train_dataloader(), second.train_dataloader(), strict=True))
    assert "first use" not in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"split_seed": 1}, {"folds": 3, "fold": 1}, {"batch_size": 2}])
def test_other_splits_of_the_same_images_share_a_file(photos, cache, monkeypatch, changes):
    ready(photos, **MAP)
    memory = ready(photos, **changes)
    decoded_never(monkeypatch)
    mapped = ready(photos, **MAP, **changes)
    assert all(same(*batches) for batches in zip(memory.train_dataloader(), mapped.train_dataloader(), strict=True))


@pytest.mark.parametrize("changes", [{"image_size": 5}, {"channels": 1}])
def test_what_matters_for_the_decoded_makes_another_file(photos, cache, changes):
    ready(photos, **MAP)
    memory, mapped = ready(photos, **changes), ready(photos, **MAP, **changes)
    assert len(list(cache.glob("*.uint8"))) == 2
    assert np.array_equal(memory.raw_images("train", [0, 1]), mapped.raw_images("train", [0, 1]))


def test_a_changed_image_is_seen_although_size_and_time_are_the_same(photos, cache):
    first = ready(photos, **MAP)
    name = first.ids["train"][0]
    before = (photos / name).stat()
    Image.new("RGB", (8, 8), "red").save(photos / name)
    with open(photos / name, "ab") as file:
        file.write(bytes(before.st_size - file.tell()))
    os.utime(photos / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = ready(photos, **MAP)
    assert (changed.raw_images("train", [0]) == (255, 0, 0)).all() and len(list(cache.glob("*.uint8"))) == 2
    assert np.array_equal(first.raw_images("train", [1]), changed.raw_images("train", [1]))


def test_what_cannot_be_decoded_is_remembered_or_leaves_nothing(photos, cache, monkeypatch):
    path = photos / "cat" / "05.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert "cat/05.png (" in refused(photos, **MAP) and not list(cache.iterdir())
    first = ready(photos, **MAP, on_corrupt="skip")
    decoded_never(monkeypatch)
    second = ready(photos, **MAP, on_corrupt="skip")
    assert first.report() == second.report() and first.ids == second.ids and "cat/05.png" not in names(second)
    assert "cat/05.png (" in refused(photos, **MAP)


def test_a_disk_that_fills_up_is_one_clear_message_and_leaves_nothing(photos, cache, monkeypatch):
    def full(image):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode, "moments", full)  # in a thread, as a write would
    with pytest.raises(OSError) as error:
        ready(photos, **MAP, on_corrupt="skip")
    message = str(error.value)
    assert message.startswith(f"the disk is full: no room in the cache {cache} (") and "data.disk_gb=0" in message
    assert "\n" not in message and not list(cache.iterdir())


def test_a_disk_too_small_is_told_before_decoding(photos, cache, monkeypatch):
    decoded_never(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * 3 * 8 * 8 - 1))
    with pytest.raises(OSError, match="the disk is full"):
        ready(photos, **MAP)


def test_a_cache_that_may_not_be_written_is_not_taken_for_a_image(photos, cache, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied", str(cache))

    monkeypatch.setattr("quartet.data.cache.written", refuse)
    with pytest.raises(PermissionError, match=r"^the cache .* cannot be written; point QUARTET_CACHE"):
        ready(photos, **MAP)


def test_two_processes_that_start_together_map_the_same(photos, cache, monkeypatch):
    context = multiprocessing.get_context("fork")
    both, results = context.Barrier(2), context.Queue()
    decode_all = decode.run_in_threads

    def together(*arguments):
        both.wait(30)  # seconds; neither has found a file, both have opened one of their own
        return decode_all(*arguments)

    monkeypatch.setattr(decode, "run_in_threads", together)
    work = lambda: results.put(ready(photos, **MAP).raw_images("train", range(12)))  # noqa: E731
    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    monkeypatch.undo()
    assert all(np.array_equal(x, ready(photos).raw_images("train", range(12))) for x in found)
    assert len(list(cache.glob("*.uint8"))) == 1


def test_a_map_is_never_moved_as_a_whole(photos):
    dataset = ready(photos, **MAP).datasets["train"]
    assert dataset.to(torch.device("meta")) is dataset  # stands for a GPU
    assert dataset.gather(torch.arange(2))["inputs"]["image"].device.type == "cpu"


# workers


def test_ranks_share_each_batch(photos):
    def batches(rank, world, batch_size):
        data = make(photos, memory_gb=0.0, batch_size=batch_size)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=world, training=False)  # type: ignore
        data.setup()
        return [batch["index"] for batch in data.train_dataloader()]

    halves = zip(batches(0, 2, 2), batches(1, 2, 2), strict=True)
    assert [torch.cat(pair).sort()[0].tolist() for pair in halves] == [x.sort()[0].tolist() for x in batches(0, 1, 4)]


@pytest.mark.parametrize(("cores", "world", "n_workers"), [(8, 1, 7), (8, 2, 3), (1, 1, 1)])
def test_workers_leave_a_core_to_training(photos, monkeypatch, cores, world, n_workers):
    data = ready(photos, memory_gb=0.0, num_workers=None)
    monkeypatch.setattr(folders, "n_cores", lambda: cores)
    monkeypatch.setattr(FolderData, "world", world)
    started = []
    monkeypatch.setattr(decode, "DataLoader", lambda *args, **settings: started.append(settings) or [])
    assert list(data.train_dataloader()) == [] and started[0]["num_workers"] == n_workers


def test_the_limits_count_the_decoded_bytes(photos):
    exact = 20 * 3 * 8 * 8 / 1e9
    below = exact * 0.999

    limits = [(exact, 0.0), (below, exact), (below, below)]

    found = [held(ready(photos, memory_gb=memory_gb, disk_gb=disk_gb)) for memory_gb, disk_gb in limits]
    assert found == ["memory", "map", "files"]


def test_progress_is_told_now_and_then(photos, monkeypatch, capsys):
    monkeypatch.setattr(folders, "PROGRESS_INTERVAL", -1.0)
    ready(photos)
    assert "probed 20 of 20 images" in capsys.readouterr().out


# values of 16 and 32 bits


def deep_tree(root, kind, low, high, n=12, seed=0):
    """Two classes, left or right half bright, as files of 32-bit floating point, 16 bits or 32 bits."""
    random = np.random.default_rng(seed)
    for i in range(2 * n):
        values = random.uniform(0, 0.3, (16, 16))
        values[:, 8 * (i % 2) :][:, :8] += 0.7
        values = (low + (high - low) * values).astype(kind)
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / f"{i:02}.tiff")
    return root


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (np.float32, 0.0, 1.0),
        (np.float32, -1.0, 1.0),
        (np.float32, 0.0, 1e-6),
        (np.float32, 1000.0, 4000.0),
        (np.float32, 0.0, 255.0),
        (np.uint16, 0, 255),
        (np.uint16, 0, 1023),
        (np.uint16, 0, 4095),
        (np.uint16, 30000, 31000),
        (np.uint16, 0, 65535),
        (np.int32, 0, 255),
        (np.int32, -1024, 3071),
        (np.int32, 0, 10**6),
    ],
)
def test_images_of_more_than_8_bits_keep_their_contrast(tmp_path, kind, low, high):
    """Whatever their unit: black and white are the least and the largest value of the training part."""
    data = ready(deep_tree(tmp_path / "p", kind, low, high))
    images = data.raw_images("train", range(len(data.ids["train"])))
    assert images.min() == 0 and images.max() == 255 and len(np.unique(images)) > 60
    said = data.preprocessing()["span"]
    assert low - 1 <= said[0] < said[1] <= high + 1
    again = make(tmp_path / "p")
    again.restore(json.loads(json.dumps(data.preprocessing())))
    names = [tmp_path / "p" / name for name in data.ids["test"]]
    inputs = data.datasets["test"].gather(torch.arange(len(names)))["inputs"]["image"]
    torch.testing.assert_close(again.encode([str(name) for name in names])["image"], data.normalise(inputs))


def test_values_of_another_part_do_not_change_black_and_white(tmp_path):
    for seed, (part, high) in enumerate((("train", 1.0), ("val", 9.0), ("test", 9.0))):
        deep_tree(tmp_path / part, np.float32, 0.0, high, n=4, seed=seed)
    data = ready(tmp_path)
    assert data.preprocessing()["span"][1] <= 1.0
    assert data.raw_images("test", [0]).max() == 255


def test_values_that_are_no_numbers(tmp_path):
    root = deep_tree(tmp_path, np.float32, 0.0, 1.0)
    values = np.full((16, 16), np.nan, np.float32)
    Image.fromarray(values).save(root / "a" / "nan.tiff")
    with pytest.raises(ValueError, match=r"a/nan.tiff \(none of its values is finite\)"):
        ready(root)
    values[3, 4:] = 0.5, *[np.inf] * 11
    Image.fromarray(values).save(root / "a" / "nan.tiff")
    assert ready(root).preprocessing()["span"][1] <= 1.0


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_training_part_of_one_colour_is_refused(tmp_path, kind):
    for i in range(12):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8 + i), 7, kind)).save(folder / f"{i}.tiff")
    with pytest.raises(ValueError, match="there is nothing to learn in them"):
        ready(tmp_path, image_size=8)


def test_images_that_are_nearly_black_are_told(tmp_path, capsys):
    random = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 5, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    ready(tmp_path)
    assert "nearly of one colour: deviation 0.00" in capsys.readouterr().out


def test_values_without_black_and_white_are_refused_by_a_model_of_8_bits(photos):
    data = ready(photos)
    with pytest.raises(ValueError, match=r"0 … 0.5, have no agreed black and white; .* convert it to these"):
        data.encode([Image.fromarray(np.linspace(0, 0.5, 64, dtype=np.float32).reshape(8, 8))])
    assert data.encode([Image.new("I;16", (8, 8), 65535)])["image"].isfinite().all()


# what lies about in folders


@pytest.mark.parametrize(
    "name",
    [
        "cat/@eaDir/00.png/SYNOPHOTO_THUMB_M.png",
        "@eaDir/x.png",
        "cat/#recycle/00.png",
        "#recycle/cat/00.png",
        "$RECYCLE.BIN/00.png",
        "System Volume Information/x.png",
        ".AppleDouble/00.png",
        "cat/.thumbnails/00.png",
        "lost+found/x.png",
        "cat/.@__thumb/default00.png",
        "@Recycle/x.png",
    ],
)
def test_what_storage_systems_keep_is_no_data(photos, name):
    before = list_images(str(photos))
    save(photos / name)
    assert list_images(str(photos)) == before


def test_links_are_followed_once_and_not_in_circles(photos, tmp_path):
    tree(tmp_path / "elsewhere", "more", n=3)
    (photos / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (photos / "cat" / "self").symlink_to(photos / "cat")
    (photos / "cat" / "up").symlink_to(photos)
    names = [file.name for file in list_images(str(photos))[0] if file.label == "cat"]
    assert len(names) == 13 + 10, "10 of its own, 3 linked, and 10 of dog through the link to all"
    (photos / "cat" / "up").unlink()
    assert len(list_images(str(photos))[0]) == 23


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_a_broken_exif_means_no_rotation(photos, kind):
    exif = b"Exif\0\0\0\0no TIFF at all"
    image = Image.effect_noise((8, 8), 60).convert("RGB")
    image.save(photos / "cat" / f"broken.{kind}", exif=exif)
    assert any("broken" in name for ids in ready(photos).ids.values() for name in ids)


def test_a_long_text_in_a_png(photos):
    info = PngInfo()
    info.add_text("history", "x" * 3_000_000, zip=True)
    Image.effect_noise((8, 8), 60).convert("RGB").save(photos / "cat" / "drawn.png", pnginfo=info)
    assert any("drawn" in name for ids in ready(photos).ids.values() for name in ids)


def test_a_image_that_is_too_large_is_told_in_words(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save(photos / "cat" / "huge.png", size=20)
    with pytest.raises(ValueError, match=r"cat/huge.png \(more than 200 pixels; make it smaller\)"):
        ready(photos)


@pytest.mark.parametrize(
    "folders", [("train images", "test images"), ("seg_train", "seg_test"), ("Training_Set", "test-set")]
)
def test_folders_of_parts_may_have_longer_names(tmp_path, folders):
    tree(tmp_path, *(f"{folder}/{label}" for folder in folders for label in ("cat", "dog")), n=6)
    assert {file.part for file in list_images(str(tmp_path))[0]} == {"train", "test"}


def test_the_folder_below_that_has_the_classes_is_named(tmp_path):
    tree(tmp_path / "repo", "flowers/daisy", "flowers/rose", n=3)
    (tmp_path / "repo" / "README.md").write_text("flowers")
    with pytest.raises(
        ValueError, match=r"has one folder, flowers, which holds daisy, rose; did you mean .*repo/flowers\?"
    ):
        ready(tmp_path / "repo")


def test_a_class_written_otherwise_is_recognised(tmp_path):
    one, two = "caf\u00e9", "cafe\u0301"
    tree(tmp_path, f"train/{one}", "train/dog", f"val/{two}", "val/dog", n=4)
    with pytest.raises(ValueError, match=f"the class '{two}' .train has '{one}', written differently."):
        ready(tmp_path)


def test_a_pipe_is_no_image(photos):
    os.mkfifo(photos / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"cat/pipe.png \(not a file\)"):
        ready(photos)


def test_names_that_are_not_utf_8(tmp_path):
    tree(tmp_path, "dog", n=10)
    strange = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(strange)
    for i in range(10):
        save(tmp_path / "dog" / "x.png")
        os.rename(tmp_path / "dog" / "x.png", strange + f"/{i}\xff.png".encode("latin-1"))
    data = ready(tmp_path)
    assert data.spec.classes == ("caf\\xe9", "dog")
    json.dumps(data.preprocessing(), ensure_ascii=False).encode()
    json.dumps(data.ids, ensure_ascii=False).encode()
