"""Text files: found, decoded strictly, cleaned; read in blocks as in one go."""

from __future__ import annotations

import builtins
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quartet.data.text import files as text_files
from quartet.data.text.files import FileDocument, TextEncoding, TextFiles, find_texts

UTF8 = TextEncoding("utf-8", None)
SUFFIXES = [".txt", ".md"]


def read(path: str, encoding: str = "utf-8", normalize: str | None = None) -> str:
    return "".join(TextEncoding(encoding, normalize).blocks(path))


def document(path: str, n_characters: int) -> FileDocument:
    return FileDocument("a", path, UTF8, "SHA-256", 0, n_characters)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: bytes | str = "text"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


# finding


def test_a_folder_gives_its_texts_sorted_without_hidden_ones(write, tmp_path):
    for name in ("b.txt", "a/z.MD", "a/b.txt", ".hidden.txt", ".git/x.txt", "code.py"):
        write(name)
    found = find_texts(str(tmp_path), SUFFIXES)
    assert list(found) == ["a/b.txt", "a/z.MD", "b.txt"]
    assert found["a/b.txt"] == f"{tmp_path}/a/b.txt"


def test_a_file_of_any_name_and_a_glob(write, tmp_path):
    for name in ("x.py", "deep/er/y.py", "z.txt"):
        write(name)
    assert list(find_texts(f"{tmp_path}/x.py", SUFFIXES)) == ["x.py"]
    assert [name.rpartition("/")[2] for name in find_texts(f"{tmp_path}/**/*.py", SUFFIXES)] == ["y.py", "x.py"]
    odd = write("[1].txt")  # a name that looks like a glob
    assert find_texts(odd, SUFFIXES) == {"[1].txt": odd}


def test_nothing_found(tmp_path, write):
    write("code.py")
    write("notes.txt")
    with pytest.raises(ValueError, match=r"data.path is missing.*data.path=<file, folder or glob>"):
        find_texts(None, SUFFIXES)
    with pytest.raises(FileNotFoundError, match=r"note.txt does not exist; did you mean .*notes.txt\?"):
        find_texts(f"{tmp_path}/note.txt", SUFFIXES)
    with pytest.raises(FileNotFoundError, match=r"\*.tex matches no file; \*\* stands for folders"):
        find_texts(f"{tmp_path}/*.tex", SUFFIXES)
    with pytest.raises(
        FileNotFoundError, match=r"no text files below .* \(names that end in .tex\); name others with a gl"
    ):
        find_texts(str(tmp_path), [".tex"])


def test_no_permission(write, tmp_path, monkeypatch):
    path = write("a.txt")

    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        with pytest.raises(PermissionError, match=r"no permission to read .*a.txt; ask its owner, or allow it: chmod"):
            find_texts(path, SUFFIXES)
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read .*; allow it .* or take it out of"):
        find_texts(str(tmp_path), SUFFIXES)


# decoding and cleaning


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"\xef\xbb\xbfna\xc3\xafve", "utf-8", "naïve"),
        (b"na\xefve", "latin-1", "naïve"),
        ("天地".encode("gb18030"), "gb18030", "天地"),
        ("天地".encode("utf-16"), "utf-16", "天地"),
        (b"a\r\nb\rc\nd\x0be\x0cf\xc2\x85g\xe2\x80\xa8h", "utf-8", "a\nb\nc\nd\ne\nf\ng\nh"),
        (b"a\x01b\x1b[0m\x7f\tc\xc2\x9f\xef\xbb\xbfd", "utf-8", "ab[0m\tcd"),
    ],
)
def test_bytes_to_clean_text(write, data, encoding, text):
    assert read(write("a.txt", data), encoding) == text


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_normalisation(write, form):
    text = "ﬁne naïve ①"
    assert read(write("a.txt", text), normalize=form) == unicodedata.normalize(form, text)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from(" \n\n天a"), max_size=300)


@given(text=texts, block=st.integers(1, 64), form=st.sampled_from([None, "NFC"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_of_any_size_are_the_whole_text(tmp_path, text, block, form):
    """Normalisation is the exception where a text without any line end or space is cut inside a character."""
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    whole = read(str(path))
    before, text_files.BLOCK = text_files.BLOCK, block
    try:
        assert read(str(path)) == whole
        some = document(str(path), len(whole))
        assert "".join(some.chunks()) == whole
        third = len(whole) // 3
        span = some.span(third, 2 * third)
        assert (len(span), "".join(span.chunks())) == (third, whole[third : 2 * third])
    finally:
        text_files.BLOCK = before


def test_spans_of_spans(write):
    span = document(write("a.txt", "0123456789"), 10).span(2, 8).span(1, 9)
    assert "".join(span.chunks()) == "34567" and len(span) == 5


@pytest.mark.parametrize("block", [4, 2**20])
def test_a_wrong_encoding_names_file_byte_and_remedy(write, monkeypatch, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    path = write("a.txt", "\ufeffnaïv ".encode() + b"na\xefve")
    with pytest.raises(
        ValueError,
        match=r"a.txt is not utf-8: byte 0xef at position 11; it decodes cleanly as cp1252: data",
    ):
        read(path)
    with pytest.raises(ValueError, match=r"is not utf-8: byte 0xc3 at position 1; "):
        read(write("b.txt", b"a\xc3"))  # ends inside a character
    with pytest.raises(ValueError, match=r"is not gb18030: byte 0xff at position 4; .*…: utf-8, latin-1"):
        read(write("c.txt", "天地".encode("gb18030") + b"\xff\xff"), "gb18030")


def test_what_is_no_text(write):
    with pytest.raises(
        ValueError, match=r"a.png is not text: a NUL byte at position 4; name a text file, or its data.enco"
    ):
        read(write("a.png", b"\x89PNG\0\0"))
    with pytest.raises(ValueError, match=r"a.txt begins like UTF-16; read it so: data.encoding=utf-16"):
        read(write("a.txt", "text".encode("utf-16")))
    with pytest.raises(ValueError, match=r"is a folder; name a file"):
        read(write("d/a.txt").rpartition("/")[0])


def test_each_file_may_have_its_own_encoding(write, capsys):
    chinese = "很好的书籍，中文文本"
    a, b = write("a.txt", chinese.encode("gb18030")), write("b.txt", chinese)
    assert read(a, "auto") == read(a, "auto") == read(b, "auto") == chinese
    assert capsys.readouterr().out.count("a.txt is not utf-8 and read as gb18030") == 1
    with pytest.raises(
        ValueError, match=r"it decodes cleanly as gb18030: data.encoding=gb18030, or data.encoding=auto"
    ):
        read(a)


@pytest.mark.parametrize("name", ["utf9", "base64", "nonsense"])
def test_an_unknown_encoding(name):
    with pytest.raises(ValueError, match=rf"data.encoding={name} is not a text encoding; examples: utf-8, latin-1"):
        TextEncoding(name, None)


def test_an_unknown_normalisation():
    with pytest.raises(ValueError, match=r"data.normalize must be null, NFC, NFKC, NFD or NFKD, not 'nfx'"):
        TextEncoding("utf-8", "nfx")


# the corpus


def test_an_empty_file_and_a_folder_of_empty_files(write, tmp_path):
    path = write("corpus/a.txt", "")
    write("corpus/b.txt", b"\xef\xbb\xbf\x07")
    for some in (path, str(tmp_path / "corpus")):
        with pytest.raises(ValueError, match=rf"{some} is empty: there is no text in it; name another data.path"):
            TextFiles(some, UTF8, SUFFIXES).documents()


def test_the_fingerprint_is_of_the_content_wherever_it_is(write, tmp_path):
    def fingerprint(path, encoding=UTF8):
        files = TextFiles(path, encoding, SUFFIXES)
        files.documents()
        return files.fingerprint

    a, b, c = write("one/a.txt", "text"), write("two/b.txt", "text"), write("c.txt", "texts")
    assert fingerprint(a) == fingerprint(b) == fingerprint(str(tmp_path / "one"))
    assert len({fingerprint(a), fingerprint(c), fingerprint(a, TextEncoding("utf-8", "NFC"))}) == 3
    # as in the runs that were made first: another fingerprint would refuse them
    assert fingerprint(a) == "b695d21acdc54e9d5e0610c6139b66e460066925623bfe62686580c53663c7bb"


def test_the_digest_of_a_document_is_of_its_characters(write):
    def digests(path):
        return [
            text.digest for whole in TextFiles(path, UTF8, SUFFIXES).documents() for text in (whole, whole.span(1, 3))
        ]

    a, b, c = write("a.txt", "text"), write("b.txt", "text"), write("c.txt", "tests")
    assert digests(a) == digests(b)
    assert len({*digests(a), *digests(c)}) == 4


def test_linked_folders_are_followed_each_real_one_once(tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("texts/a.txt", "texts/deep/b.txt", "elsewhere/c.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "texts" / "more").symlink_to(tmp_path / "elsewhere")
    for name in ("self", "again"):  # two of them: 2^40 ways round for who does not look
        (tmp_path / "texts" / name).symlink_to(tmp_path / "texts")
    assert list(find_texts(str(tmp_path / "texts"), [".txt"])) == ["a.txt", "deep/b.txt", "more/c.txt"]
    found = find_texts(str(tmp_path / "texts" / "**" / "*.txt"), [])
    assert [Path(path).name for path in found] == ["a.txt", "b.txt", "c.txt"]
    assert [Path(p).name for p in find_texts(str(tmp_path / "texts" / "**" / "[bc].t?t"), [])] == ["b.txt", "c.txt"]


def test_what_may_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(ValueError, match="is not a regular file; name a text file"):
            find_texts(str(path), [".txt"])
