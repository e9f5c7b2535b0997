"""scripts/generate.py: prompts from files, several samples, what is written where, the score of a text; bad input."""

from __future__ import annotations

import ast
import io
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PROJECT
from omegaconf import OmegaConf

from quartet.callbacks.progress import StderrProgress
from quartet.commands import generate
from quartet.commands.generate import continuations, read_prompts, sample_seed, score
from quartet.commands.train import create_and_train
from quartet.data.spec import Spec
from quartet.data.text import tokenizers
from quartet.inference import language
from quartet.models.rnn import RNN
from quartet.models.transformer import Transformer
from quartet.tasks.language_modeling import LanguageModeling

TOKENIZER = tokenizers.fit("char", ["abcdefgh \n"], 20)
SAMPLING = {"temperature": 1.0, "top_k": None, "top_p": None}


def language_model(order: str = "shuffled") -> LanguageModeling:
    """Untrained, so that it writes any character; float64, so that a batch and one row are rounded alike."""
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENIZER.vocab_size, "context_length": 16}
    network = RNN(
        **sizes, cell="gru", n_layers=1, d_embedding=8, d_hidden=8, dropout=0.0, token_dropout=0.0,
        tie_embeddings=False, bidirectional=False, pooling="mean",
    ) if order == "contiguous" else Transformer(
        **sizes, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=16, dropout=0.0, positions="rotary",
        norm="rmsnorm", norm_position="pre", qk_norm=True, feed_forward="relu2", bias=False, tie_embeddings=False,
        pooling="mean", token_dropout=0.0,
    )  # fmt: skip
    spec = Spec(sizes=sizes, token_bytes=TOKENIZER.byte_counts)
    task = LanguageModeling(network=network.double(), spec=spec, order=order, label_smoothing=0.0, l1=0.0, l2=0.0)
    return task.eval()


def arguments(**settings) -> Any:
    """The config of scripts/generate.py with these settings."""
    defaults: Any = OmegaConf.load(PROJECT / "conf" / "generate.yaml")
    del defaults["defaults"]
    return OmegaConf.merge(defaults, settings)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """command(key=value, …): what the script does with these settings; its model is untrained."""
    task = language_model()
    monkeypatch.setattr(generate.Run, "open", lambda *_, **__: None)
    for module in (generate, language):
        monkeypatch.setattr(module, "load_task", lambda run: (task, SimpleNamespace(tokenizer=TOKENIZER)))
    monkeypatch.chdir(tmp_path)
    return lambda **settings: generate.main(arguments(**{"max_tokens": 12, **SAMPLING, **settings}))


def refused(run_command, *words: str, **settings) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        run_command(**settings)
    lines = str(error.value).splitlines()
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True)), lines


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# several prompts, several samples


def test_a_sample_is_the_same_alone_and_among_others(command, capsys, tmp_path):
    """Of any number of samples, prompts and batches; its seed in the file gives it again."""
    (tmp_path / "prompts.txt").write_text("ab\ncd \n", encoding="utf-8")
    command(prompts="prompts.txt", samples=40, output="many.jsonl")
    many = records(tmp_path / "many.jsonl")
    assert [(r["prompt_number"], r["sample_number"]) for r in many] == [(p, k) for p in (1, 2) for k in range(1, 41)]
    command(prompts="prompts.txt", samples=3, output="few.jsonl")
    assert records(tmp_path / "few.jsonl") == [r for r in many if r["sample_number"] <= 3]
    assert len({r["text"] for r in many}) > 60, "each has a seed of its own"
    capsys.readouterr()
    for record in (many[0], many[2], many[39], many[40], many[77]):
        command(prompt=record["prompt"], seed=record["seed"])
        assert capsys.readouterr().out == record["prompt"] + record["text"] + "\n"


def test_seeds_differ_and_that_of_a_lone_sample_is_what_was_given():
    assert sample_seed(7, 0, 0) == 7
    seeds = [sample_seed(seed, p, k) for seed in (0, 1) for p in range(10) for k in range(10)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)


def test_what_a_person_reads(command, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\ncd\n", encoding="utf-8")
    command(prompts="prompts.txt", samples=2)
    shown = capsys.readouterr()
    headers = [line for line in shown.out.splitlines() if line.startswith("---")]
    assert headers == [f"--- prompt {p}, sample {k} ---" for p in (1, 2) for k in (1, 2)]
    assert "--- prompt 2, sample 1 ---\ncd" in shown.out and "tokens/s" in shown.err
    command(prompts="prompts.txt", samples=2, output="same.txt")
    again = capsys.readouterr()
    assert again.out == "" and (tmp_path / "same.txt").read_text(encoding="utf-8") == shown.out
    command(prompt="ab", samples=2)
    assert capsys.readouterr().out.startswith("--- sample 1 ---\nab")


def test_an_interruption_loses_nothing(command, monkeypatch, tmp_path):
    (tmp_path / "out.jsonl").write_text("of an earlier run", encoding="utf-8")
    original, n_calls = Transformer.advance, 0

    def interrupted(self, tokens, state):
        nonlocal n_calls
        n_calls += 1
        if n_calls == stop_at:
            raise KeyboardInterrupt
        return original(self, tokens, state)

    monkeypatch.setattr(Transformer, "advance", interrupted)
    stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        command(samples=2, output="out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "of an earlier run", "nothing to replace it with"
    n_calls, stop_at = 0, 6
    with pytest.raises(KeyboardInterrupt):
        command(samples=2, output="out.jsonl")
    written = records(tmp_path / "out.jsonl")
    assert [record["stop_reason"] for record in written] == ["interrupted"] * 2
    assert all(1 <= record["tokens"] <= 5 for record in written)


def test_the_record_of_a_sample(command, tmp_path):
    command(samples=30, stop=["a"], logprobs=True, output="out.jsonl", max_tokens=20)
    for record in records(tmp_path / "out.jsonl"):
        each = record["logprobs"]
        assert "a" not in record["text"] == "".join(token["token"] for token in each)
        assert record["tokens"] == len(each) and record["logprob"] == pytest.approx(sum(t["logprob"] for t in each))
    reasons = {record["stop_reason"] for record in records(tmp_path / "out.jsonl")}
    assert {"stop_string", "end_of_document"} <= reasons <= {"stop_string", "end_of_document", "length"}


def test_the_probability_of_a_sample_is_the_score_of_its_text(command, tmp_path):
    """Also past the context length (16): an empty prompt begins a document, as a scored text does."""
    command(samples=8, output="out.jsonl", max_tokens=60)
    task, written = language_model(), records(tmp_path / "out.jsonl")
    for record in written:
        if record["text"]:
            assert score(task, TOKENIZER, record["text"]).logprob == pytest.approx(record["logprob"], abs=1e-5)
    assert max(record["tokens"] for record in written) > 32


# stop strings and penalties


@pytest.mark.parametrize("prompt", ["", "ab", "a "])
@pytest.mark.parametrize("stop", [["e"], ["ab", "c\n"], ["\n", " ", "gh"]])
def test_a_stopped_text_is_the_free_one_cut_there(prompt, stop):
    task = language_model()

    def texts(stop):
        *_, rows = continuations(task.network, TOKENIZER, prompt, range(12), stop=stop, max_tokens=50, **SAMPLING)
        return [row.text for row in rows]

    pairs = list(zip(texts(stop), texts([]), strict=True))
    for stopped, free in pairs:
        ends = [(free.index(string) + len(string), free.index(string)) for string in stop if string in free]
        assert stopped == (free[: min(ends)[1]] if ends else free)
    assert any(stopped != free for stopped, free in pairs)


def test_no_part_of_a_stop_string_is_shown(command, capsys):
    for seed in range(10):
        command(max_tokens=60, seed=seed)
        free = capsys.readouterr().out[:-1]
        for stop in {free[at : at + n] for n in (1, 2, 3) for at in (0, 3)} - {""}:
            command(max_tokens=60, seed=seed, stop=[stop])
            assert capsys.readouterr().out == free[: free.index(stop)] + "\n"


def test_stop_strings_of_a_command_line_have_escapes(command, monkeypatch):
    seen, original = [], generate.continuations
    monkeypatch.setattr(
        generate, "continuations", lambda *a, stop, **b: seen.append(stop) or original(*a, stop=stop, **b)
    )
    for stop in ([r"\n\n", "def "], r"a\tb", [r"\\n"], None):
        command(stop=stop)
    assert seen == [["\n\n", "def "], ["a\tb"], [r"\n"], []]


def test_a_penalty_of_1_changes_nothing_and_a_large_one_does(command, capsys):
    texts = []
    for penalty in (1, 1.0, 100.0):
        command(samples=8, repetition_penalty=penalty)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


# prompts from files


def test_prompts_of_a_text_file(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes('\ufeff\r\ndef \r\n\n \nclass A:\n{"prompt": 1}'.encode())
    assert read_prompts(str(path)) == ["def ", "class A:", '{"prompt": 1}'], "blank lines are skipped, spaces are not"


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "-"])
def test_prompts_of_json_lines(tmp_path, monkeypatch, name):
    content = b'\n{"prompt": "a\\nb", "id": 1}\n\n{"prompt": ""}\n{"prompt": "\\ud800"}\n'
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    where = name if name == "-" else str(tmp_path / name)
    assert read_prompts(where) == ["a\nb", "", "?"], "no UTF-8 text holds a lone surrogate"


def test_prompts_of_standard_input_are_text_otherwise(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{ int x;\nvoid f()\n")))
    assert read_prompts("-") == ["{ int x;", "void f()"]


# the score of a text


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
@pytest.mark.parametrize("text", ["a", "abc dh\n", "abcdefgh\nabcdefg"])
def test_the_score_of_one_window_is_the_task_s_loss(monkeypatch, order, text):
    task, logged = language_model(order), {}
    ids = torch.tensor([[TOKENIZER.eos_id, *TOKENIZER.encode(text)]])
    task.step({"inputs": {"tokens": ids[:, :-1]}, "target": ids[:, 1:]}, "val")
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    task.log_metrics("val")
    found = score(task, TOKENIZER, text)
    assert -found.logprob / len(found.tokens) == pytest.approx(logged["val/loss"], rel=1e-6)
    assert found.perplexity == pytest.approx(logged["val/perplexity"], rel=1e-6)
    assert found.bits_per_byte == pytest.approx(logged["val/bits_per_byte"], rel=1e-6)


def test_a_carried_state_scores_as_validation_does():
    """Windows of 16 after each other, as rows of one stream: the mean of what the task makes of them."""
    task, text = language_model("contiguous"), "abcdefgh\nabcdefga" * 5
    ids = torch.tensor([[TOKENIZER.eos_id, *TOKENIZER.encode(text)]])
    nats = 0.0
    for start in range(0, ids.shape[1] - 1, 16):
        window = ids[:, start : start + 17]
        nats += task.step({"inputs": {"tokens": window[:, :-1]}, "target": window[:, 1:]}, "val")[0].item() * (
            window.shape[1] - 1
        )
    found = score(task, TOKENIZER, text)
    assert len(found.tokens) == len(text) and -found.logprob == pytest.approx(nats)


def test_the_score_of_long_texts_uses_at_least_half_a_window():
    """Each token once; what stands more than a window before it changes nothing."""
    task, text = language_model(), "abcdefgh\nabcdefga" * 5
    found, other = score(task, TOKENIZER, text), score(task, TOKENIZER, "h" + text[1:])
    assert [token.id for token in found.tokens] == TOKENIZER.encode(text)
    differ = [a.logprob != b.logprob for a, b in zip(found.tokens, other.tokens, strict=True)]
    assert any(differ[:16]) and not any(differ[17:])


def test_what_is_said_of_a_score(command, capsys, tmp_path):
    command(score="abc", logprobs=True)
    shown = capsys.readouterr()
    values = dict(line.split() for line in shown.out.split("\n\n")[0].splitlines())
    assert values["tokens"] == values["bytes"] == "3" and "tokens/s" in shown.err
    assert float(values["perplexity"]) == pytest.approx(math.exp(-float(values["logprob"]) / 3), rel=1e-4)
    assert float(values["bits_per_byte"]) == pytest.approx(-float(values["logprob"]) / math.log(2) / 3, rel=1e-4)
    assert [line.split()[1] for line in shown.out.split("\n\n")[1].splitlines()] == ["'a'", "'b'", "'c'"]
    (tmp_path / "text").write_bytes(b"abc?")
    command(score_file="text", output="score.jsonl", logprobs=True)
    (record,) = records(tmp_path / "score.jsonl")
    assert record["tokens"] == 4 and record["unknown_tokens"] == 1 and len(record["logprobs"]) == 4
    assert sum(token["logprob"] for token in record["logprobs"][:3]) == pytest.approx(
        float(values["logprob"]), abs=1e-4
    )


# what is said, and bad input


def test_the_log_probabilities_of_a_streamed_text(command, capsys):
    command(prompt="ab", logprobs=True)
    text, table = capsys.readouterr().out.rsplit("\n\n", 1)
    assert all(float(line[:9]) < 0 for line in table.splitlines())
    pieces = [ast.literal_eval(line[11:]) for line in table.splitlines()]
    assert "a" + "".join(pieces) == text and len(pieces) <= 12, "the first token is that in which the prompt ended"


def test_the_speed_is_tokens_by_elapsed_time(capsys):
    generate.print_speed(300, 2.0, None)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "300 tokens in 2.0 s, 150 tokens/s\n"


def test_long_work_says_how_far_it_is_beside_the_text(capsys):
    for every_seconds, said in ((0.0, "scoring 50%\nscoring 100%\n"), (60.0, "")):
        progress = StderrProgress("scoring", every_seconds)
        progress.show(0.5)
        progress.hide()
        progress.show(1.0)
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err == said


def test_mistakes_in_settings_are_told_together(command):
    words = (
        "repetition_penalty must",
        "stop must",
        "samples must",
        "logprobs must",
        "output must",
        "do not go together",
    )
    wrong = {"repetition_penalty": 0.9, "stop": [""], "samples": 0, "logprobs": "yes", "output": "x.csv"}
    refused(command, *words, **wrong, prompt="a", score="b")
    refused(command, "stop must be a list, each item a text", stop=3)
    refused(command, "repetition_penalty must be a number of at least 1", repetition_penalty=math.inf)


def test_files_that_cannot_be_read_or_written(command, capsys, tmp_path):
    refused(command, "prompts=none.txt cannot be read", prompts="none.txt")
    refused(command, "score_file=. cannot be read", score_file=".")
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    refused(command, "prompts=empty.txt holds no prompts", prompts="empty.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    refused(command, "score_file=latin is not UTF-8: byte 0xe9 at position 3", score_file="latin")
    for line in ('{"prompt": 3}', '{"text": "a"}', '["a"]', "[" * 100_000, "def "):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n\n' + line, encoding="utf-8")
        refused(command, "prompts=bad.jsonl, line 3: expected an object", prompts="bad.jsonl")
    refused(command, "output=no/x.jsonl: there is no directory", output="no/x.jsonl")
    (tmp_path / "p.txt").write_text("a", encoding="utf-8")
    refused(command, "output=p.txt would replace what is read", prompts="p.txt", output="p.txt")
    refused(command, "the text to score is empty", score="")
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_of_a_run_that_cannot_write(compose, capsys, tmp_path):
    run, _ = create_and_train(compose("model=mlp", "model.hidden=[4]", "trainer.max_epochs=1", "callbacks=none"))
    capsys.readouterr()
    for settings in ({"prompt": "def"}, {"score": "def"}, {"samples": 2, "output": str(tmp_path / "o.jsonl")}):
        with pytest.raises(ValueError, match="is not a language model"):
            generate.main(arguments(run=str(run.directory), **settings))
    assert capsys.readouterr().out == "" and not (tmp_path / "o.jsonl").exists()


def test_the_script(compose, script, small_text, tmp_path):
    """As it is typed: escapes in stop strings, a number as a text, standard output for the text alone."""
    tiny = ["model=rnn", "model.d_hidden=16", "model.n_layers=1", "data.context_length=32", "data.batch_size=8"]
    tiny += ["trainer.max_steps=2", "trainer.max_epochs=-1", "trainer.val_check_interval=2", "trainer.accelerator=cpu"]
    run, _ = create_and_train(compose(*tiny, "callbacks=none"))
    where = f"run={run.directory}"
    ended = script("generate", where, "prompt=42", r'stop=["\n","def "]', "max_tokens=40", "repetition_penalty=1.2")
    assert ended.returncode == 0 and ended.stdout.startswith("42") and ended.stdout.count("\n") == 1, ended.stderr
    assert "tokens/s" in ended.stderr and "Traceback" not in ended.stderr
    ended = script("generate", where, "score=42, or 43", "output=s.jsonl")
    assert ended.returncode == 0 and ended.stdout == "" and records(tmp_path / "s.jsonl")[0]["bytes"] == 9
