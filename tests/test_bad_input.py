"""Bad input of every kind of data, from a config to one line that names the file or setting; no run is left behind.

What a module itself checks is tested beside it (tests/data); here each mistake goes the way that a user's would.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from quartet.commands.train import create_and_train

TEXT = "".join(f"line {i} says {i * i} and no more\n" for i in range(400))
ROWS = [(f"a film number {i}", "ny"[i % 2]) for i in range(40)]
TABLE = "a,c,y\n" + "".join(f"{i * 7 % 11}.5,{'uv'[i // 2 % 2]},{'ny'[i % 2]}\n" for i in range(40))
LABELLED = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
BINARY = b"\x89PNG\r\n\x1a\n\0\0" + bytes(range(256))
KINDS = {  # name of the file, a good one, settings that make a run short
    "text": ("own.txt", TEXT, ["model=rnn", "data=text", "data.vocab_size=300"]),
    "labelled_text": ("own.csv", LABELLED, ["model=rnn", "data=labelled_text", "data.vocab_size=300"]),
    "csv": ("own.csv", TABLE, ["model=mlp", "data=csv", "data.target=y"]),
    "image_folder": ("own", "", ["model=image_small", "data=image_folder"]),
}


def refused(compose, outputs, kind: str, *overrides: str) -> str:
    """The message of a training that must not begin: one line; no file is left."""
    config = compose(*KINDS[kind][2], "data.batch_size=4", f"data.path={Path.cwd() / KINDS[kind][0]}", *overrides)
    with pytest.raises((ValueError, OSError)) as error:
        create_and_train(config)
    assert not [path for path in outputs.rglob("*") if path.is_file()], "no half-written run"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FILES = [
    ("text", "", r"own.txt is empty: .*; name another data.path"),
    ("text", BINARY, r"own.txt is not text: a NUL byte at position 8; name a text file"),
    ("text", "Größe".encode("latin-1"), r"own.txt is not utf-8: byte 0xf6 at position 2; .*data.encoding=cp1252"),
    ("text", "To be or not to be", r"own.txt: own.txt\[0:\d+\] has \d+ tokens, .*; bring more text"),
    ("labelled_text", "", r"own.csv: the file is empty"),
    ("labelled_text", BINARY, r"own.csv: is binary, not text"),
    ("labelled_text", f"{LABELLED}odd,z\n", r"own.csv: only one example of the class 'z' \(.*row 41\), .*; add examples"),
    ("labelled_text", LABELLED.replace(",y\n", ",n\n"), r"own.csv: there is one class only \('n'\), .* another"),
    ("labelled_text", LABELLED.replace("text,label", "text,text"), r"own.csv: several columns are called 'text'; give"),
    ("labelled_text", f"{LABELLED}nice,\n", r"own.csv: no label \(column label\) in row 41; fill it"),
    ("labelled_text", re.sub(",[ny]\n", ",\n", LABELLED), r"own.csv: no label .* and 36 more; fill it or remove"),
    ("labelled_text", f"{LABELLED}well, nice,y\n", r"own.csv: line 42: 3 values, but there are 2 columns .* needs quotes"),
    ("csv", "", r"own.csv: the file is empty; it needs a line of column names"),
    ("csv", BINARY, r"own.csv: is binary, not text; use CSV, JSON Lines or Parquet"),
    ("csv", f"{TABLE}1,u,z\n", r"own.csv: column 'y': only one example of the class 'z' .*; add"),
    ("csv", TABLE.replace(",y\n", ",n\n").replace("c,n", "c,y"), r"own.csv: column 'y': there is one class only \('n'\)"),
    ("csv", TABLE.replace("a,c,y", "a,a,y"), r"own.csv: several columns are called 'a'; give each a name"),
    ("csv", TABLE.replace("a,c,y", "a,c,z"), r"own.csv: data.target names a column 'y' that is not there; .*a, c, z"),
    ("csv", f"{TABLE}1,u,\n", r"own.csv: no target 'y' in 1 of 41 rows \(row 41\); data.drop_missing_target=true"),
    ("csv", re.sub(",[uv],", ",,", TABLE), r"own.csv: no value .* column 'c'; leave it out with data.kinds.ignore=\[c\]"),
    ("csv", f"{TABLE}inf,u,n\n", r"own.csv: column 'a' is infinite in row 41; correct the value"),
    ("csv", f"{TABLE}1,u,n,7\n", r"own.csv: line 42: 4 values, but there are 3 columns .*; correct the line"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "message"), FILES)
def test_a_file_that_cannot_be_learnt_from(compose, outputs, kind, content, message):
    Path(KINDS[kind][0]).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(message, refused(compose, outputs, kind))


def test_a_label_column_that_is_not_there(compose, outputs):
    Path("own.csv").write_text(LABELLED)
    message = refused(compose, outputs, "labelled_text", "data.label=stars")
    assert "own.csv: data.label names a column 'stars' that is not there; the columns are text, label" in message


def parts(train: str, test: str) -> None:
    """A folder of labelled texts in two files."""
    Path("own.csv").mkdir()
    Path("own.csv", "train.csv").write_text(train)
    Path("own.csv", "test.csv").write_text(test)


def test_a_class_that_train_does_not_know(compose, outputs):
    parts(LABELLED, "text,label\nx,n\nz,z\nq,z\n")
    message = refused(compose, outputs, "labelled_text")
    assert re.search(r"no training example has the class 'z', but test has \(.*test.csv, row 2, .*\); add", message)


def test_a_test_part_that_holds_all_of_train(compose, outputs):
    parts(LABELLED, LABELLED)
    assert "no example is left to train on: val and test hold all" in refused(compose, outputs, "labelled_text")


def test_a_class_of_test_rows_that_train_does_not_know(compose, outputs):
    rows = [f"{i}.5,train,{'ny'[i % 2]}" for i in range(40)] + ["1.5,test,z", "2.5,test,z"]
    Path("own.csv").write_text("\n".join(["a,part,y", *rows]))
    message = refused(compose, outputs, "csv", "data.split_column=part")
    assert "own.csv: no training example has the class 'z', but test has (row 41, 42); add such examples" in message


# images


def image(path: str, number: int) -> Path:
    """An image unlike the others."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.effect_mandelbrot((24, 24), (-2, -1.5, 1, 1.5 + number / 100), 50).save(path)
    return Path(path)


def images(*folders: str) -> None:
    for k, folder in enumerate(folders):
        for i in range(6):
            image(f"own/{folder}/{i}.jpg", 10 * k + i)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("folders", "harm", "message"),
    [
        ([], lambda: Path("own").mkdir(), r"own has no class folders; put the images of each class into"),
        ([], lambda: image("own/1.jpg", 1), r"own has no class folders"),
        (["a", "b"], lambda: halve(Path("own/a/3.jpg")), r"1 image in .*own cannot be read: a/3.jpg \(.*\); repair"),
        (["a", "b"], lambda: Path("own/a/3.jpg").write_bytes(BINARY), r"own cannot be read: a/3.jpg \(not an image\); "),
        (["a", "b"], lambda: Path("own/b/0.jpg").write_bytes(b""), r"own cannot be read: b/0.jpg \(0 bytes\); repair"),
        (["a", "b"], lambda: Image.new("L", (1, 1)).save("own/b/0.jpg"), r"cannot be read: b/0.jpg \(1×1 pixel\); repair"),
        (["a"], lambda: None, r"own: there is one class only \('a'\)"),
        (["a", "b"], lambda: image("own/c/0.jpg", 99), r"own: only one example of the class 'c' \(c/0.jpg\)"),
        (["train/a", "train/b", "test/a", "test/c"], lambda: None, r"the class 'c', but test has \(test/c/0.jpg,"),
        (["train/a", "train/b", "test/a"], lambda: image("own/test/a/x.jpg", 3), r"train/a/3.jpg = test/a/x.jpg; delete"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_learnt_from(compose, outputs, folders, harm, message):
    images(*folders)
    harm()
    assert re.search(message, refused(compose, outputs, "image_folder"))


def test_when_no_image_can_be_read(compose, outputs):
    images("a", "b")
    for path in Path("own").rglob("*.jpg"):
        path.write_bytes(b"")
    assert "own has no image that can be read" in refused(compose, outputs, "image_folder", "data.on_corrupt=skip")


# paths


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_that_does_not_exist_or_is_not_given(compose, outputs, kind):
    name = KINDS[kind][0]
    assert re.search(rf"{name}\b.* (does not exist|no such file)", refused(compose, outputs, kind))
    assert refused(compose, outputs, kind, "data.path=null").startswith("data.path")


@contextmanager
def ordinary_user():
    """Root may read everything: for this long it may not (Linux). Where that fails, the test has nothing to say."""
    capabilities = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those above 31
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if os.geteuid() != 0:
        yield
    elif sys.platform != "linux" or ctypes.CDLL(None).capget(header, capabilities):
        pytest.skip("root reads everything here")
    else:
        before = capabilities[0]
        capabilities[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).capset(header, capabilities)
        try:
            yield
        finally:
            capabilities[0] = before
            ctypes.CDLL(None).capset(header, capabilities)


@pytest.mark.parametrize("kind", KINDS)
def test_no_permission_to_read(compose, outputs, kind):
    if kind == "image_folder":
        images("a", "b")
        locked = Path("own/a/3.jpg")
    else:
        locked = Path(KINDS[kind][0])
        locked.write_text(KINDS[kind][1])
    locked.chmod(0)
    with ordinary_user():
        message = refused(compose, outputs, kind)
    assert str(locked) in message and "no permission to read" in message and "chmod" in message


def test_a_cache_that_cannot_be_written(compose, outputs, monkeypatch):
    Path("own.txt").write_text(TEXT)
    Path("locked").mkdir(mode=0o500)
    monkeypatch.setenv("QUARTET_CACHE", str(Path.cwd() / "locked" / "cache"))
    with ordinary_user():
        message = refused(compose, outputs, "text")
    assert re.search(r"the cache .*locked/cache/text cannot be written; point QUARTET_CACHE", message)
