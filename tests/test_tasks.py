"""Tasks alone: state that is carried, metrics by hand, weights, schedules that follow validations."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

from quartet.commands.train import create_and_train
from quartet.data.spec import Spec
from quartet.models.rnn import RNN
from quartet.models.transformer import Transformer
from quartet.tasks.base import members
from quartet.tasks.classification import Classification
from quartet.tasks.language_modeling import LanguageModeling
from quartet.tasks.regression import Regression

PLAIN = {"l1": 0.0, "l2": 0.0}


def language_model(order: str) -> LanguageModeling:
    torch.manual_seed(0)
    network = RNN(
        vocab_size=5, context_length=4, cell="gru", n_layers=2, d_embedding=6, d_hidden=6, dropout=0.0, token_dropout=0.0,
        tie_embeddings=False, bidirectional=False, pooling="mean",
    )  # fmt: skip
    spec = Spec(sizes={}, token_bytes=(0, 1, 2, 3, 4))
    return LanguageModeling(network=network, spec=spec, order=order, label_smoothing=0.0, **PLAIN).eval()


def batch_of(tokens: torch.Tensor) -> dict:
    return {"inputs": {"tokens": tokens[:, :-1]}, "target": tokens[:, 1:], "index": torch.arange(len(tokens))}


def test_carried_state_makes_two_windows_equal_to_one_long_one():
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(1))
    task = language_model("contiguous")
    whole = nn.functional.cross_entropy(task.network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    first = task.step(batch_of(tokens[:, :5]), "val")[0]
    second = task.step(batch_of(tokens[:, 4:]), "val")[0]
    assert (first + second).item() / 2 == pytest.approx(whole.item(), rel=1e-6)
    task.on_validation_epoch_start()
    assert task.step(batch_of(tokens[:, :5]), "val")[0] == first, "an epoch starts anew"


def test_carried_state_has_no_gradient_and_each_part_its_own():
    tokens = torch.randint(5, (3, 5))
    task = language_model("contiguous")
    task.step(batch_of(tokens), "val")
    assert "test" not in task.state and not task.state["val"][0].requires_grad
    task.step(batch_of(tokens[:2]), "val")  # the last batch of a split has fewer rows


def test_shuffled_windows_carry_nothing():
    tokens = torch.randint(5, (3, 5))
    task = language_model("shuffled")
    assert task.step(batch_of(tokens), "val")[0] == task.step(batch_of(tokens), "val")[0]
    assert task.state == {}


def test_bits_per_byte_by_hand(monkeypatch):
    tokens = torch.tensor([[1, 2, 3, 4, 1]])
    task = language_model("shuffled")
    loss = task.step(batch_of(tokens), "val")[0].item()
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    task.log_metrics("val")
    assert logged["val/loss"] == pytest.approx(loss)
    assert logged["val/bits_per_byte"] == pytest.approx(loss * 4 / math.log(2) / (2 + 3 + 4 + 1))
    assert logged["val/perplexity"] == pytest.approx(math.exp(loss))
    predicted = task.network(tokens[:, :-1]).argmax(-1)
    assert logged["val/accuracy"] == pytest.approx((predicted == tokens[:, 1:]).double().mean().item())
    assert {f"val/{name}" for name in task.METRICS} == logged.keys()


def test_training_steps_count_no_right_tokens(monkeypatch):
    """The search for the likeliest of thousands of tokens is left to validation and test."""
    searched = []
    monkeypatch.setattr(
        "quartet.tasks.language_modeling.argmax", lambda logits: searched.append(1) or logits.argmax(-1)
    )
    monkeypatch.setattr(LanguageModeling, "logging_due", False)
    task = language_model("shuffled")
    task.step(batch_of(torch.randint(5, (3, 5))), "train")
    assert not searched
    task.step(batch_of(torch.randint(5, (3, 5))), "test")
    assert searched


class Logits(nn.Module):
    """Gives back its input: the test decides the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def classification(**settings) -> Classification:
    spec = Spec(sizes={}, classes=("a", "b", "c"), class_counts=(60, 30, 10))
    chosen = {"network": Logits(), "loss": "cross_entropy", "label_smoothing": 0.0, "class_weights": None, **PLAIN}
    return Classification(spec=spec, **{**chosen, **settings})


def test_classification_metrics_are_scikit_learn_s(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(60, 3, generator=generator), torch.randint(3, (60,), generator=generator)
    task, logged = classification(), {}
    for part in (slice(0, 32), slice(32, 60)):
        task.step({"inputs": {"x": logits[part]}, "target": target[part], "index": torch.arange(60)[part]}, "test")
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    task.log_metrics("test")
    predicted = logits.argmax(-1)
    assert logged["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, target).item(), rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx((predicted == target).float().mean().item())
    assert logged["test/f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert logged["test/auroc"] == pytest.approx(roc_auc_score(target, logits.softmax(-1), multi_class="ovr"), rel=1e-5)
    assert logged["test_per_class/f1_of_b"] == pytest.approx(f1_score(target == 1, predicted == 1))
    assert {f"test/{name}" for name in task.METRICS} <= logged.keys()


def test_members_of_an_ensemble_have_a_loss_each(monkeypatch):
    """The mean of the losses in training, not the loss of the mean; targets may be probabilities."""
    logits, target = torch.randn(6, 4, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    each = torch.stack([nn.functional.cross_entropy(logits[:, k], target) for k in range(4)])
    task = classification()
    monkeypatch.setattr(Classification, "logging_due", False)
    batch = {"inputs": {"x": logits}, "target": target, "index": torch.arange(6)}
    assert task.step(batch, "train")[0].item() == pytest.approx(each.mean().item())
    flat, repeated = members(logits, torch.eye(3)[target])
    assert torch.equal(flat[5], logits[1, 1]) and torch.equal(repeated[5], torch.eye(3)[1])
    assert members(logits[:, 0], target)[1] is target


def test_members_of_a_regression_have_a_loss_each():
    outputs, target = torch.randn(6, 4, 1), torch.randn(6)
    flat, repeated = members(outputs, target)
    expected = (outputs.squeeze(-1) - target[:, None]).square().mean()
    assert nn.functional.mse_loss(flat.squeeze(-1), repeated).item() == pytest.approx(expected.item())


def test_sigmoids_and_an_ensemble_are_refused():
    network = Logits()
    network.n_members = 4  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"task\.loss=binary_cross_entropy and model\.ensemble do not go together"):
        classification(network=network, loss="binary_cross_entropy")


def test_automatic_class_weights_balance_the_classes():
    weights = classification(class_weights="auto").weights
    assert weights is not None
    assert (weights * torch.tensor([60.0, 30.0, 10.0])).tolist() == pytest.approx([100 / 3] * 3)


def test_regression_speaks_the_target_s_units(monkeypatch):
    spec = Spec(sizes={}, target_mean=100.0, target_std=20.0)
    task, logged = Regression(network=Logits(), spec=spec, loss="mean_squared_error", **PLAIN), {}
    batch = {
        "inputs": {"x": torch.tensor([[0.5], [-1.0]])},
        "target": torch.tensor([0.0, -1.0]),
        "index": torch.arange(2),
    }
    _, outputs = task.step(batch, "val")
    assert outputs["prediction"].tolist() == [110.0, 80.0] and outputs["target"].tolist() == [100.0, 80.0]
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    task.log_metrics("val")
    assert logged["val/mae"] == pytest.approx(5) and logged["val/rmse"] == pytest.approx(math.sqrt(50))


def test_plateau_cuts_the_rate_after_validations_that_are_no_better(compose):
    overrides = ["model=mlp", "model.hidden=[8]", "optimizer=sgd", "optimizer.lr=8.0", "scheduler=plateau"]
    overrides += [
        "scheduler.patience=0",
        "trainer.max_steps=40",
        "trainer.max_epochs=-1",
        "trainer.val_check_interval=5",
    ]
    run, _ = create_and_train(compose(*overrides, "trainer.log_every_n_steps=1", "callbacks.figures=null"))
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        rates = [float(row["optim/lr"]) for row in csv.DictReader(file) if row.get("optim/lr")]
    changes = [step for step in range(1, len(rates)) if rates[step] != rates[step - 1]]
    assert changes and all(step % 5 == 0 for step in changes), "only after a validation"
    assert all(rates[step] == rates[step - 1] / 2 for step in changes)


@pytest.mark.parametrize("kind", ["without a state", "with a state as long as its context"])
def test_contiguous_windows_need_a_state_that_goes_on(kind):
    network = nn.Identity()
    if kind != "without a state":
        network = Transformer(
            vocab_size=5, context_length=4, n_layers=1, n_heads=1, n_kv_heads=1, d_model=4, d_ff=4, dropout=0.0,
            positions="rotary", norm="rmsnorm", norm_position="pre", qk_norm=True, feed_forward="relu2", bias=False,
            tie_embeddings=False, pooling="mean", token_dropout=0.0,
        )  # fmt: skip
    spec = Spec(sizes={}, token_bytes=(0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"contiguous windows .* pairing\.window_order=shuffled"):
        LanguageModeling(network=network, spec=spec, order="contiguous", label_smoothing=0.0, **PLAIN)
