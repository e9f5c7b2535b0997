"""A node is a call: what signatures say is checked; configs of older runs are read as today's."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pytest
from omegaconf import DictConfig, OmegaConf

from quartet import signatures
from quartet.build import build_optimizer, make, plain
from quartet.commands.evaluate import evaluate
from quartet.commands.train import create_and_train
from quartet.old_configs import ADDED, MOVED, upgrade
from quartet.signatures import PositiveInt, Probability, Rule

EVEN = Annotated[int, Rule("an even integer", lambda n: n % 2 == 0)]


class Network:
    def __init__(
        self,
        *,
        n_layers: PositiveInt,
        n_heads: PositiveInt | None,
        dropout: Probability,
        norm: Literal["rms", "layer"],
        widths: list[EVEN],
        bias: bool = True,
    ): ...


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_layers", 0, "model.n_layers must be an integer of at least 1, not 0"),
        ("n_layers", True, "model.n_layers must be an integer of at least 1, not True"),
        ("n_layers", 1.0, "model.n_layers must be an integer of at least 1, not 1.0"),
        ("n_heads", "two", "model.n_heads must be an integer of at least 1 or null, not 'two'"),
        ("dropout", 1, "model.dropout must be a probability: at least 0 and below 1, not 1"),
        ("norm", "batch", "model.norm must be one of rms, layer, not 'batch'"),
        ("widths", [2, 3], "model.widths must be a list, each item an even integer, not [2, 3]"),
        ("bias", 1, "model.bias must be true or false, not 1"),
        ("n_layer", 2, "model.n_layer: Network has no such argument, did you mean n_layers?"),
    ],
)
def test_each_argument_is_checked_by_its_annotation(name, value, message):
    sound = {"n_layers": 2, "n_heads": None, "dropout": 0.5, "norm": "rms", "widths": [2, 4]}
    assert list(signatures.problems(Network, sound, "model")) == []
    assert list(signatures.problems(Network, {**sound, name: value}, "model")) == [message]


def test_keywords_of_a_class_are_those_of_its_parent():
    class Wider(Network):
        def __init__(self, *, width: int, **keywords):
            super().__init__(**keywords)

    known = signatures.parameters(Wider)
    assert known.required == {"width", "n_layers", "n_heads", "dropout", "norm", "widths"} and not known.open_ended


# configs of older runs


def older(config: DictConfig) -> DictConfig:
    """The same config with the keys where they were before each node was a call."""
    old = OmegaConf.create(plain(config))
    for was, now in MOVED.items():
        value = OmegaConf.select(old, now)
        if value is not None:
            OmegaConf.update(old, was, value, force_add=True)
    for key in ADDED:
        del old[key]
    return old


@pytest.mark.parametrize("model", ["rnn", "image_small", "mlp"])
def test_an_older_config_is_read_as_todays(compose, model):
    today = compose(f"model={model}", "trainer=ddp")
    assert plain(upgrade(older(today))) == plain(today)


def test_an_older_run_is_evaluated_as_it_was(compose):
    run, result = create_and_train(compose("model=mlp", "trainer=debug", "callbacks=none"))
    (run.directory / "config.yaml").write_text(OmegaConf.to_yaml(older(run.config)))
    assert "accepts: table" in (run.directory / "config.yaml").read_text()
    assert evaluate(run, "test")["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-6)


# Hydra's own way to write a call


def test_partial_nodes_are_calls_too(compose):
    node = {**plain(compose("model=mlp").optimizer), "_partial_": True}
    network = make({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}, "model")
    assert type(build_optimizer(node, network)).__name__ == "AdamW"


def test_a_moved_key_says_its_new_name(script):
    said = script("train", "model=rnn", "model.init_from=latest").stderr
    assert "model.init_from: no such key any more; it is finetune.init_from now" in said


def test_a_removed_key_is_ignored_in_an_older_config_and_explained_on_the_command_line(compose, script):
    today = compose("model=rnn", "data=text")
    older_config = OmegaConf.create({**plain(today), "data": {**plain(today)["data"], "in_memory_mb": 16}})
    assert plain(upgrade(older_config)) == plain(today)
    said = script("train", "model=rnn", "data=text", "data.in_memory_mb=0").stderr
    assert re.search(r"data.in_memory_mb: no such key any more: .* mapped from the cache; leave it out", said)
