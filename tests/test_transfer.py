"""Starting from trained weights: runs of ours, torchvision's files, a frozen backbone and its own learning rate."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models._api as torchvision_api
from omegaconf import DictConfig
from pytorch_lightning import Callback
from torch import nn
from torchvision import models

from quartet import build
from quartet.callbacks.freeze import Freeze, backbone_modules, backbone_parameters
from quartet.commands.evaluate import evaluate
from quartet.commands.train import create, create_and_train
from quartet.data.image.images import LabelledImages
from quartet.engine import weights
from quartet.engine.fit import prepare, train
from quartet.engine.weights import read_checkpoint
from quartet.models.image import TorchvisionClassifier
from quartet.run import Run, make_paths_absolute

QUIET = ["callbacks=none", "logger=none", "trainer.accelerator=cpu", "trainer.max_steps=-1", "trainer.max_epochs=1"]
TINY = {
    "image_small": ["model.widths=[4,8]", "data.batch_size=16"],
    "image": ["data.batch_size=16"],
    "transformer": ["model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.d_ff=32"],
    "transformer_gpt2": ["model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.d_ff=32"],
    "rnn": ["model.d_hidden=16", "model.d_embedding=10"],
}
TOPICS = ["data=stdlib_topics", "data.source.packages=[asyncio,email,xml]", "data.split=[0.5,0.25,0.25]"]
TEXT = ["data.context_length=32", "data.batch_size=8", "data.vocab_size=400"]


@pytest.fixture
def configure(compose, small_text, monkeypatch) -> Callable[..., DictConfig]:
    """configure("image_small", …, classes=4): a tiny experiment; images of the first `classes` digits only."""

    def tiny(model: str, *overrides: str, classes: int = 10) -> DictConfig:
        sizes = TINY[model] + ([] if model.startswith("image") else TEXT)
        quiet = [words for words in QUIET if not any(o.startswith(words.split("=")[0] + "=") for o in overrides)]
        config = compose(f"model={model}", *quiet, *sizes, *overrides)
        if model.startswith("image"):
            source: Any = build.locate(config.data.source._target_)
            monkeypatch.setattr(source, "load", lambda self: some_images(classes))
        return config

    return tiny


def some_images(classes: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % classes
    images = torch.randint(0, 256, (80, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return LabelledImages(images.numpy(), labels.numpy(), tuple(map(str, range(classes))))


def untrained_run(config: DictConfig) -> Run:
    """A run directory as training leaves it, with the weights of step 0 shaken, batch-norm statistics among them."""
    run = Run.create(config)
    _, task, *_ = prepare(run)
    for value in task.state_dict().values():  # in place, so that tied weights stay tied
        value.add_(torch.rand(value.shape) if value.is_floating_point() else 3)
    run.checkpoints.mkdir()
    torch.save({"state_dict": task.state_dict()}, run.checkpoints / "best.ckpt")
    return run


def weights_of(run: Run, name: str = "best.ckpt") -> dict[str, torch.Tensor]:
    state = torch.load(run.checkpoints / name, weights_only=True)["state_dict"]
    return {key.removeprefix("network."): value for key, value in state.items()}


def started(config: DictConfig) -> tuple[Any, Any]:
    """Data module and network at step 0."""
    make_paths_absolute(config)
    data, task, *_ = prepare(Run.create(config))
    return data, task.network


def parts(state: dict[str, torch.Tensor], head: str = "head.") -> tuple[dict, dict]:
    backbone = {name: value for name, value in state.items() if not name.startswith(head)}
    return backbone, {name: value for name, value in state.items() if name.startswith(head)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


# from a run of ours


@pytest.mark.parametrize(("model", "head"), [("image_small", "head."), ("image", "backbone.fc.")])
def test_other_classes_take_the_backbone_and_a_new_head(configure, model, head):
    source = untrained_run(configure(model))
    _, network = started(configure(model, f"finetune.init_from={source.directory}", classes=4))
    old, new = parts(weights_of(source), head), parts(network.state_dict(), head)
    assert same(old[0], new[0]) and len(new[0]) > 10
    assert any(name.endswith("running_mean") for name in new[0])
    assert all(value.shape[0] == 4 != old[1][name].shape[0] for name, value in new[1].items())


def test_the_new_head_is_the_one_of_a_fresh_start(configure):
    source = untrained_run(configure("image_small"))
    _, network = started(configure("image_small", f"finetune.init_from={source.directory}", classes=4))
    _, fresh = started(configure("image_small", classes=4))
    assert same(parts(network.state_dict())[1], parts(fresh.state_dict())[1])


def test_the_same_classes_keep_the_head(configure):
    source = untrained_run(configure("image_small"))
    _, network = started(configure("image_small", "finetune.init_from=latest"))
    assert same(weights_of(source), dict(network.state_dict()))


@pytest.mark.parametrize("model", ["transformer", "transformer_gpt2", "rnn"])
def test_a_classifier_takes_language_model_and_tokenizer(configure, model, capsys):
    source = untrained_run(configure(model))
    overrides = [*TOPICS, "data.tokenizer=char", f"finetune.init_from={source.directory}"]
    data, network = started(configure(model, *overrides))
    assert f"tokenizer: that of {source}" in capsys.readouterr().out
    assert data.preprocessing()["tokenizer"] == source.read("preprocessing.json")["tokenizer"]
    assert data.tokenizer.kind == "bpe" and data.spec.sizes["vocab_size"] == data.tokenizer.vocab_size
    old, new = weights_of(source), parts(network.state_dict())[0]
    assert same({name: old[name] for name in new}, new)
    assert {name for name in old if not name.startswith("head.")} == new.keys()
    assert network.state_dict()["head.weight"].shape[0] == 3, "topics"


def test_a_language_model_goes_on_with_its_head(configure):
    source = untrained_run(configure("rnn"))
    _, network = started(configure("rnn", "data=shakespeare", "finetune.init_from=latest"))
    assert same(weights_of(source), dict(network.state_dict()))


def test_the_run_names_its_source_wherever_it_is_opened(configure, tmp_path, monkeypatch):
    source = untrained_run(configure("image_small"))
    monkeypatch.chdir(source.directory.parent)
    config = configure("image_small", f"finetune.init_from={source.directory.name}")
    make_paths_absolute(config)
    assert Run.create(config).config.finetune.init_from == str(source.directory)


def test_evaluation_needs_no_source(configure):
    source = untrained_run(configure("image_small"))
    run, result = create_and_train(configure("image_small", f"finetune.init_from={source.directory}", classes=4))
    shutil.rmtree(source.directory)
    assert evaluate(run, "test")["test/loss"] == pytest.approx(result["metrics"]["test/loss"], abs=1e-6)


# what does not fit


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("image_small", ["model.widths=[4,6]"], r"stages.1.widen.0.weight is 8×4×3×3 there and 6×4×3×3 here, .* and 8 "
                                                r"more; what differs there: model.widths=\[4, 8\]$"),
        ("image_small", ["model.widths=[4,8,8]"], r"stages.2.widen.0.weight is not there, .*model.widths=\[4, 8\]$"),
        ("transformer", ["model.n_layers=1"], r"blocks.1.attention.query.weight is not here, .*model.n_layers=2$"),
        ("transformer_gpt2", ["data.context_length=16"], r"positions.weight is 32×16 there and 16×16 here; what differs "
                                                         r"there: context_length=32$"),
    ],
)  # fmt: skip
def test_misfits_are_named_with_what_to_change(configure, outputs, model, overrides, message):
    source = untrained_run(configure(model))
    with pytest.raises(ValueError, match=message) as error:
        create_and_train(configure(model, *overrides, f"finetune.init_from={source.directory}"))
    assert len(str(error.value).splitlines()) == 1
    assert len(list(outputs.rglob("config.yaml"))) == 1, "no run directory is left but the source"


def test_another_architecture_is_named_before_any_data_are_read(configure, monkeypatch):
    source = untrained_run(configure("rnn"))
    monkeypatch.setattr(build, "build_data", None)
    with pytest.raises(ValueError, match=r"finetune.init_from=.* is a RNN, this model a Transformer; use that model"):
        create_and_train(configure("transformer", f"finetune.init_from={source.directory}"))


def test_a_run_that_is_not_there(configure, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"finetune.init_from=gone is not a run directory .*; name a run, or latest"
    ):
        create_and_train(configure("rnn", "finetune.init_from=gone"))
    with pytest.raises(FileNotFoundError, match=r"no trained run below"):
        create_and_train(configure("rnn", "finetune.init_from=latest"))
    source = untrained_run(configure("rnn"))
    (source.checkpoints / "best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        create_and_train(configure("rnn", f"finetune.init_from={source.directory}"))


class Harm:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize("content", ["pickle", "torch", "torn"])
def test_a_hostile_or_damaged_checkpoint_is_not_loaded(configure, capsys, content):
    source = untrained_run(configure("image_small"))
    path = source.checkpoints / "best.ckpt"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Harm()))
    elif content == "torch":
        torch.save({"state_dict": {"network.x": Harm()}}, path)
    else:
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        ValueError,
        match=r"best.ckpt (is damaged|is not a checkpoint, or holds more than tensors and plain data); it was not loaded",
    ):
        create_and_train(configure("image_small", f"finetune.init_from={source.directory}"))
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("rnn", ["finetune.freeze=1"], r"finetune.freeze=1 would freeze a backbone that nothing has trained; give "
                                    r"finetune.init_from too"),
        ("image", ["finetune.freeze=1"], "give model.weights or finetune.init_from too"),
        ("image", ["finetune.freeze=0.5"], "finetune.freeze must be an integer of at least 0, not 0.5"),
        ("image", ["finetune.backbone_lr=-1"], "finetune.backbone_lr must be a number of at least 0, not -1"),
        ("rnn", ["finetune.init_from=3"], "finetune.init_from must be the directory of a run, or latest or null, not 3"),
        ("image", ["model.weights=DEFAULT", "finetune.init_from=a"], "model.weights and finetune.init_from both say"),
        ("image", ["model.weights=BEST"], "model.weights=BEST is unknown: resnet18 has IMAGENET1K_V1, DEFAULT; or name"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(configure, model, overrides, message):
    with pytest.raises(ValueError, match=message):
        build.check(configure(model, *overrides))


# frozen for a while


class Snapshots(Callback):
    """The network's state at the end of each epoch; an error before the step after `last_step`."""

    def __init__(self):
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.last_step = -1

    def on_train_batch_start(self, trainer, *_: Any):
        if trainer.global_step == self.last_step:
            raise InterruptedError

    def on_train_epoch_end(self, trainer, pl_module: Any):
        state = pl_module.network.state_dict()
        self.states[trainer.current_epoch] = {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("image_small", ["optimizer=adamw", "optimizer.weight_decay=0.1", "data.batch_size=8"]),
        ("image_small", ["optimizer=sgd", "optimizer.momentum=0.9", "task.l2=0.1", "finetune.backbone_lr=0.5"]),
        ("image_small", ["callbacks=ema", "callbacks.progress=null", "callbacks.figures=null"]),
        ("transformer", ["optimizer=muon", *TOPICS, "model.dropout=0.5"]),
        ("rnn", ["optimizer=muon", *TOPICS, "model.dropout=0.5"]),
    ],
)
def test_frozen_for_an_epoch_to_the_bit_and_free_after(configure, model, overrides, monkeypatch):
    source = untrained_run(configure(model))
    watch = Snapshots()
    made = build.build_callbacks
    monkeypatch.setattr(build, "build_callbacks", lambda *a: [*made(*a), watch])
    start = [f"finetune.init_from={source.directory}", "finetune.freeze=1", "trainer.max_epochs=2"]
    _, result = create_and_train(configure(model, *overrides, *start, classes=4))
    assert result["status"] == "completed"
    (first, head), (second, last_head) = (parts(watch.states[epoch]) for epoch in (0, 1))
    old = weights_of(source)
    assert same({name: old[name] for name in first}, first), "batch-norm statistics included"
    unmoved = [name for name in first if torch.equal(first[name], second[name])]
    assert not unmoved, f"still frozen: {unmoved}"
    assert not same(head, last_head)


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_a_resumed_run_stays_frozen_until_its_epoch(configure, steps, monkeypatch):
    """Four steps an epoch, two epochs frozen; resumed from the end of the first, within and from the end of the second."""
    source = untrained_run(configure("image_small"))
    watch = Snapshots()
    made = build.build_callbacks
    monkeypatch.setattr(build, "build_callbacks", lambda *a: [*made(*a), watch])
    start = [
        f"finetune.init_from={source.directory}",
        "finetune.freeze=2",
        "finetune.backbone_lr=0.1",
        "trainer.max_epochs=4",
    ]
    run, data = create(configure("image_small", *start, "callbacks.checkpoint.every_n_steps=1", classes=4))
    watch.last_step = steps + 1  # by then the state after `steps` has been saved
    with pytest.raises(InterruptedError):
        train(run, data)
    assert read_checkpoint(run.checkpoints / "last.ckpt")["global_step"] == steps
    watch.states.clear()
    watch.last_step = -1
    train(run)
    old = weights_of(source)
    for epoch, state in watch.states.items():
        assert same(parts(old)[0], parts(state)[0]) == (epoch < 2), f"epoch {epoch}"
        assert not same(parts(old)[1], parts(state)[1]), "the head learns"
    assert {1 if steps < 8 else 2, 2, 3} <= watch.states.keys()
    (optimizer,) = read_checkpoint(run.checkpoints / "last.ckpt")["optimizer_states"]
    rates = sorted({group["initial_lr"] for group in optimizer["param_groups"]})
    assert rates == pytest.approx([0.1 * rates[1], rates[1]])


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.cell = nn.BatchNorm1d(3), nn.GRU(3, 3)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))


def test_freezing_among_several_workers():
    """DDP waits for every gradient, so they are made and dropped; cuDNN's cells refuse to learn in evaluation mode."""
    network: Any = Cells()
    task: Any = SimpleNamespace(network=network)
    freeze, trainer = Freeze(epochs=1), SimpleNamespace(current_epoch=0, world_size=2)
    freeze.on_train_batch_start(trainer, task, None, 0)  # type: ignore[arg-type]
    assert not network.norm.training and network.cell.training and network.head[0].training
    for parameter in network.parameters():
        assert parameter.requires_grad
        parameter.grad = torch.ones_like(parameter)
    freeze.on_before_optimizer_step(trainer, task, None)  # type: ignore[arg-type]
    assert all(p.grad is None for p in backbone_parameters(network))
    assert all(p.grad is not None for p in network.head.parameters())
    trainer.current_epoch = 1
    freeze.on_train_batch_start(trainer, task, None, 0)  # type: ignore[arg-type]
    assert all(module.training for module in network.modules())
    assert set(backbone_modules(network)) == {network, network.norm}


# learning rates


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_the_backbone_has_its_own_rate_under_every_schedule(configure, optimizer):
    config = configure("transformer", *TOPICS, f"optimizer={optimizer}", "finetune.backbone_lr=0.1")
    _, task, *_ = prepare(Run.create(config))
    assert task.make_optimizer
    made = task.make_optimizer(task.network)
    grouped = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, task.network.parameters()))
    of_head = {id(p) for p in task.network.head.parameters()}
    scale = config.optimizer.get("adamw_scale", 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.5**step)
    for step in range(3):
        for group in made.param_groups:
            (in_head,) = {id(p) in of_head for p in group["params"]}
            expected = config.optimizer.lr * 0.5**step * (1.0 if in_head else 0.1)
            expected *= 1.0 if group.get("use_muon") else scale
            assert group["lr"] == pytest.approx(expected)
        made.step()
        schedule.step()


def test_the_usual_rate_leaves_the_groups_alone(configure):
    _, task, *_ = prepare(Run.create(configure("image_small")))
    assert task.make_optimizer and len(task.make_optimizer(task.network).param_groups) == 2


# torchvision's weights


@pytest.fixture
def publish(monkeypatch) -> Callable[..., dict[str, torch.Tensor]]:
    """publish("resnet18"): torchvision's site holds these random weights of a network of 1000 classes."""

    def put(name: str, **options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        state = models.get_model(name, weights=None, **options).state_dict()
        asked = {"check_hash": True, "weights_only": True, "map_location": "cpu"}

        def download(url: str, **settings: Any):
            assert settings == asked and url.startswith("https://")
            return state.copy()

        monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", download)
        return state

    return put


def pretrained(name: str, channels: int = 3, **changes: Any) -> TorchvisionClassifier:
    settings = {"name": name, "weights": "DEFAULT", "small_stem": "auto", "dropout": 0.0, "channels_last": True}
    network = TorchvisionClassifier(in_channels=channels, image_size=32, n_classes=4, **{**settings, **changes})
    weights.load_torchvision(network, name, "DEFAULT")
    return network


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("resnet18", "fc", {}),
        ("densenet121", "classifier", {}),
        ("mobilenet_v3_small", "classifier.3", {}),
        ("squeezenet1_1", "classifier.1", {}),
        ("googlenet", "fc", {"init_weights": False}),
    ],
)
def test_every_family_takes_torchvisions_weights(publish, name, head, options):
    state = publish(name, **options)
    own = pretrained(name).backbone.state_dict()
    taken = [key for key in own if not key.startswith(f"{head}.")]
    assert all(torch.equal(own[key], state[key]) for key in taken)
    left = {key.split(".")[0] for key in state.keys() - set(taken)}
    assert left <= {head.split(".")[0], "aux1", "aux2"}
    assert all(own[key].shape[0] == 4 for key in own.keys() - set(taken))


def test_densenet_files_of_2017_name_their_layers_otherwise(publish):
    state = publish("densenet121")
    key = "features.denseblock1.denselayer1.norm1.weight"
    value = torch.rand_like(state[key])
    del state[key]
    state[key.replace("norm1", "norm.1")] = value
    assert torch.equal(pretrained("densenet121").backbone.get_parameter(key), value)


def test_stem_and_channels_with_weights(publish):
    state = publish("resnet18")
    stem = state["conv1.weight"]
    assert torch.equal(pretrained("resnet18").backbone.get_parameter("conv1.weight"), stem), "auto keeps their stem"
    grey = pretrained("resnet18", channels=1).backbone.get_parameter("conv1.weight")
    torch.testing.assert_close(grey, stem.sum(1, keepdim=True))
    small = pretrained("resnet18", small_stem=True).backbone
    assert small.get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    assert torch.equal(small.get_parameter("layer4.1.conv2.weight"), state["layer4.1.conv2.weight"])


def test_training_downloads_and_evaluation_does_not(configure, publish, monkeypatch):
    publish("mobilenet_v3_small")
    overrides = ["model.name=mobilenet_v3_small", "model.weights=DEFAULT", "trainer.max_steps=1"]
    run, _ = create_and_train(configure("image", *overrides))
    monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", None)
    assert evaluate(run, "val")["val/loss"] > 0


def test_no_network_is_one_clear_message(configure, monkeypatch):
    def offline(*_: Any, **__: Any):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", offline)
    message = (
        r"model.weights=DEFAULT: cannot load https://\S+/resnet18-\w+.pth \(Name or service not known\); without a "
    )
    with pytest.raises(OSError, match=message + r"network bring the file .* give model.weights=<its path"):
        create_and_train(configure("image", "model.weights=DEFAULT"))


def test_weights_from_a_file(configure, publish, tmp_path, monkeypatch):
    state = publish("resnet18")
    torch.save(state, tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    config = configure("image", "model.weights=mine.pth")
    _, network = started(config)
    assert torch.equal(network.get_parameter("backbone.layer1.0.conv1.weight"), state["layer1.0.conv1.weight"])
    assert config.model.weights == str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model.weights=\S+/mine.pth: there is no such file"),
        (Harm(), r"mine.pth is not a checkpoint, or holds more than tensors and plain data"),
        ([1, 2], r"model.weights=\S+/mine.pth is not a file of weights as torchvision publishes them"),
        ({"conv1.weight": torch.zeros(3)}, r"model.weights=\S+ does not fit the network: conv1.weight is 3 there and "
                                           r"64×1×7×7 here, .* must be those of model.name=resnet18"),
    ],
)  # fmt: skip
def test_wrong_files_of_weights_are_named(configure, tmp_path, content, message):
    if content is not None:
        torch.save(content, tmp_path / "mine.pth")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        create_and_train(configure("image", f"model.weights={tmp_path}/mine.pth"))
