"""Text data: windows cover the stream once, streams continue, parts are disjoint, nothing is fitted outside train."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import check_that_only_train_is_fitted, check_that_texts_are_restored

from quartet.data.memory import MemoryLoader
from quartet.data.splits import Split
from quartet.data.text import files as text_files
from quartet.data.text import tokenizers
from quartet.data.text.language_modeling import (
    LanguageModelingData,
    OwnText,
    Windows,
    contiguous,
    sample_chunks,
    shakespeare,
    shuffled_windows,
    split_documents,
    token_blocks,
)
from quartet.data.text.sources import Document, Shakespeare

COMMON = {"batch_size": 3, "split": [0.8, 0.1, 0.1], "split_seed": 0, "folds": None, "fold": None, "seed": 0}
DOCUMENTS = [Document(f"{i}.txt", f"document {i} says {i * i} and {i**3}. " * 4) for i in range(20)]


@dataclass
class Given:
    """A source whose content the test says."""

    content: list = field(default_factory=list)

    def documents(self) -> list[Document]:
        return self.content


def language_model(documents=DOCUMENTS, **settings) -> LanguageModelingData:
    values = {"tokenizer": "char", "vocab_size": 300, "context_length": 8, "order": "shuffled", **COMMON, **settings}
    return LanguageModelingData(source=Given(documents), **values)


def ready(data):
    data.setup()
    return data


def in_rank(data, rank: int, world: int):
    """The module as one of several workers sees it."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=world, training=False)
    return data


# windows


@given(length=st.integers(9, 200), epoch=st.integers(0, 9), seed=st.integers(0, 9))
def test_shuffled_windows_see_each_target_at_most_once(length, epoch, seed):
    windows = Windows(torch.arange(length, dtype=torch.int32), 8)
    ids = shuffled_windows(len(windows), 8, seed)(epoch)
    batch = windows.gather(ids)
    targets = batch["target"].flatten().tolist()
    assert len(targets) == len(set(targets)) == 8 * len(windows) >= length - 8
    assert torch.equal(batch["target"], (batch["inputs"]["tokens"] + 1) % length)
    assert torch.equal(batch["index"], batch["inputs"]["tokens"][:, 0])  # the id is the start
    assert torch.equal(ids, shuffled_windows(len(windows), 8, seed)(epoch))


def test_every_epoch_has_its_own_offset_and_order():
    epochs = [shuffled_windows(40, 16, 0)(epoch) for epoch in range(20)]
    assert len({int(ids[0]) % 16 for ids in epochs}) > 5  # 20 draws of 16: by chance impossible
    assert len({tuple(ids.argsort().tolist()) for ids in epochs}) == 20
    assert all(0 <= int(ids.min()) < 16 for ids in epochs)


@given(n=st.integers(1, 100), n_streams=st.integers(1, 12))
def test_a_contiguous_order_holds_everything_and_continues_each_row(n, n_streams):
    order = contiguous(n, n_streams)(0).tolist()
    assert sorted(order) == list(range(n))
    steps = [order[start : start + n_streams] for start in range(0, n, n_streams)]
    for now, following in pairwise(steps):
        assert [i + 1 for i in now[: len(following)]] == following


def test_validation_covers_the_stream_in_order_up_to_a_last_piece():
    data = ready(language_model())
    for part, some in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        stream = data.datasets[part].stream  # type: ignore[attr-defined]
        tokens = torch.cat([batch["inputs"]["tokens"].flatten() for batch in some])
        assert torch.equal(tokens, stream[: len(tokens)].long())
        assert len(stream) - 1 - len(tokens) < 8


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_contiguous_rows_go_on_in_the_next_batch(part, rank, world):
    data = in_rank(ready(language_model(order="contiguous")), rank, world)
    batches = list(getattr(data, f"{part}_dataloader")())
    assert len(batches) > 1
    for now, following in pairwise(batches):
        rows = len(following["target"])
        assert torch.equal(now["target"][:rows, -1], following["inputs"]["tokens"][:, 0])
        assert torch.equal(now["index"][:rows] + 8, following["index"])
    if part == "train":
        assert {len(batch["target"]) for batch in batches} == {3}


def test_contiguous_validation_is_complete_too():
    plain, carried = ready(language_model()), ready(language_model(order="contiguous", batch_size=4))
    seen = [torch.cat([batch["index"] for batch in data.val_dataloader()]) for data in (plain, carried)]
    assert torch.equal(seen[0], seen[1].sort().values)


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
def test_workers_together_see_what_one_process_sees(order):
    alone = ready(language_model(order=order, batch_size=6))
    loaders = [in_rank(ready(language_model(order=order)), rank, 2).train_dataloader() for rank in (0, 1)]
    for batch, *shares in zip(alone.train_dataloader(), *loaders, strict=True):
        together = torch.cat([share["index"] for share in shares])
        assert torch.equal(together.sort().values, batch["index"].sort().values)


def test_seeking_gives_the_windows_that_would_have_come():
    data = ready(language_model())
    whole, resumed = data.train_dataloader(), data.train_dataloader()
    whole.seek(2, 0)
    resumed.seek(2, 5)
    for a, b in zip(list(whole)[5:], resumed, strict=True):
        assert torch.equal(a["inputs"]["tokens"], b["inputs"]["tokens"])


def test_the_stream_is_the_documents_each_followed_by_eos():
    data = ready(language_model())
    pieces = "".join(document.text + "|" for document in DOCUMENTS if document.name in data.ids["train"])
    eos = data.tokenizer.eos_id
    stream = data.datasets["train"].stream.tolist()  # type: ignore[attr-defined]
    assert "".join("|" if i == eos else data.tokenizer.decode([i]) for i in stream) == pieces


# splitting


def test_documents_are_split_as_wholes_the_same_way_each_time():
    data, again = ready(language_model()), ready(language_model())
    assert data.ids == again.ids
    assert sorted(chain.from_iterable(data.ids.values())) == sorted(document.name for document in DOCUMENTS)
    assert [len(data.ids[part]) for part in ("train", "val", "test")] == [16, 2, 2]
    assert ready(language_model(split_seed=1)).ids != data.ids
    assert ready(language_model(seed=1)).ids == data.ids


def test_folds_of_one_document_tile_what_is_not_test():
    text = DOCUMENTS[0].text
    folds = [split_documents(DOCUMENTS[:1], Split([0.8, 0.1, 0.1], 0, 4, k)) for k in range(4)]
    assert len({fold["test"][0].text for fold in folds}) == 1
    assert "".join(fold["val"][0].text for fold in folds) + folds[0]["test"][0].text == text
    for fold in folds:
        assert sum(len(document.text) for part in fold.values() for document in part) == len(text)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_documents_are_split_by_position(n):
    parts = split_documents(DOCUMENTS[:n], Split([0.8, 0.1, 0.1], 0))
    for i in range(n):
        assert "".join(parts[part][i].text for part in ("train", "val", "test")) == DOCUMENTS[i].text
    assert parts["train"][0].name == f"0.txt[0:{len(parts['train'][0].text)}]"


# preprocessing


def test_nothing_is_fitted_outside_train():
    data = ready(language_model())
    outside = {*data.ids["val"], *data.ids["test"]}
    changed = ready(language_model([replace(x, text=x.text + " ÆØ") if x.name in outside else x for x in DOCUMENTS]))
    check_that_only_train_is_fitted(data, changed)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_a_restored_module_gives_the_same_and_refuses_changed_data(tokenizer):
    data, restored = ready(language_model(tokenizer=tokenizer)), language_model(tokenizer=tokenizer)
    check_that_texts_are_restored(data, restored, language_model(DOCUMENTS[:-1], tokenizer=tokenizer))


def test_the_spec():
    data = ready(language_model())
    assert data.spec.sizes == {"vocab_size": data.tokenizer.vocab_size, "context_length": 8}
    assert data.spec.token_bytes == data.tokenizer.byte_counts


def test_a_tokenizer_of_another_run_is_taken_instead_of_a_new_one():
    other = ready(language_model(tokenizer="word")).preprocessing()
    data = language_model()
    assert data.reuse(other) == "tokenizer"
    assert ready(data).preprocessing()["tokenizer"] == other["tokenizer"]
    assert language_model().reuse({"spec": {}}) is None


def test_the_report_is_plain_and_counts():
    report = json.loads(json.dumps(ready(language_model()).report()))
    train = report["parts"]["train"]
    assert train["documents"] == 16 and train["unknown_tokens"] == 0
    assert train["bytes_per_token"] == pytest.approx(1, abs=0.02)
    assert sum(report["histograms"]["characters of a document"]["counts"]["train"]) == 16
    assert report["examples"][0]["text"].startswith("document 0 says 0")


# inputs for inference


def test_the_end_of_a_prompt_is_kept():
    data = ready(language_model())
    prompts = data.encode(["", "document 1 says"])["tokens"]
    assert prompts.tolist()[0] == [1] + [0] * 7  # <eos>, padded
    assert data.tokenizer.decode(prompts[1].tolist()) == "t 1 says"


# mistakes


def test_a_text_too_short_for_its_context():
    with pytest.raises(
        ValueError, match=r"has \d+ tokens.*data.context_length \+ 1 = 5001.*smaller data.context_length"
    ):
        language_model(context_length=5000).setup()


def test_no_documents_at_all():
    with pytest.raises(ValueError, match="has 0 tokens"):
        language_model([]).setup()


def test_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match=r"data.batch_size=9999 is more than the \d+ training samples"):
        language_model(batch_size=9999).setup()


@pytest.mark.parametrize("split", [[0.8, 0.2], [0.8, 0.1, 0.2], [0, 0.5, 0.5]])
def test_shares_that_make_no_split(split):
    with pytest.raises(ValueError, match=r"data.split must be three shares"):
        language_model(split=split).setup()


def test_an_unknown_order():
    with pytest.raises(ValueError, match=r"data.order must be shuffled or contiguous, not 'sorted'"):
        language_model(order="sorted")


def test_shakespeare_takes_the_path_of_the_source():
    settings = {"tokenizer": "char", "vocab_size": 300, "context_length": 8, "order": "shuffled", **COMMON}
    assert shakespeare(path="x", download=True, **settings).source == Shakespeare(path="x", download=True)


def test_loaders_are_memory_loaders():
    data = ready(language_model())
    assert all(isinstance(some, MemoryLoader) for some in (data.train_dataloader(), data.test_dataloader()))


# the user's own text


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name=text, …) -> the folder; the cache is empty at first."""
    monkeypatch.setenv("QUARTET_CACHE", str(tmp_path / "cache"))

    def write_files(**texts: str):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        return folder

    return write_files


def own(path, **settings) -> OwnText:
    values = {
        "path": str(path), "encoding": "utf-8", "normalize": None, "suffixes": [".txt"],
        "eval_mb": None, "tokenizer": "bpe", "vocab_size": 300, "context_length": 8, "order": "shuffled",
    }  # fmt: skip
    return OwnText(**{**values, **COMMON, **settings})


LINES = "".join(f"line {i} of many, {i * i} and naïve 天地 {i**3}.\r\n{chr(10) * (i % 3)}" for i in range(400))


@pytest.mark.parametrize("documents", [1, 12])
@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_files_give_the_same_as_documents_in_memory(write, monkeypatch, documents, tokenizer):
    monkeypatch.setattr(text_files, "BLOCK", 3001)  # bytes: many blocks, and characters that are in two of them
    texts = {f"d{i:02}": LINES[100 * i :] for i in range(documents)}
    files = ready(own(write(**texts), tokenizer=tokenizer))
    held = [Document(f"{name}.txt", text.replace("\r\n", "\n")) for name, text in texts.items()]
    memory = ready(language_model(held, tokenizer=tokenizer))
    assert files.ids == memory.ids and files.spec == memory.spec
    assert files.preprocessing()["tokenizer"] == memory.preprocessing()["tokenizer"]
    for a, b in zip(files.train_dataloader(), memory.train_dataloader(), strict=True):
        assert torch.equal(a["inputs"]["tokens"], b["inputs"]["tokens"]) and torch.equal(a["target"], b["target"])
    assert files.report()["parts"] == memory.report()["parts"]


@pytest.mark.parametrize("source", ["files", "memory"])
def test_a_text_is_tokenised_once(write, tmp_path, monkeypatch, capsys, source):
    folder = write(a=LINES)

    def data():
        return ready(own(folder) if source == "files" else language_model(tokenizer="bpe"))

    first = data()
    files = sorted(path.name for path in (tmp_path / "cache" / "text").iterdir())
    kinds = sorted(name.partition(".")[2] for name in files if not name.endswith(".size"))
    assert kinds == ["lengths"] * (source == "files") + ["tokenizer", *["tokens"] * 3]
    monkeypatch.setattr(tokenizers.BytePairTokenizer, "_encode", None)  # nothing is encoded any more
    monkeypatch.setattr(tokenizers, "fit", None)
    assert data().preprocessing() == first.preprocessing()
    assert sorted(path.name for path in (tmp_path / "cache" / "text").iterdir()) == files
    assert "first use of" not in capsys.readouterr().out


def test_a_long_text_says_what_takes_so_long(write, monkeypatch, capsys):
    monkeypatch.setattr("quartet.data.text.language_modeling.LONG", 10_000)  # characters: train has more, val has not
    folder = write(a=LINES)
    for n_said in (2, 0):
        ready(own(folder))
        said = capsys.readouterr().out.splitlines()
        assert len([line for line in said if "corpus: a.txt[0:" in line and "minutes, once" in line]) == n_said


def test_documents_of_one_name_keep_their_own_tokens(write):
    """Names are for people: what is cached under a name alone would mix these up."""
    write()
    data = ready(language_model([Document("same", document.text) for document in DOCUMENTS]))
    streams = {part: data.tokenizer.decode(data.datasets[part].stream.tolist()) for part in ("val", "test")}  # type: ignore[attr-defined]
    assert streams["val"] != streams["test"]


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 301},
        {"tokenizer": "char"},
        {"split": [0.7, 0.2, 0.1]},
        {"normalize": "NFKC"},
        {"folds": 3, "fold": 1},
    ],
)
def test_what_matters_for_the_tokens_makes_others(write, tmp_path, settings):
    folder = write(a=f"ﬁne {LINES}")
    ready(own(folder))
    before = set((tmp_path / "cache" / "text").glob("*.tokens"))
    ready(own(folder, **settings))
    assert set((tmp_path / "cache" / "text").glob("*.tokens")) > before


def test_changed_content_is_seen(write):
    folder = write(a=LINES)
    first = ready(own(folder))
    write(a=LINES.replace("naïve", "simple"))
    changed = ready(own(folder))
    assert "simple" in changed.tokenizer.decode(changed.datasets["val"].stream.tolist())  # type: ignore[attr-defined]
    restored = own(folder)
    restored.restore(first.preprocessing())
    with pytest.raises(ValueError, match="the data have changed since the run"):
        restored.setup()


def test_a_restored_module_maps_the_same_tokens_with_and_without_the_cache(write, tmp_path):
    folder = write(a=LINES)
    first = ready(own(folder))
    for _ in range(2):
        restored = own(folder)
        restored.restore(json.loads(json.dumps(first.preprocessing())))
        stream = ready(restored).datasets["test"].stream.tolist()  # type: ignore[attr-defined]
        assert stream == first.datasets["test"].stream.tolist()  # type: ignore[attr-defined]
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("limit", [0, 2**28])
def test_a_stream_is_copied_to_an_accelerator_if_it_is_small(write, monkeypatch, limit):
    monkeypatch.setattr("quartet.data.text.language_modeling.ON_DEVICE", limit)  # bytes
    windows = ready(own(write(a=LINES))).datasets["train"].to(torch.device("meta"))  # stands for a GPU
    assert windows.stream.device.type == ("meta" if limit else "cpu")  # type: ignore[attr-defined]
    batch = windows.gather(torch.arange(2))
    assert {x.device.type for x in (batch["inputs"]["tokens"], batch["target"], batch["index"])} == {"meta"}


def test_pages_are_given_back_and_come_again(write, monkeypatch):
    monkeypatch.setattr("quartet.data.text.language_modeling.FORGET_AFTER", 2)
    windows = ready(own(write(a=LINES))).datasets["train"]
    ids = torch.arange(3)
    first, *others = (windows.gather(ids)["target"] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


def test_large_vocabularies_take_wider_numbers(write):
    data = own(write(a=LINES), vocab_size=70_000, tokenizer="word")
    data.reuse({"tokenizer": {"kind": "word", "pieces": [*map(str, range(70_000)), "line"]}})
    assert ready(data).datasets["train"].stream.dtype is torch.int32  # type: ignore[attr-defined]
    assert 70_003 in data.datasets["train"].stream.tolist()  # type: ignore[attr-defined]


def test_val_and_test_of_a_large_text_are_limited(write):
    folder = write(a="0123456789" * 1000)

    def lengths(eval_mb):
        parts, _ = own(folder, eval_mb=eval_mb).read()
        return [len(parts[part][0]) for part in ("train", "val", "test")]

    assert lengths(None) == lengths(0.001) == [8000, 1000, 1000]
    assert lengths(0.0001) == [9800, 100, 100]


def test_a_sample_is_spread_evenly_and_bounded(monkeypatch):
    monkeypatch.setattr("quartet.data.text.sources.CHUNK", 10)
    documents = [Document(f"{i}", f"{i} 345678\n" * 10) for i in range(10)]  # 900 characters
    assert "".join(sample_chunks(documents, 10_000)) == "".join(document.text for document in documents)
    some = list(sample_chunks(documents, 300))
    assert 250 <= sum(map(len, some)) <= 400
    assert {chunk[0] for chunk in some} == set("0123456789")


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_chunks_give_the_tokens_of_the_whole(kind, monkeypatch):
    monkeypatch.setattr("quartet.data.text.sources.CHUNK", 50)
    text = "def f(x):\n    return x  # it's\n\n\n" * 9 + "one two  three\tfour \n five'll\n" * 9
    tokenizer = tokenizers.fit(kind, [text], 300)
    blocks = token_blocks(tokenizer, [Document("a", text), Document("b", ""), Document("c", "x")], "int32")
    ids = [i for block in blocks for i in block.tolist()]
    eos = tokenizer.eos_id
    assert ids == [*tokenizer.encode(text), eos, eos, *tokenizer.encode("x"), eos]


def test_repeated_and_empty_documents_are_dropped_and_counted(write):
    texts = {f"d{i}": LINES[100 * i :] for i in range(12)}
    folder = write(**texts, repeated=texts["d3"].replace("\r\n", "\n"), empty="")
    data = ready(own(folder))
    assert sum(map(len, data.ids.values())) == 12
    notes = data.report()["notes"]
    assert "1 repeated documents dropped" in notes and "1 empty documents dropped" in notes


def test_a_text_too_short_names_the_file(write):
    with pytest.raises(ValueError, match=r"^/.*/corpus: a.txt\[0:4\] has 5 tokens.*smaller data.context_length"):
        own(write(a="short"), tokenizer="char").setup()


CHINESE = (
    "天色漸暗，小船慢慢靠岸。老人把燈掛在門前，孩子們坐在樹下聽他說海上的故事。風停了，水面像鏡子一樣平靜。\n" * 30
)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_chinese_goes_through_every_tokenizer(write, tokenizer):
    data = ready(own(write(a=CHINESE), tokenizer=tokenizer))
    stream = data.datasets["train"].stream.tolist()  # type: ignore[attr-defined]
    assert data.tokenizer.decode(stream) == CHINESE[: round(0.8 * len(CHINESE))]
    assert data.report()["parts"]["train"]["unknown_tokens"] == 0


def test_a_character_model_of_chinese_writes_chinese(compose, write):
    from quartet.commands.generate import generate
    from quartet.commands.train import create_and_train

    config = compose(
        "model=rnn", "data=text", f"data.path={write(a=CHINESE)}", "data.tokenizer=char", "data.context_length=16",
        "data.batch_size=4", "model.d_hidden=48", "model.d_embedding=48", "model.n_layers=1", "trainer.max_steps=60",
        "callbacks=none", "logger=none",
    )  # fmt: skip
    run, result = create_and_train(config)
    assert result["status"] == "completed"
    settings = {"max_tokens": 80, "temperature": 0.7, "top_k": 20, "top_p": None}
    written = "".join(generate(run, prompt="老人", seed=0, **settings))
    assert len(written) > 40 and set(written) <= set(CHINESE)
