"""A run from config to result, and every command that starts from its directory."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from quartet import build
from quartet.commands.evaluate import evaluate
from quartet.commands.generate import generate, heal, load
from quartet.commands.train import create_and_train
from quartet.data.text import tokenizers
from quartet.engine import fit
from quartet.run import Run
from quartet.sampling import Continuation, Token

FAMILIES = {
    "transformer": [
        "model.d_model=16",
        "model.n_layers=1",
        "model.n_heads=2",
        "model.d_ff=32",
        "data.context_length=32",
    ],
    "rnn": ["model.d_hidden=16", "model.n_layers=1", "model.dropout=0.1", "data.context_length=32"],
    "image": ["model=image_small", "model.widths=[4,8]"],
    "mlp": ["model.hidden=[16]"],
}
SHORT = ["trainer.max_steps=10", "trainer.max_epochs=-1", "trainer.val_check_interval=5", "trainer.log_every_n_steps=1"]
SHORT += ["data.batch_size=8", "trainer.accelerator=cpu"]

# train/loss of the ten steps of each family, CPU, one thread; a refactor keeps them, a changed default does not
PROJECT = Path(__file__).parents[1]
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture
def short_run(compose, small_text):
    def short_run(family: str, *overrides: str) -> tuple[Run, dict]:
        first = [] if family == "image" else [f"model={family}"]
        return create_and_train(compose(*first, *FAMILIES[family], *SHORT, *overrides))

    return short_run


def losses(run: Run) -> list[float]:
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_losses(short_run, family):
    run, _ = short_run(family, "callbacks.figures=null", "callbacks.samples=null")
    assert losses(run) == pytest.approx(GOLDEN[family], rel=1e-3), json.dumps(losses(run))


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_reproduces_what_training_measured(short_run, family, monkeypatch, tmp_path):
    """To 1e-6, without an override, from another working directory."""
    run, result = short_run(family)
    monkeypatch.chdir(tmp_path)
    opened = Run.open("latest")
    assert opened.directory == run.directory
    for split in ("val", "test"):
        measured = evaluate(opened, split)
        trained = {name: value for name, value in result["metrics"].items() if name.startswith(split)}
        assert measured.keys() == trained.keys() and f"{split}/loss" in measured
        assert measured == pytest.approx(trained, abs=1e-6)


def test_the_run_directory_is_complete_and_says_so_last(short_run, monkeypatch):
    order = []
    write = Run.write
    monkeypatch.setattr(Run, "write", lambda self, name, values: (order.append(name), write(self, name, values)))
    run, result = short_run("transformer")
    names = {path.name.split(".tfevents")[0] for path in run.directory.iterdir()}
    files = {"config.yaml", "environment.json", "preprocessing.json", "metrics.csv", "result.json", "data.json"}
    names -= {"uncommitted.diff", ".lock"}  # the former if somebody has changed the code
    assert names == files | {"checkpoints", "events.out", "figures", "samples"}
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert order[-1] == "result.json" and run.read("result.json") == json.loads(json.dumps(result))
    assert "${" not in (run.directory / "config.yaml").read_text(encoding="utf-8")
    assert result["status"] == "completed" and result["steps"] == 10
    assert result["parameters"] == sum(p.numel() for p in build.build_network(run.config, spec_of(run)).parameters())
    assert result["throughput"]["unit"] == "tokens" and result["seconds"] > 0 and result["peak_memory_bytes"] > 1e6
    assert result["objective"] == {"name": "val/loss", "value": result["metrics"]["val/loss"]}


def spec_of(run: Run):
    return build.build_data(run.config, run.read("preprocessing.json")).spec


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_hold_tensors_and_plain_data_only(short_run, family):
    run, _ = short_run(family, "callbacks=ema" if family == "mlp" else "seed=1")
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(run.checkpoints / name, weights_only=True)
        assert all(key.startswith("network.") for key in checkpoint["state_dict"])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(short_run):
    first, second, third = (short_run("rnn", f"seed={seed}")[0] for seed in (1, 1, 2))
    assert losses(first) == losses(second) != losses(third)


def test_the_result_is_that_of_the_best_checkpoint(short_run):
    """A rate that ruins the weights after the first validation: best.ckpt is from before."""
    run, result = short_run("mlp", "scheduler=constant", "optimizer=sgd", "optimizer.lr=3.0", "trainer.max_steps=20")
    history = torch.load(run.best_checkpoint, weights_only=True)
    assert result["metrics"]["val/loss"] == pytest.approx(evaluate(run, "val")["val/loss"], abs=1e-6)
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        validated = [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]
    assert result["metrics"]["val/loss"] == pytest.approx(min(validated), rel=1e-6)
    assert history["global_step"] == 5 * (validated.index(min(validated)) + 1)


def test_failure_is_recorded_and_not_called_complete(short_run, outputs, monkeypatch):
    monkeypatch.setattr(fit.Task, "penalty", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        short_run("mlp")
    (directory,) = (path.parent for path in outputs.rglob("config.yaml"))
    assert Run(directory).read("result.json")["status"] == "failed"
    assert "ZeroDivisionError" in (directory / "error.txt").read_text(encoding="utf-8")


def test_ctrl_c_marks_the_run_as_interrupted(start, outputs):
    """Exit code 130, checkpoints kept, no traceback, nothing that looks finished."""
    process = start("train", "model=mlp", "trainer.max_epochs=100000", "callbacks.figures=null")
    deadline = time.monotonic() + 100
    while not list(outputs.rglob("last.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    ended = process.wait(60)
    (result,) = outputs.rglob("result.json")
    assert json.loads(result.read_text())["status"] == "interrupted"
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    assert list(outputs.rglob("best.ckpt"))


def test_l1_and_l2_are_added_to_the_training_loss_and_logged_apart(short_run):
    plain = losses(short_run("mlp")[0])
    run, _ = short_run("mlp", "task.l1=0.001", "task.l2=0.001")
    assert losses(run)[0] == pytest.approx(plain[0], rel=1e-6), "the logged loss is the data's"
    assert losses(run)[-1] != plain[-1], "the weights feel the penalty"
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        penalties = [float(row["train/penalty"]) for row in csv.DictReader(file) if row.get("train/penalty")]
    assert penalties and penalties[0] > 0


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("weights", ["null", "auto", "[1.0,2.0]"])
def test_every_classification_loss_with_weights_and_smoothing(short_run, loss, weights):
    _, result = short_run("mlp", f"task.loss={loss}", f"task.class_weights={weights}", "task.label_smoothing=0.1")
    assert 0 < result["metrics"]["val/loss"] < 3 and 0 <= result["metrics"]["test/auroc"] <= 1


@pytest.mark.parametrize("loss", ["mean_squared_error", "l1", "huber"])
def test_every_regression_loss(short_run, loss):
    _, result = short_run("mlp", "data=diabetes", f"task.loss={loss}")
    assert {"test/rmse", "test/mae", "test/r2"} <= result["metrics"].keys()
    assert result["metrics"]["test/rmse"] > result["metrics"]["test/mae"] > 10, "in the target's own units"


def test_mistakes_of_the_task_are_named(short_run):
    with pytest.raises(ValueError, match=r"task\.loss must be one of cross_entropy"):
        short_run("mlp", "task.loss=hinge")
    with pytest.raises(ValueError, match=r"task\.class_weights must be null, auto or 2 numbers"):
        short_run("mlp", "task.class_weights=[1.0]")


def test_the_last_step_ends_in_a_validation_whatever_the_interval(short_run):
    run, result = short_run("mlp", "trainer.max_steps=14", "trainer.val_check_interval=5")
    assert result["steps"] == 14
    assert torch.load(run.checkpoints / "last.ckpt", weights_only=True)["global_step"] == 14


# generation


@pytest.mark.parametrize("family", ["transformer", "rnn"])
@pytest.mark.parametrize("prompt", ["def ", "", "中文 €"])
def test_generation_with_and_without_cache_agree(short_run, family, prompt):
    run, _ = short_run(family)
    settings = {"prompt": prompt, "max_tokens": 60, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 3}
    cached = "".join(generate(run, **settings))
    assert cached == "".join(generate(run, **settings, cache=False)) and cached


def test_a_prompt_may_end_where_no_token_ends(short_run):
    """The space of "def " belongs to the next word: it is read again, and not written twice."""
    run, _ = short_run("transformer")
    _, tokenizer = load(run)
    context, reread, first = heal(tokenizer.encode("def "), tokenizer)
    assert reread == b" " and tokenizer.decode(context) == "def"
    assert first and all(tokenizer.token_bytes[i].startswith(b" ") for i in first) and len(first) > 1
    settings = {"max_tokens": 20, "temperature": 0.0, "top_k": None, "top_p": None, "seed": 0}
    assert heal([], tokenizer) == ([tokenizer.eos_id], b"", None)
    assert isinstance("".join(generate(run, prompt="def ", **settings)), str)


class Mumbler(torch.nn.Module):
    """Would rather write <pad> and <unk> than anything else."""

    def __init__(self, tokenizer):
        super().__init__()
        scores = torch.zeros(tokenizer.vocab_size).index_fill(0, torch.tensor([0, tokenizer.unknown_id]), 50.0)
        self.scores = torch.nn.Parameter(scores)

    def advance(self, tokens, state):
        return self.scores.expand(*tokens.shape, -1), state


@pytest.mark.parametrize("prompt", ["ab", "", "aß"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_text_is_never_written(monkeypatch, prompt, temperature):
    """The prompt "aß" ends in an <unk>, which is not read again: nothing else begins with it."""
    tokenizer = tokenizers.fit("char", ["ab ab"], 10)
    monkeypatch.setattr("quartet.commands.generate.load", lambda run: (Mumbler(tokenizer), tokenizer))
    settings = {"max_tokens": 50, "temperature": temperature, "top_k": 3, "top_p": 0.9, "seed": 0}
    pieces = generate(Run(Path("none")), prompt=prompt, **settings)
    assert set("".join(pieces)) <= set("ab ")


def test_a_multi_byte_character_is_never_split():
    text, row = "aé€😀中", Continuation(())
    for byte in text.encode():
        row.append(Token(byte, -1.0), bytes([byte]))
        assert text.startswith(row.text)
    assert row.text == text
    row.append(Token(0, -1.0), b"\xe4\xb8")
    assert row.text == text
    row.end("length")
    assert row.text == text + "�", "an unfinished one shows as a replacement"


def test_mistakes_of_generation_are_named_together(short_run):
    settings: dict[str, Any] = {
        "prompt": "",
        "max_tokens": 0,
        "temperature": -1.0,
        "top_k": 0,
        "top_p": 2.0,
        "seed": -1,
    }
    run, _ = short_run("mlp")
    for changes in ({}, {"max_tokens": "many", "temperature": "hot", "top_k": 1.5, "top_p": "all", "seed": None}):
        with pytest.raises(ValueError) as error:
            next(generate(run, **{**settings, **changes}))
        assert [line.split()[0] for line in str(error.value).splitlines()] == [*settings][1:]
    sound = {"max_tokens": 1, "temperature": 1, "top_k": None, "top_p": None, "seed": 0}
    with pytest.raises(ValueError, match="is not a language model"):
        next(generate(Run.open("latest"), **{**settings, **sound}))


def test_evaluate_names_a_wrong_split_and_changed_data(short_run):
    run, _ = short_run("mlp")
    with pytest.raises(ValueError, match="split must be val or test"):
        evaluate(run, "dev")
    stored = run.read("preprocessing.json")
    run.write("preprocessing.json", {**stored, "fingerprint": "of other data"})
    with pytest.raises(ValueError, match="the data have changed"):
        evaluate(run, "test")


# safety


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "quartet.run.os.system",
        "nothing",
    ],
)
def test_a_config_from_a_run_cannot_instantiate_what_is_not_allowed(short_run, tmp_path, target):
    run, _ = short_run("mlp")
    evil = OmegaConf.load(run.directory / "config.yaml")
    evil.model = {"_target_": target, "accepts": "table", "command": f"touch {tmp_path}/harm"}
    OmegaConf.save(evil, run.directory / "config.yaml")
    with pytest.raises(ValueError, match=f"_target_={target} is not allowed"):
        evaluate(run, "test")
    assert not (tmp_path / "harm").exists()


def test_a_pickle_in_a_checkpoint_is_not_run(short_run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harm",)

    run, _ = short_run("mlp")
    torch.save({"state_dict": {}, "bomb": Bomb()}, run.best_checkpoint)
    with pytest.raises(ValueError, match="holds more than tensors and plain data; it was not loaded"):
        evaluate(run, "test")
    assert not (tmp_path / "harm").exists()


# the user's own data, as the README shows it


def test_the_readme_s_own_files_train_and_are_found_again_from_another_directory(compose, tmp_path, monkeypatch):
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    commands = re.findall(r"^python scripts/train.py (?!-m)(.*data.path=own.*)$", text, re.M)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    (tmp_path / "elsewhere").mkdir()
    started = [
        command
        for command in dict.fromkeys(commands)  # one is there twice
        if "model.weights" not in command and "finetune.init_from" not in command
    ]
    assert len(started) == 3  # texts, pictures, a table
    for command in started:
        monkeypatch.chdir(tmp_path)
        small = (
            ["model.d_hidden=16"] if "model=rnn" in command else ["model.widths=[4,8]"] if "image" in command else []
        )
        run, result = create_and_train(compose(*shlex.split(command), *small, *SHORT, "callbacks=none"))
        assert result["status"] == "completed"
        monkeypatch.chdir(tmp_path / "elsewhere")  # data.path was relative
        assert evaluate(run, "test")["test/loss"] == pytest.approx(result["metrics"]["test/loss"], abs=1e-6)


# sweeps


def test_a_sweep_makes_a_run_for_each_combination(script, outputs):
    grid = ["optimizer.lr=1e-3,3e-3", "data.batch_size=32,64"]
    process = script("train", "-m", "model=mlp", "trainer=debug", "sweep.report=false", *grid)
    assert process.returncode == 0, process.stderr
    results = [json.loads(path.read_text()) for path in outputs.rglob("result.json")]
    assert len(results) == 4 and all(result["status"] == "completed" for result in results)
    configs = [OmegaConf.load(path) for path in outputs.glob("sweeps/*/*/config.yaml")]
    assert len({(c.optimizer.lr, c.data.batch_size) for c in configs}) == 4


def test_penalties_and_clipping_can_be_swept_and_a_failed_job_does_not_stop_the_others(script, outputs):
    grid = [
        "optimizer.weight_decay=0,0.1",
        "task.l1=0,1e-4",
        "task.label_smoothing=0,2",
        "trainer.gradient_clip_val=0.5",
    ]
    words = ["model=mlp", "trainer=debug", "callbacks.figures=null", "sweep.report=false"]
    process = script("train", "-m", *words, *grid)
    assert process.returncode == 1 and process.stderr.count("failed: task.label_smoothing must be") == 4
    results = [json.loads(path.read_text()) for path in outputs.rglob("result.json")]
    assert sorted(result["status"] for result in results) == ["completed"] * 4 + ["failed"] * 4


def test_perplexity_is_the_exponential_of_the_loss_and_bits_count_bytes(short_run):
    _, result = short_run("transformer", "data.tokenizer=byte", "data.vocab_size=300")
    metrics = result["metrics"]
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss"]), rel=1e-5)
    assert metrics["val/bits_per_byte"] == pytest.approx(metrics["val/loss"] / math.log(2), rel=0.02), (
        "one byte, one token"
    )


def test_a_precision_that_is_emulated_is_said_in_one_line(compose, tmp_path, monkeypatch, capsys):
    for fast, precision, said in ((False, "bf16-mixed", True), (True, "bf16-mixed", False), (False, "32-true", False)):
        monkeypatch.setattr(build, "is_fast", lambda *_, fast=fast: fast)
        build.build_trainer(compose("model=mlp", "trainer.accelerator=cpu", f"trainer.precision={precision}"), tmp_path)
        assert ("trainer.precision=bf16-mixed is slow here" in capsys.readouterr().out) == said
