"""Files from elsewhere: each way of opening a run refuses what it should in one line, and executes nothing of it."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from quartet import build
from quartet.commands.evaluate import evaluate
from quartet.commands.generate import generate
from quartet.commands.train import create_and_train
from quartet.engine import weights
from quartet.engine.checkpoint import TRAINING, WEIGHTS
from quartet.engine.fit import train
from quartet.run import Run

SMALL = (
    "model=mlp model.hidden=[4] data.batch_size=64 trainer.accelerator=cpu trainer.max_steps=2 trainer.max_epochs=-1 "
)
SMALL += "callbacks=none"
TEXT = "model=rnn model.d_hidden=8 model.n_layers=1 data.context_length=16 data.batch_size=4 trainer.accelerator=cpu "
TEXT += "trainer.max_steps=2 trainer.max_epochs=-1 callbacks=none"
GENERATION: Any = {"prompt": "a", "max_tokens": 1, "temperature": 0.0, "top_k": None, "top_p": None, "seed": 0}


class Bomb:
    """Leaves a file where it goes off; `harm` is where."""

    def __init__(self, harm: Path):
        self.harm = harm

    def __reduce__(self):
        return os.system, (f"touch {self.harm}",)


@pytest.fixture
def harm(tmp_path):
    """A file that nobody may make."""
    yield tmp_path / "harm"
    assert not (tmp_path / "harm").exists(), "something was executed"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("trained")}


@pytest.fixture
def run(trained, compose, tmp_path, small_text):
    """run() -> an interrupted run of two steps of a table; run("text") of a language model. Trained once, copied."""

    def copy(kind: str = "table") -> Run:
        original = trained["folder"] / kind
        if not original.exists():
            config = compose(*(SMALL if kind == "table" else TEXT).split(), f"run.dir={original}")
            create_and_train(config)
            Run(original).write("result.json", {"status": "interrupted"})
        return Run(shutil.copytree(original, tmp_path / f"copy of {kind}"))

    return copy


# the ways of opening


def resume(run: Run, compose) -> None:
    train(Run.open_for_resume(str(run.directory)))


def score(run: Run, compose) -> None:
    evaluate(Run.open(str(run.directory)), "test")


def begin_from(run: Run, compose) -> None:
    create_and_train(compose(*TEXT.split(), f"finetune.init_from='{run.directory}'"))


def write(run: Run, compose) -> None:
    list(generate(Run.open(str(run.directory)), **GENERATION))


OPENINGS: dict[str, tuple[str, str, Callable[[Run, Any], None]]] = {
    "evaluate": ("table", "best.ckpt", score),
    "generate": ("text", "best.ckpt", write),
    "resume, best": ("table", "best.ckpt", resume),
    "resume, last": ("table", "last.ckpt", resume),
    "init_from": ("text", "best.ckpt", begin_from),
}


def refusal(open_it: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        open_it(*arguments)
    assert "\n" not in str(error.value), "one line"
    return str(error.value)


def change(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    how(checkpoint)
    torch.save(checkpoint, path)


def flip(path: Path, position: int, bit: int = 4) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def weight_position(path: Path) -> int:
    """A byte within the numbers of a weight."""
    weights = torch.load(path, weights_only=True)["state_dict"].values()
    return path.read_bytes().index(max(weights, key=torch.numel).numpy().tobytes()) + 9


PICKLE, DAMAGED = (
    "is not a checkpoint, or holds more than tensors and plain data; it was not loaded",
    "is damaged; it was not",
)
CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a bomb": (lambda path, harm: path.write_bytes(pickle.dumps(Bomb(harm))), PICKLE),
    "a bomb beside the weights": (lambda path, harm: change(path, lambda c: c.update(bomb=Bomb(harm))), PICKLE),
    "a bomb among the weights": (lambda path, harm: change(path, lambda c: c["state_dict"].update(x=Bomb(harm))), PICKLE),
    "a bomb in the optimizer": (lambda path, harm: change(path, lambda c: c.update(optimizer_states=[Bomb(harm)])), PICKLE),
    "a bomb in hyperparameters": (lambda path, harm: change(path, lambda c: c.update(hyper_parameters=Bomb(harm))), PICKLE),
    "a text": (lambda path, harm: path.write_text("no checkpoint"), PICKLE),
    "truncated": (lambda path, harm: os.truncate(path, path.stat().st_size * 2 // 3), DAMAGED),
    "empty": (lambda path, harm: path.write_bytes(b""), DAMAGED),
    "a flipped bit": (lambda path, harm: flip(path, weight_position(path)), DAMAGED),
    "a list": (lambda path, harm: torch.save([1, 2], path), "is not a checkpoint of a run: it has no state_dict"),
    "no weights": (lambda path, harm: change(path, lambda c: c.pop("state_dict")), "run: it has no state_dict; restore"),
    "texts for weights": (lambda path, harm: change(path, lambda c: c.update(state_dict={"a": "b"})), "no tensors as state"),
}  # fmt: skip


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_hostile_checkpoint_is_refused_by_each_way_of_opening(run, compose, harm, opening, tmp_path):
    kind, name, open_it = OPENINGS[opening]
    good = run(kind)
    for what, (spoil, message) in CHECKPOINTS.items():
        path = good.checkpoints / name
        original = path.read_bytes()
        spoil(path, harm)
        before = snapshot(good)
        said = refusal(open_it, good, compose)
        assert str(path) in said and message in said, what
        assert snapshot(good) == before, f"{what}: the run is as it was"
        path.write_bytes(original)
    if opening != "init_from":
        open_it(good, compose)  # what was refused was the file, not the run


def snapshot(run: Run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("opening", ["resume, last", "resume, best", "evaluate"])
def test_another_network_is_refused_with_the_first_misfits(run, compose, opening):
    _, name, open_it = OPENINGS[opening]
    other, _ = create_and_train(compose(*SMALL.split(), "model.hidden=[5,5]"))
    good = run()
    shutil.copy(other.checkpoints / name, good.checkpoints / name)
    said = refusal(open_it, good, compose)
    assert f"{name} is of another network: network.layers.0.0.weight is 5×30 there and 4×30 here, " in said
    assert said.endswith("more; restore the run's own, or train again")


@pytest.mark.parametrize("part", [*WEIGHTS, *TRAINING])
def test_a_last_checkpoint_that_lacks_a_part(run, compose, part):
    """Missing, of another type, or empty where the part is a container."""
    good = run()
    whole = torch.load(good.checkpoints / "last.ckpt", weights_only=True)
    empty = [type(whole[part])()] if isinstance(whole[part], dict | list) else []
    for changed in ({}, {part: None}, *({part: nothing} for nothing in empty)):
        rest = {name: value for name, value in whole.items() if name != part}
        torch.save(rest | changed, good.checkpoints / "last.ckpt")
        assert f"last.ckpt is not a checkpoint of a run: it has no {part};" in refusal(resume, good, compose)


WRONG = {
    "an optimizer without groups": lambda c: c["optimizer_states"][0].update(param_groups=[]),
    "no progress": lambda c: c["loops"].update(fit_loop=1),
    "numbers for callbacks": lambda c: c.update(callbacks=dict.fromkeys(c["callbacks"], 3)),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_last_checkpoint_of_other_contents_does_not_fit(run, compose, what):
    good = run()
    change(good.checkpoints / "last.ckpt", WRONG[what])
    assert "last.ckpt does not fit the run (" in refusal(resume, good, compose)


def test_a_bit_flipped_anywhere_is_noticed_or_changes_nothing(run):
    """In the numbers, the pickle, the directory of the file: what is loaded is what was saved, or nothing is."""
    path = run().checkpoints / "last.ckpt"
    whole, size, draw = torch.load(path, weights_only=True), path.stat().st_size, random.Random(0)
    refused = 0
    for position in [*range(0, 600, 7), *range(size - 600, size, 7), *(draw.randrange(size) for _ in range(200))]:
        bit = draw.randrange(8)
        flip(path, position, bit)
        try:
            assert same(weights.read_checkpoint(path), whole), position
        except ValueError as error:
            assert "last.ckpt is" in str(error) and "it was not loaded" in str(error)
            refused += 1
        flip(path, position, bit)
    assert refused > 100


def same(here: Any, there: Any) -> bool:
    if isinstance(here, dict) and isinstance(there, dict):
        return here.keys() == there.keys() and all(same(here[key], there[key]) for key in here)
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(map(same, here, there))
    return torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there


# configs


TARGETS = ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.hub.load", "quartet.run.os.system"]
TARGETS += [
    "quartet.data.text.sources.Path",
    "quartet.engine.checkpoint.remove_leftovers",
    "quartet.commands.train.create",
    "3",
    "",
]
PLACED = ["model", "data", "task", "optimizer", "scheduler", "trainer", "callbacks.x", "logger.x", "data.source"]
READERS = {
    "evaluate": ("table", score),
    "resume": ("table", resume),
    "generate": ("text", write),
    "init_from": ("text", begin_from),
}


def reconfigure(run: Run, key: str, value: Any) -> None:
    config = OmegaConf.load(run.directory / "config.yaml")
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    OmegaConf.save(config, run.directory / "config.yaml")


@pytest.mark.parametrize("place", PLACED)
def test_a_target_that_is_not_allowed(run, compose, harm, place):
    """In a group that a way of opening builds, and in those that it does not."""
    good = run()
    for target in TARGETS:
        reconfigure(
            good, place, {"_target_": target, "command": f"touch {harm}", "accepts": "table", "provides": "table"}
        )
        for open_it in (score, resume):
            assert f"_target_={target} is not allowed" in refusal(open_it, good, compose)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_config_checks_all_of_it(run, compose, harm, reader):
    kind, open_it = READERS[reader]
    good = run(kind)
    reconfigure(good, "callbacks.x", {"_target_": "os.system", "command": f"touch {harm}"})
    said = refusal(open_it, good, compose)
    assert "config.yaml: _target_=os.system is not allowed: nothing of that name belongs there" in said


def test_what_is_allowed_in_one_place_is_not_in_another():
    progress, logger = "quartet.callbacks.progress.progress", "pytorch_lightning.loggers.CSVLogger"
    wrong = [("callbacks", "quartet.callbacks.metrics_file.MetricsFile"), ("model", "pytorch_lightning.Trainer")]
    wrong += [("logger", "quartet.models.mlp.MLP"), ("data", progress), ("task", "torch.nn.Linear")]
    for place, target in [*wrong, (None, logger), (None, progress)]:
        with pytest.raises(ValueError, match=f"_target_={target} is not allowed"):
            build.locate(target, place)


LIGHTNING = "pytorch_lightning."
SAVES = {"_target_": LIGHTNING + "callbacks.ModelCheckpoint"}
PATHS = [
    ("callbacks.x", {**SAVES, "dirpath": "/somewhere"}, "dirpath=/somewhere"),
    ("callbacks.x", {**SAVES, "dirpath": "here"}, "dirpath=here"),  # would be the working directory's
    ("callbacks.x", {**SAVES, "filename": "../../x"}, "filename=../../x"),
    ("callbacks.x", {**SAVES, "filename": "~/x"}, "filename=~/x"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.TensorBoardLogger", "name": "../.."}, "name=../.."),
    ("logger.x", {"_target_": LIGHTNING + "loggers.TensorBoardLogger", "version": "a/../../../b"}, "version=a/../../../b"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.TensorBoardLogger", "filename_suffix": "/../x"}, "filename_suffix=/../x"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.CSVLogger", "name": "/etc"}, "name=/etc"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.CSVLogger", "save_dir": "x"}, "save_dir=x"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.MLFlowLogger", "tracking_uri": "x"}, "tracking_uri=x"),
    ("logger.x", {"_target_": LIGHTNING + "loggers.MLFlowLogger", "run_id": "http://there"}, "run_id=http://there"),
    ("trainer.default_root_dir", "elsewhere", "default_root_dir=elsewhere"),
    ("trainer.strategy", ["..\\x"], "strategy.0=..\\x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "said"), PATHS)
def test_a_path_that_climbs_out_of_the_run(run, compose, key, value, said, tmp_path):
    good = run()
    reconfigure(good, key, value)
    before = set(tmp_path.rglob("*"))
    for open_it in (score, resume):
        assert f"{said} climbs out of the run, which holds all" in refusal(open_it, good, compose)
    assert set(tmp_path.rglob("*")) == before


def test_lightning_s_parts_may_be_used_within_the_run(run, compose):
    good = run()
    reconfigure(good, "logger.x", {"_target_": LIGHTNING + "loggers.CSVLogger", "name": "csv", "version": "1/a..b"})
    reconfigure(good, "callbacks.x", {**SAVES, "filename": "{epoch}-own"})
    build.check(good.config)


@pytest.mark.parametrize("link", ["checkpoints/best.ckpt", "checkpoints", "error.txt", "metrics.tmp"])
def test_a_link_that_leads_out_of_the_run(run, compose, tmp_path, link):
    """What training writes there would replace files of somebody else; reading there is refused with it."""
    good, target = run(), tmp_path / "mine"
    path = good.directory / link
    if path.exists():
        path.rename(target)
    else:
        target.write_text("precious")
    path.symlink_to(target)
    for open_it in (score, resume):
        assert f"{path} climbs out of the run, to {target}; " in refusal(open_it, good, compose)


def test_a_link_within_the_run_is_followed(run, compose):
    good = run()
    (good.checkpoints / "best.ckpt").rename(good.checkpoints / "step 2.ckpt")
    (good.checkpoints / "best.ckpt").symlink_to("step 2.ckpt")
    score(good, compose)


CONFIGS = [
    ("", "not the config of a run"),
    ("- a\n- b", "not the config of a run"),
    ("some text", "not the config of a run"),
    ("run: 3", "not the config of a run"),
    ("a: [1, 2", "damaged or not plain data (while parsing a flow sequence)"),
    ("a: 1\na: 2", "damaged or not plain data (while constructing a mapping)"),
    ("a: !!python/object/apply:os.system ['touch HARM']", "not plain data (could not determine a constructor for the tag"),
    ("a: !!python/name:os.system", "not plain data (could not determine a constructor for the tag"),
    ("a: &x [*x]", "damaged or not plain data (it refers to parts of itself with & and *)"),
    ("a: !!python/object/apply:pathlib.PosixPath [x]", "damaged or not plain data (a PosixPath is not a text or number)"),
    ("a: {b: [!!binary eA==]}", "damaged or not plain data (a bytes is not a text or number)"),
    ("? !!binary eA==\n: 1", "damaged or not plain data ("),
    ("a: 2024-01-01", "not the config of a run"),
    ('"a\\nerror: b": 1', "damaged or not plain data (the key 'a\\nerror: b' is not plain text)"),
    ("a: 1\n" + "#" * 1_000_000, "damaged or not plain data (it has more than 1,000,000 bytes)"),
    ("run: {name: x}\nseed: 0", "is not the config of a run (Missing key"),
    ("run: {name: x}\na: \x00", "damaged or not plain data ("),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), CONFIGS)
def test_a_config_that_is_none(run, compose, harm, content, message):
    good = run()
    (good.directory / "config.yaml").write_text(content.replace("HARM", str(harm)))
    for open_it in (score, resume):
        said = refusal(open_it, good, compose)
        assert f"{good.directory / 'config.yaml'} is " in said and message in said and "restore the file" in said


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "a ${run.name}", "${outputs:}", "${oc.create:{a:1}}"])
def test_a_config_that_refers_to_something(run, compose, value):
    """A resolver would put what this machine knows into a file; a resolved config has no references."""
    good = run()
    for key in ("run.name", "seed", "callbacks.x"):
        path = good.directory / "config.yaml"
        original = path.read_text()
        reconfigure(good, key, {"_target_": value} if key == "callbacks.x" else value)
        for open_it in (score, resume):
            assert "config.yaml refers to other values with ${…}" in refusal(open_it, good, compose)
        path.write_text(original.replace("name: ", 'name: "\\x24{oc.env:HOME}"\n  other: ', 1))  # an escaped $
        assert "refers to other values" in refusal(score, good, compose)
        path.write_text(original)


def test_settings_that_nobody_takes(run, compose):
    good = run()
    for place in (
        "callbacks.checkpoint",
        "callbacks.finite_loss",
        "logger.csv",
        "model",
        "data",
        "trainer",
        "optimizer",
    ):
        path = good.directory / "config.yaml"
        original = path.read_text()
        reconfigure(good, f"{place}.nonsense", 1)
        for open_it in (score, resume):
            assert refusal(open_it, good, compose).endswith("has no such argument")
        path.write_text(original)


# other files


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b'{"spec": 3}', b"null"]
)
def test_a_preprocessing_that_is_none(run, compose, content):
    good = run()
    (good.directory / "preprocessing.json").write_bytes(content)
    for open_it in (score, resume):
        said = refusal(open_it, good, compose)
        assert "preprocessing.json is " in said and said.endswith("or train again")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_result_that_is_none(run, compose, content, outputs):
    """Named where the run is; another run is not held up by it."""
    good = run()
    (good.directory / "result.json").write_bytes(content)
    assert "result.json is " in refusal(resume, good, compose)
    outputs.mkdir()
    shutil.copytree(good.directory, outputs / "damaged")
    with pytest.raises(FileNotFoundError, match="was interrupted or killed; name one"):
        Run.open_for_resume("latest")


@pytest.mark.parametrize(
    "what", [name for name in CHECKPOINTS if name not in ("no weights", "texts for weights", "a flipped bit")]
)
def test_a_file_of_weights(compose, harm, tmp_path, what):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(3)}, "optimizer_states": []}, path)
    CHECKPOINTS[what][0](path, harm)
    settings = "model=image data.batch_size=8 trainer.accelerator=cpu"
    said = refusal(create_and_train, compose(*settings.split(), f"model.weights='{path}'"))
    assert str(path) in said and (CHECKPOINTS[what][1] in said or "is not a file of weights as torchvision" in said)


# a real command line


@pytest.mark.parametrize(("command", "name"), [("evaluate run=", "best.ckpt"), ("train resume=", "last.ckpt")])
def test_the_command_line_says_it_in_one_line(run, script, harm, command, name):
    good = run()
    change(good.checkpoints / name, lambda checkpoint: checkpoint.update(x=Bomb(harm)))
    words = command.split()
    process = script(words[0], f"{words[1]}'{good.directory}'")
    assert process.returncode == 1
    assert process.stderr == f"error: {good.checkpoints / name} {PICKLE}\n"


def test_where_machines_meet_is_said_again(run, script):
    """Who answers there is believed: an address in a file from elsewhere is not enough."""
    good = run()
    for key, value in (("num_nodes", 2), ("rendezvous", "elsewhere:1")):
        reconfigure(good, f"trainer.{key}", value)
    process = script("train", f"resume='{good.directory}'")
    assert process.returncode == 1
    assert process.stderr.endswith(
        "trains on 2 machines; say again where they meet, such as workers.rendezvous=elsewhere:1\n"
    )
