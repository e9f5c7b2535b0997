"""Laws that every network keeps, as fixtures; and the values of a file under conf/model."""

from __future__ import annotations

import pathlib

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

CONF = pathlib.Path(__file__).parents[2] / "conf" / "model"


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    torch.manual_seed(0)


@pytest.fixture
def conf_values():
    """The arguments in conf/model/<name>.yaml."""

    def read(name: str) -> dict:
        values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml").model, resolve=True)
        assert isinstance(values, dict)
        return {key: value for key, value in values.items() if key != "_target_"}

    return read


@pytest.fixture
def parameters_without_gradient():
    """Names of the parameters that one backward pass leaves without a gradient, or with zeros only."""

    def names(network: nn.Module, loss: Tensor) -> list[str]:
        loss.backward()
        return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]

    return names


@pytest.fixture
def assert_compiles():
    """Compiling in place keeps the state-dict keys and the outputs."""

    def check(network: nn.Module, *inputs: Tensor) -> None:
        network.eval()
        keys, outputs = list(network.state_dict()), network(*inputs)
        network.compile(backend="eager")
        torch.testing.assert_close(network(*inputs), outputs)
        assert list(network.state_dict()) == keys

    return check
