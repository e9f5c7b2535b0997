"""Floating-point operations (FLOPs) of a network, and how many a device could do in a second.

Counted are products of matrices, convolutions and attention, 2·m·n·k for a product, as the literature does (Chowdhery et
al. 2022, arXiv:2204.02311, appendix B): not norms, activations or the optimizer, causal attention as if nothing were
masked, and once each, however often checkpointing computes them. torch.compile changes none of it: what is counted is a
copy that is not compiled, without weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR = 1.1  # batches whose sizes differ by less than this factor are counted once: texts of many lengths

# the most FLOPs a second of matrix products without sparsity, in units of 1e12, by words of the device's name; from NVIDIA's
# data sheets and, for GeForce, its Ada and GA102 white papers (products of 16 bits that are summed in 32, as torch's are).
# The first that fits counts. Lightning has such a table (lightning_fabric.utilities.throughput), but in 2.6.6 its H200 is
# with sparsity, its H100 NVL is two cards, and it does not know the name "NVIDIA H200".
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250, "16": 2250, "tf32": 1120, "32": 75},
    "H200 NVL": {"bf16": 836, "16": 836, "tf32": 418, "32": 60},
    "H200": {"bf16": 989, "16": 989, "tf32": 495, "32": 67},
    "GH200": {"bf16": 989, "16": 989, "tf32": 495, "32": 67},
    "H100 NVL": {"bf16": 836, "16": 836, "tf32": 418, "32": 60},
    "H100 PCIE": {"bf16": 756, "16": 756, "tf32": 378, "32": 51},
    "H100": {"bf16": 989, "16": 989, "tf32": 495, "32": 67},  # "NVIDIA H100 80GB HBM3"
    "A100": {"bf16": 312, "16": 312, "tf32": 156, "32": 19.5},
    "A10G": {"bf16": 70, "16": 70, "tf32": 35, "32": 35},
    "A10": {"bf16": 125, "16": 125, "tf32": 62.5, "32": 31.2},
    "A40": {"bf16": 149.7, "16": 149.7, "tf32": 74.8, "32": 37.4},
    "L40S": {"bf16": 362, "16": 362, "tf32": 183, "32": 91.6},
    "L40": {"bf16": 181, "16": 181, "tf32": 90.5, "32": 90.5},
    "L4": {"bf16": 121, "16": 121, "tf32": 60, "32": 30.3},
    "RTX 4090": {"bf16": 165, "16": 165, "tf32": 82.6, "32": 82.6},
    "RTX 3090 TI": {"bf16": 80, "16": 80, "tf32": 40, "32": 40},
    "RTX 3090": {"bf16": 71, "16": 71, "tf32": 35.6, "32": 35.6},
    "V100 SXM2": {"16": 125, "32": 15.7},
    "V100 PCIE": {"16": 112, "32": 14},
    "T4": {"16": 65, "32": 8.1},
}
OTHERS = {"LAPTOP", "MIG", "D"}  # words of devices that are slower than their namesakes


def peak_flops(device: torch.device, precision: str, network: nn.Module) -> float | None:
    """The most FLOPs a second of this device in a precision of Lightning's; None if it is not known, as for every CPU."""
    if device.type != "cuda":
        return None
    words = re.split(r"[ -]", torch.cuda.get_device_name(device).upper())
    if OTHERS & set(words):
        return None
    name = f" {' '.join(words)} "
    peaks = next((peaks for part, peaks in PEAKS.items() if f" {part} " in name), {})
    kind = precision.partition("-")[0]
    if kind == "32":
        # TF32 has to be asked for in matrix products, and cuDNN uses it for convolutions unless it is told not to
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())
        asked = torch.get_float32_matmul_precision() != "highest" or (convolves and torch.backends.cudnn.allow_tf32)
        kind = "tf32" if asked and "tf32" in peaks else "32"
    return peaks[kind] * 1e12 if kind in peaks else None


class StepFlops:
    """FLOPs of one batch, forward and backward, counted when a size of batch is first met.

    Made of a network that holds whole weights; what is counted is a copy of its shapes.
    """

    def __init__(self, network: nn.Module):
        self.shapes = without_weights(network).train()
        self._counted: dict[
            tuple[int, int], float
        ] = {}  # (trainable parameters, numbers in the inputs) -> FLOPs a number

    def of(self, inputs: dict[str, Tensor], network: nn.Module) -> float:
        """`network` is the one that trains: what is frozen in it has no gradient to compute."""
        trains = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        size, trainable = sum(x.numel() for x in inputs.values()), sum(trains.values())
        for (n, other), share in self._counted.items():
            if n == trainable and other / NEAR < size < other * NEAR:
                return share * size
        for name, parameter in self.shapes.named_parameters():
            parameter.requires_grad_(trains[name])

        def step() -> None:
            self.shapes(**{name: x.to("meta") for name, x in inputs.items()}).float().sum().backward()

        total = counted(step)[0]
        self._counted[trainable, size] = total / size
        return total


def counted(work: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """FLOPs of a call: all of them, and those within each module by its name, the network's class in front."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.1 s

    with FlopCounterMode(display=False) as counter:
        work()
    of_modules = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return counter.get_total_flops(), of_modules


def without_weights(network: nn.Module) -> nn.Module:
    """A copy on the meta device, which computes shapes alone, with recurrent layers whose products can be counted."""
    memo: dict[int, Any] = {id(x): torch.empty_like(x, device="meta") for x in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    # hooks belong to who watches the network; one may hold the whole trainer
    hooks = [value for module in network.modules() for name, value in vars(module).items() if "_hooks" in name]
    memo |= {id(value): type(value)() for value in hooks}
    twin = copy.deepcopy(network, memo)
    for module in twin.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = partial(_recurrent_products, module, module.forward)
    return twin


def _recurrent_products(layer: Any, forward: Callable[..., Any], x: Any, state: Any = None) -> Any:
    """In place of an nn.RNNBase's forward: its products and output shapes, all time steps in one.

    torch counts nothing in the fused kernels, and takes seconds to count one time step after another.
    """
    if not isinstance(x, Tensor):  # a PackedSequence
        return forward(x, state)
    n_directions = 1 + layer.bidirectional
    for number in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[:n_directions]:
            names = [f"weight_{kind}_l{number}{suffix}" for kind in ("ih", "hh", "hr")]
            of_input, of_state = getattr(layer, names[0]), getattr(layer, names[1])
            gates = F.linear(x, of_input)  # (…, gates · H)
            hidden = F.linear(gates[..., : of_state.shape[1]], of_state)[..., : layer.hidden_size]
            outputs.append(F.linear(hidden, getattr(layer, names[2])) if layer.proj_size else hidden)
        x = torch.cat(outputs, dim=-1)
    rows = x.shape[:-2] if x.ndim == 2 else (x.shape[0 if layer.batch_first else 1],)
    last = x.new_zeros(layer.num_layers * n_directions, *rows, x.shape[-1] // n_directions)
    if layer.mode != "LSTM":
        return x, last
    return x, (last, x.new_zeros(*last.shape[:-1], layer.hidden_size))
