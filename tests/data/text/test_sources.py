"""Sources: the same documents every time, downloads whole and checked or not at all, errors that say what to type."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import sysconfig
import urllib.error

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quartet.data.text import sources
from quartet.data.text.sources import Document, Shakespeare, StandardLibrary, StandardLibraryTopics


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small library in place of the real one."""

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_py", ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return write


# the standard library


def test_the_real_library_is_sorted_unique_and_without_tests():
    documents = StandardLibrary().documents()
    names = [document.name for document in documents]
    assert 500 < len(names) < 1500
    assert names == sorted(names)
    assert len({document.text for document in documents}) == len(documents)
    assert "asyncio/base_events.py" in names
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert not [name for name in names if "_sysconfigdata" in name]


def test_what_is_left_out(library):
    library(b_py="1", a_py="2", pkg__tests__c_py="3", test__d_py="4", __e_txt="5")
    library(**{"site-packages__f_py": "6", "config-3__g_py": "7", "_sysconfigdata_x_py": "8", "z_py": "1"})
    assert [document.name for document in StandardLibrary().documents()] == ["a.py", "b.py"]  # z repeats b


def test_an_empty_library_is_an_error(library):
    with pytest.raises(FileNotFoundError, match="no Python files below"):
        StandardLibrary().documents()


def test_text_is_read_whatever_its_bytes(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes(b"\xef\xbb\xbfx\r\ny\xff")
    assert sources.read_text(path) == "x\ny\ufffd"


# topics


def test_snippets_are_labelled_by_package_and_grouped_by_file(library):
    library(
        one__a_py="1\n2\n3\n4\n5", one__deep__b_py="6\n7", two__c_py="8\n\n\n\n9", three__d_py="x\ny", one_py="q\nr"
    )
    rows = StandardLibraryTopics(packages=["two", "one"], lines=2).rows()
    found = {(row.text, row.label, row.group) for row in rows}
    assert found == {
        ("1\n2", "one", "one/a.py"),
        ("3\n4", "one", "one/a.py"),
        ("5", "one", "one/a.py"),
        ("6\n7", "one", "one/deep/b.py"),
        ("8\n", "two", "two/c.py"),
        ("9", "two", "two/c.py"),
    }


def test_nearly_empty_snippets_are_dropped(library):
    library(one__a_py="a\n\n\n \nb\nc\nd\n\n")
    assert [row.text for row in StandardLibraryTopics(packages=["one"], lines=4).rows()] == ["b\nc\nd\n"]


def test_a_missing_package_is_named_with_the_rest_to_take(library):
    library(one__a_py="1\n2")
    with pytest.raises(ValueError, match=r"lacks two of data.source.packages.*data.source.packages=\[one\]"):
        StandardLibraryTopics(packages=["one", "two"], lines=2).rows()


# Shakespeare

TEXT = b"First Citizen:\nBefore we proceed\n"


@pytest.fixture
def network(tmp_path, monkeypatch):
    """An empty cache, and a network that answers with what the test says."""
    monkeypatch.setenv("QUARTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Shakespeare, "SHA256", hashlib.sha256(TEXT).hexdigest())
    asked = []

    def answer(data: bytes):
        def urlopen(url, timeout):
            asked.append(url)
            return io.BytesIO(data)

        monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
        return asked

    return answer


def test_a_path_is_read_as_it_is(tmp_path):
    (tmp_path / "input.txt").write_bytes(TEXT)
    source = Shakespeare(path=str(tmp_path / "input.txt"), download=False)
    assert source.documents() == [Document("shakespeare", TEXT.decode())]


def test_a_path_that_is_not_a_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.path=.*none.txt is not a file"):
        Shakespeare(path=str(tmp_path / "none.txt"), download=True).documents()


def test_nothing_is_fetched_unasked(network):
    asked = network(TEXT)
    with pytest.raises(FileNotFoundError, match=r"add data.download=true .* or data.path="):
        Shakespeare(path=None, download=False).documents()
    assert not asked


def test_fetched_once_then_read_from_the_cache(network):
    asked = network(TEXT)
    for download in (True, True, False):
        assert Shakespeare(path=None, download=download).documents()[0].text == TEXT.decode()
    assert asked == [Shakespeare.URL]


def test_a_damaged_download_is_refused_and_leaves_nothing(network, tmp_path):
    network(TEXT + b"?")
    with pytest.raises(ValueError, match=r"has SHA-256 .*, not "):
        Shakespeare(path=None, download=True).documents()
    assert not list(tmp_path.rglob("*.txt"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.IncompleteRead(b"half"), "IncompleteRead"),
    ],
)
def test_without_a_network_the_remedy_is_told(network, monkeypatch, tmp_path, error, reason):
    def urlopen(url, timeout):
        raise error

    network(TEXT)
    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    with pytest.raises(ConnectionError, match=rf"^https://.* cannot be fetched \(.*{reason}.*\); .*data.path=<file>$"):
        Shakespeare(path=None, download=True).documents()
    assert not list(tmp_path.iterdir())


def test_a_download_onto_a_full_disk(network, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    network(TEXT)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"the disk is full: no room in the cache .*QUARTET_CACHE"):
        Shakespeare(path=None, download=True).documents()
    assert not list((tmp_path / "cache").iterdir())


# the fingerprint


def test_the_fingerprint_sees_where_texts_end_and_any_character():
    assert sources.fingerprint(["ab", "c"]) != sources.fingerprint(["a", "bc"])
    assert sources.fingerprint(["a"]) != sources.fingerprint(["a", ""])
    assert sources.fingerprint(["\ud800"]) == sources.fingerprint(["\ud800"]) != sources.fingerprint(["?"])


# chunks


@given(text=st.text(alphabet="ab \n\t天", max_size=200), size=st.integers(1, 30))
def test_chunks_are_the_text_and_no_longer_than_asked(text, size):
    chunks = list(sources.split_text(text, size))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= size for chunk in chunks)


def test_chunks_end_at_line_ends_or_before_spaces():
    assert list(sources.split_text("one two\nthree four\n\nfive", 15)) == ["one two\n", "three", " four\n\nfive"]
    assert list(sources.split_text("abcdefgh", 3)) == ["abc", "def", "gh"]


def test_a_document_in_memory_knows_its_length_spans_and_chunks():
    document = Document("a", "0123456789")
    assert len(document) == 10
    assert document.span(2, 5) == Document("a[2:5]", "234")
    assert list(document.chunks()) == ["0123456789"]
