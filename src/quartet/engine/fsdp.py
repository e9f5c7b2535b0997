"""trainer=fsdp: weights, gradients and optimizer state in shares, one on each worker (FSDP2).

A checkpoint is what one device would have written: one file of plain tensors under the same keys, gathered on saving and
cut up again on loading. Zhao et al. 2023 (arXiv:2304.11277).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from quartet.system.lightning_compat import set_data_parallel_size, unwrap_optimizer


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the network sharded here and with checkpoints as of one device.

    Lightning's own are numbered otherwise (by the order of the network, not of the groups), so that a checkpoint of one
    device gives parameters the optimizer state of others.
    """

    lightning_module: Any

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        set_data_parallel_size(self)
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        # Lightning's own asks for `configure_model`
        task: Any = self.lightning_module
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(task)
        shard(task.network, self.device_mesh["data_parallel"])
        # after sharding: no device ever holds the whole network, and the optimizer gets the new parameters
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While gradients accumulate, each worker adds up its own; as DDP does, and at the price of whole gradients."""
        network: Any = self.lightning_module.network
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)

    def on_validation_start(self) -> None:
        # buffers (batch norm): each worker moves its own in training; all evaluate with those that are saved, as DDP does
        for buffer in self.lightning_module.network.buffers():
            torch.distributed.broadcast(buffer, src=0)

    on_test_start = on_validation_start

    # checkpoints
    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._whole(unwrap_optimizer(optimizer).state_dict())

    def _whole(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Shards gathered on the CPU of the first worker; the others keep none."""

        def gather(shard: DTensor) -> Tensor:
            whole = shard.full_tensor()
            return whole.cpu() if self.is_global_zero else torch.empty(0)

        return tree_map_only(DTensor, gather, tree)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        state = {name: _shard_like(value, own.get(name)) for name, value in saved.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # the state is kept by number, in the order of the groups
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {name: _shard_like(value, p) for name, value in saved["state"][number].items()}
                for number, p in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(network: nn.Module, mesh: Any) -> None:
    """Each block, then the rest, is gathered when it is used and freed after it."""
    # a second pass: test after fit
    if isinstance(network, FSDPModule):
        return
    # fully_shard refuses channels_last
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks if list(block.parameters())]
    for module in [*blocks, network]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if hasattr(network, "advance"):
        register_fsdp_forward_method(network, "advance")


def _shard_like(value: Any, like: Any) -> Any:
    """This worker's share of a whole tensor (no communication); what is not sharded there stays as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(device=like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
