"""The user's own pictures: one folder for each class, with or without `train/`, `val/` and `test/` above them.

What `image_folders` finds is split, and decoded into one of the `image_stores`: memory where it fits, else a file of the
cache, else none, and worker processes decode in training. The batches and their order are the same.
"""

from __future__ import annotations

from typing import Any

from quartet.data.image_folders import (
    Copies,
    Look,
    PictureFile,
    Problems,
    check_classes,
    check_trained,
    counted,
    find_copies,
    fingerprint,
    list_files,
    look_at,
    n_cores,
    named,
    undecodable,
)
from quartet.data.image_stores import Files, Form, Store, StoredPictures, WorkerLoader, in_files, in_map, in_memory
from quartet.data.images import MODES, Examples, PictureData, Span, class_counts
from quartet.data.memory import MemoryLoader, Order
from quartet.say import say

LARGEST_FOUND = 128  # pixels: larger pictures train slowly, their size must be asked for
USUAL_SIZE = 64  # pixels, for pictures of several sizes


class FolderData(PictureData):
    """Pictures in one folder for each class; folders above them that are named like parts (see `PART_NAMES`) are kept.

    - `image_size`: side in pixels; None takes the side that all training pictures share, if they are squares of at most
      `LARGEST_FOUND`, else `USUAL_SIZE`
    - `channels`: 1, 3 or "auto": 1 where all training pictures are grey by their format
    - `memory_gb`, `disk_gb`: most that the decoded pictures may take in memory, and else in the cache, in 10⁹ bytes
    - `num_workers`: that decode what fits in neither; 0: the training process itself, None: one less than there are cores
    - `on_corrupt`: "error" names the pictures that cannot be read or are a single pixel, "skip" leaves them out
    - `on_overlap`: "error" names pictures that are in two parts or in two classes; "drop" leaves out the copy in train
      (of val and test: in val), and all copies where the classes differ

    A picture that is in train (or in a tree that is to be split) more than once counts once. The size, the
    channels, and black and white of pictures of 16 or 32 bits are found in the training part alone.
    """

    def __init__(
        self,
        *,
        path: str | None,
        image_size: int | None,
        channels: int | str,
        memory_gb: float,
        disk_gb: float,
        num_workers: int | None,
        on_corrupt: str,
        on_overlap: str,
        **common: Any,
    ):
        super().__init__(**common)
        settings: dict[str, Any] = {"image_size": image_size, "channels": channels}
        settings |= {"memory_gb": memory_gb, "disk_gb": disk_gb}
        settings |= {"path": path, "num_workers": num_workers, "on_corrupt": on_corrupt, "on_overlap": on_overlap}
        problems = self.problems(settings)
        if problems or path is None:
            raise ValueError("\n".join(problems))
        self.path, self.image_size, self.channels = path, image_size, channels
        self.memory_gb, self.disk_gb, self.num_workers = memory_gb, disk_gb, num_workers
        self.on_corrupt, self.on_overlap = on_corrupt, on_overlap

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        problems = PictureData.problems(settings)
        if settings.get("path", "") is None:
            problems.append("data.path: say where your pictures are, data.path=<folder with one folder for each class>")
        for name, least in {"image_size": 1, "memory_gb": 0, "disk_gb": 0, "num_workers": 0}.items():
            value = settings.get(name)
            if isinstance(value, int | float) and value < least:
                problems.append(f"data.{name} must be {least} or more, not {value}")
        allowed = {"channels": ["auto", *MODES], "on_corrupt": ["error", "skip"], "on_overlap": ["error", "drop"]}
        for name, choices in allowed.items():
            if settings.get(name, choices[0]) not in choices:
                problems.append(f"data.{name} must be one of {', '.join(map(str, choices))}, not {settings[name]!r}")
        return problems

    def read(self) -> tuple[dict[str, Examples], str]:
        try:
            return self._read()
        except PermissionError as error:
            if error.filename is None:  # not the pictures', and explained already
                raise
            raise PermissionError(
                f"no permission to read {error.filename} in data.path={self.path}; "
                "allow it (chmod -R u+rX) or take it out"
            ) from None

    def _read(self) -> tuple[dict[str, Examples], str]:
        files, ignored = list_files(self.path)
        looks, unreadable = look_at(files)
        if unreadable and self.on_corrupt == "error":
            unreadable |= undecodable([*looks])  # so that all are named at once
        self._refuse(unreadable)
        copies = find_copies(looks)
        if self.on_overlap == "error":
            copies.refuse(self.path)
        parts = self._split([file for file in looks if file not in copies.left_out])
        channels, size = self._sizes([looks[file] for file in parts["train"]])
        self.span = self._span([looks[file] for file in parts["train"]])
        examples, failed = self._decode(parts, looks, channels, size)
        self._refuse(failed)
        check_trained(examples["train"], self.path)
        self._take_note(ignored, unreadable | failed, copies)
        return examples, fingerprint(files, looks)

    def _split(self, files: list[PictureFile]) -> dict[str, list[PictureFile]]:
        check_classes(files, self.path)
        given = [file.part for file in files] if files[0].part else None
        places = self.split.assign(len(files), labels=[file.label for file in files], given=given)
        return {part: [files[i] for i in ids] for part, ids in places.items()}

    def _sizes(self, train: list[Look]) -> tuple[int, int]:
        """C and S; those of the run where the module is restored."""
        if self._preprocessing is not None:
            return self.spec.sizes["in_channels"], self.spec.sizes["image_size"]
        channels = self.channels if isinstance(self.channels, int) else 1 if all(look.grey for look in train) else 3
        if self.image_size is not None:
            return channels, self.image_size
        sides = {side for look in train for side in look.size}
        if len(sides) == 1 and max(sides) <= LARGEST_FOUND:
            return channels, max(sides)
        say(f"pictures are brought to {USUAL_SIZE}×{USUAL_SIZE}; data.image_size=<pixels> says otherwise")
        return channels, USUAL_SIZE

    def _span(self, train: list[Look]) -> Span | None:
        """Black and white of the training pictures that have 16 or 32 bits: the least and the largest of their values."""
        if self._preprocessing is not None:
            return self.span
        spans = [look.span for look in train if look.span is not None]
        if not spans:
            return None
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        if low == high:
            raise ValueError(
                f"data.path={self.path}: every value of the training pictures is {low:g}; there is nothing to learn in them"
            )
        say(f"values {low:g} … {high:g} of the training pictures are black … white")
        return low, high

    def fit(self, train: Examples) -> dict[str, Any]:
        return {**super().fit(train), "span": self.span}

    def _decode(
        self, parts: dict[str, list[PictureFile]], looks: dict[PictureFile, Look], channels: int, size: int
    ) -> tuple[dict[str, Examples], Problems]:
        """The pictures of each part without those that cannot be decoded; sets `ids`."""
        everything = sorted(file for files in parts.values() for file in files)  # in one order, however they are split
        form = Form(tuple(sorted({file.label for file in everything})), channels, size, self.span)
        store = self._store(form, everything, looks)
        examples, failed = {}, {}
        for part, files in parts.items():
            examples[part], problems = store(files)
            self.ids[part] = [file.name for file in files if file not in problems]
            failed |= problems
        self._class_counts = {part: class_counts(pictures) for part, pictures in examples.items()}
        return examples, failed

    def _store(self, form: Form, files: list[PictureFile], looks: dict[PictureFile, Look]) -> Store:
        """The first with room for them."""
        gigabytes = len(files) * form.n_bytes / 1e9
        if gigabytes <= self.memory_gb:
            return in_memory(form)
        over = f"more than data.memory_gb={self.memory_gb}"
        if gigabytes <= self.disk_gb:
            self._notes.append(f"mapped from the cache: {over}")
            return in_map(form, files, looks, self._refuse, self.path)
        self._notes.append(f"decoded in training: {over} and data.disk_gb={self.disk_gb}")
        return in_files(form)

    def _refuse(self, unreadable: Problems) -> None:
        if unreadable and self.on_corrupt == "error":
            raise ValueError(
                f"{counted(len(unreadable), 'picture')} in data.path={self.path} cannot be read: "
                f"{named([f'{file.name} ({why})' for file, why in unreadable.items()])}; "
                "repair or delete, or leave out with data.on_corrupt=skip"
            )

    def _take_note(self, ignored: int, unreadable: Problems, copies: Copies) -> None:
        """For the report; what was left out is printed too."""
        names = named([f"{file.name} ({why})" for file, why in unreadable.items()])
        told = {
            "left out, no pictures or in no class folder": ignored,
            f"left out, cannot be read: {names}": len(unreadable),
            "left out of train (or val), another part has the same picture": len(copies.overlapping),
            "left out, the same picture is in two classes": len(copies.contradicting),
            "left out of train, repeated": len(copies.repeated),
        }
        left_out = [f"{counted(n, 'file')} {what}" for what, n in told.items() if n]
        for note in left_out:
            say(note)
        self._notes = [*left_out, *self._notes]

    # batches
    def _loader(self, part: str, order: Order, *, drop_last: bool) -> MemoryLoader:
        loader = super()._loader(part, order, drop_last=drop_last)
        dataset = loader.dataset
        if not (isinstance(dataset, StoredPictures) and isinstance(dataset.read, Files)):
            return loader
        n_workers = max(1, n_cores() // self.world - 1) if self.num_workers is None else self.num_workers
        return WorkerLoader(loader, n_workers)
