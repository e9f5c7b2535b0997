"""Folders of images: which files there are, and what their headers and contents say before they are decoded.

Files are sorted by relative name. Damaged files raise nothing here: `run_in_threads` collects them all with the reason.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from quartet.data.cache import FULL
from quartet.data.opening import is_left_behind, list_files
from quartet.data.splits import listed, part_named
from quartet.say import say
from quartet.system.cores import n_cores
from quartet.typed import user_path

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PROGRESS_INTERVAL = 5.0  # seconds between lines of progress
CHUNK_SIZE = 64  # images that a thread processes at a time
ValueRange = tuple[float, float]  # the values that are black and white


class ImageFile(NamedTuple):
    """`name` is relative to data.path, `label` the class folder, `part` the official one or None."""

    name: str
    path: str
    label: str
    part: str | None


class ImageInfo(NamedTuple):
    """What is known before decoding: SHA-256 of the file, (width, height), whether its format is grey.

    `value_range`: its smallest and largest value if it has 16 or 32 bits.
    """

    digest: bytes
    size: tuple[int, int]
    grey: bool
    value_range: ValueRange | None = None


T = TypeVar("T")
Problems = dict[ImageFile, str]  # why a file cannot be used

# PIL's own limit, a sixty-fourth of this, refuses PNG files of drawing programs with a long text beside the pixels
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26  # bytes


def list_images(path: str) -> tuple[list[ImageFile], int]:
    """The images below `path`, sorted by name, and how many other files there are.

    Raises FileNotFoundError and ValueError for anything but a folder of class folders.
    """
    root, remedy = user_path(path), "give the folder that holds one folder of images for each class"
    if not os.path.exists(root):
        raise FileNotFoundError(f"data.path={path} does not exist; {remedy}")
    if not os.path.isdir(root):
        raise ValueError(f"data.path={path} is a file; {remedy}")
    # 1. The class folders are in the root, or in folders of it that are named like parts of the data
    names, _ = _list_folder(root)
    parts = {name: part for name in names if (part := part_named(name))}
    if parts and (len(parts) < len(names) or "train" not in parts.values() or len({*parts.values()}) < len(parts)):
        raise ValueError(
            f"data.path={path} has the folders {listed(names)}; {', '.join(parts)} mean parts of the data, so there must "
            "be train, each part once, and nothing else; rename or move folders"
        )
    if len(names) == 1 and not parts:  # an unpacked archive often has its classes one folder deeper
        inner, loose = _list_folder(os.path.join(root, names[0]))
        if len(inner) > 1 and not any(name.lower().endswith(SUFFIXES) for name in loose):
            raise ValueError(
                f"data.path={path} has one folder, {names[0]}, which holds {listed(inner)}; "
                f"did you mean data.path={os.path.join(path, names[0])}?"
            )
    # 2. The images of each class, at whatever depth in its folder
    files: list[ImageFile] = []
    n_all = 0
    for folder, part in (parts or {"": None}).items():
        shown, inside = (os.path.join(path, folder), f"{folder}/") if folder else (path, "")
        labels, loose = _list_folder(os.path.join(root, folder))
        if not labels:
            raise ValueError(f"{shown} has no class folders; put the images of each class into a folder of their own")
        n_all += len(loose)
        for label in labels:
            below = list_files(os.path.join(root, folder, label), os.path.join(shown, label))
            images = [f"{inside}{label}/{name}" for name in below if name.lower().endswith(SUFFIXES)]
            if not images:
                raise ValueError(
                    f"{os.path.join(shown, label)} holds no images ({' '.join(SUFFIXES)}); add some or delete the folder"
                )
            n_all += len(below)
            for name in images:
                # names go into JSON: bytes that are not UTF-8 are spelt out, as caf\xe9
                shown_name, shown_label = (os.fsencode(x).decode("utf-8", "backslashreplace") for x in (name, label))
                files.append(ImageFile(shown_name, os.path.join(root, name), shown_label, part))
    return sorted(files), n_all - len(files)


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without those of file managers and storage systems."""
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not is_left_behind(entry.name))
    return [name for name, is_folder in visible if is_folder], [name for name, is_folder in visible if not is_folder]


def probe(path: str) -> ImageInfo:
    """Raises an exception for anything but an image, ValueError also for a single pixel, which teaches nothing."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe might wait forever
        raise ValueError("not a file")
    # the whole file, because its hash finds copies and names the cache
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError("0 bytes")
    with Image.open(io.BytesIO(content)) as image:
        if image.size == (1, 1):
            raise ValueError("1×1 pixel")
        # grey by its format: 1, 8, 16 or 32 bits, or a palette that holds greys only
        grey = image.mode[0] in "1LIF" and image.mode != "LAB"
        if image.mode == "P":
            palette = np.array(image.getpalette()).reshape(-1, 3)
            grey = bool((palette == palette[:, :1]).all())
        # black and white of 16 or 32 bits, or floating point, are found in the training images
        value_range = None
        if image.mode[0] in "IF":
            values = np.asarray(image)
            finite = values[np.isfinite(values)]
            if not finite.size:
                raise ValueError("none of its values is finite")
            value_range = float(finite.min()), float(finite.max())
        return ImageInfo(hashlib.sha256(content).digest(), image.size, grey, value_range)


def fingerprint(files: list[ImageFile], infos: dict[ImageFile, ImageInfo]) -> str:
    """SHA-256 of the names and contents of the images, wherever they are."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode("utf-8", errors="surrogateescape"))
        digest.update(infos[file].digest if file in infos else b"unreadable")
    return digest.hexdigest()


def fault(error: Exception) -> str:
    """What an error says about an image. One that is no fault of the image is raised: of permission, memory or disk."""
    if isinstance(error, PermissionError | MemoryError) or (isinstance(error, OSError) and error.errno in FULL):
        raise error
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())


def run_in_threads(
    work: Callable[[ImageFile], T], files: Sequence[ImageFile], done: str
) -> tuple[dict[ImageFile, T], Problems]:
    """Results of `work` for each file, and the files that failed with the reason, in order. Prints progress.

    What is no fault of an image is raised, such as a disk too full for what `work` writes.
    """
    results: dict[ImageFile, T] = {}
    problems: Problems = {}

    def attempt(chunk: Sequence[ImageFile]) -> int:
        for file in chunk:
            try:
                results[file] = work(file)
            except Exception as error:  # PIL raises a dozen kinds on damaged files
                problems[file] = fault(error)
        return len(chunk)

    # threads, because PIL releases the interpreter lock while it decodes
    chunks = [files[i : i + CHUNK_SIZE] for i in range(0, len(files), CHUNK_SIZE)]
    finished, printed = 0, time.monotonic()
    with ThreadPoolExecutor(n_cores()) as pool:
        for n in pool.map(attempt, chunks):
            finished += n
            if time.monotonic() - printed > PROGRESS_INTERVAL:
                printed = time.monotonic()
                say(f"{done} {finished:,} of {len(files):,} images")
    good, bad = [file for file in files if file in results], [file for file in files if file in problems]
    return {file: results[file] for file in good}, {file: problems[file] for file in bad}
