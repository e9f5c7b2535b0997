"""The cache: a file is whole or not there, its name is what it depends on; mapped files may be larger than memory."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quartet.data import cache as module
from quartet.data.cache import Cache, Mapped

THINGS = Cache("things", version=1, room="half of them")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUARTET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "things"


def test_keys_depend_on_every_fact():
    assert THINGS.key("x", 1, [2]) == THINGS.key("x", 1, [2])
    keys = {THINGS.key("x", 1), THINGS.key("x", 2), THINGS.key("y", 1), THINGS.key("x", 1, None)}
    assert len(keys | {Cache("things", version=2, room="").key("x", 1)}) == 5


def test_what_is_cached_is_made_once(cache):
    made = []
    for _ in range(2):
        path = THINGS.made("k.test", lambda file: made.append(file.write(b"content")))
    assert path.read_bytes() == b"content" and made == [7]


def test_two_that_start_together_both_get_the_whole(cache):
    both = threading.Barrier(2)

    def write(file):
        both.wait(10)  # both have found nothing and write at the same time
        for _ in range(100):
            file.write(b"0123456789")

    paths = []
    threads = [threading.Thread(target=lambda: paths.append(THINGS.made("k.test", write))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2 and paths[0].read_bytes() == b"0123456789" * 100
    assert sorted(path.name for path in cache.iterdir()) == ["k.test", "k.test.size"]


def test_a_file_that_was_cut_short_is_made_anew(cache):
    path = THINGS.made("k.test", lambda file: file.write(b"content"))
    path.write_bytes(b"cont")
    assert THINGS.made("k.test", lambda file: file.write(b"content")).read_bytes() == b"content"


def test_a_shared_cache_can_be_read_by_the_group(cache):
    before = os.umask(0o002)
    try:
        path = THINGS.made("k.test", lambda file: file.write(b"content"))
    finally:
        os.umask(before)
    assert {oct(found.stat().st_mode & 0o777) for found in path.parent.iterdir()} == {"0o664"}


def test_what_killed_processes_left_is_removed_after_a_day_and_nothing_else(cache):
    cache.mkdir(parents=True)
    left, new, other = (cache / name for name in (".k.test.0123456789ab", ".k.test.ba9876543210", ".bashrc.mine"))
    for path in (left, new, other):
        path.write_bytes(b"half")
    for path in (left, other):
        os.utime(path, (0, 0))
    THINGS.made("k.test", lambda file: None)
    assert not left.exists() and new.exists() and other.exists()


def test_no_home_names_the_variable(monkeypatch):
    monkeypatch.delenv("QUARTET_CACHE", raising=False)
    monkeypatch.setattr(module.Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ValueError, match=r"no home directory to keep a cache in; say where: QUARTET_CACHE="):
        module.cache_directory()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no text")])
def test_an_interrupted_write_leaves_nothing(cache, error):
    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        THINGS.made("k.test", write)
    assert not list(cache.iterdir())


FULL = r"the disk is full: no room in the cache .*cache/things \(half of them\); free some, or point QUARTET_CACHE to"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_message_and_leaves_nothing(cache, number):
    def write(file):
        file.write(b"half")
        raise OSError(number, "No space left on device")

    with pytest.raises(OSError, match=FULL):
        THINGS.made("k.test", write)
    assert not list(cache.iterdir())


def test_what_cannot_have_room_is_not_begun(cache, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(OSError, match=FULL):
        THINGS.made("k.test", lambda file: pytest.fail("begun"), n_bytes=10**6 + 1)
    assert not list(cache.iterdir())
    assert THINGS.made("k.test", lambda file: None, n_bytes=10**6).exists()


def test_a_disk_that_is_full_in_earnest(cache):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write(_):
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    with pytest.raises(OSError, match=FULL):
        THINGS.made("k.test", write)


def test_a_cache_that_may_not_be_written(cache, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "written", refuse)
    with pytest.raises(PermissionError, match=r"the cache .* cannot be written; point QUARTET_CACHE to a folder"):
        THINGS.made("k.test", lambda file: None)


@pytest.mark.parametrize("error", [PermissionError("a.txt"), PermissionError(13, "Permission denied", "a.txt")])
def test_a_file_the_user_may_not_read_is_not_blamed_on_the_cache(cache, error):
    def write(file):
        raise error

    with pytest.raises(PermissionError, match=r"a.txt"):
        THINGS.made("k.test", write)


def test_a_map_larger_than_memory(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        try:
            file.truncate(2**43)  # bytes; 8 TB that take no room
        except OSError:
            pytest.skip("this file system has no files of 8 TB")
        file.seek(4)
        file.write(b"\1\2")
    numbers = Mapped(tmp_path / "sparse", 1).tensor(torch.uint8)
    assert len(numbers) == 2**43 and numbers[3:7].tolist() == [0, 1, 2, 0]
    assert Mapped(tmp_path / "sparse", 1).tensor(torch.uint8, 5).tolist() == [0, 0, 0, 0, 1]


def test_pages_are_given_back_and_come_again(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 64)
    mapped = Mapped(tmp_path / "x", forget_after=2)
    for _ in range(5):
        assert mapped.tensor(torch.uint8)[4095:4098].tolist() == [255, 0, 1]
        mapped.count(1)
