"""The layers of a network as a table: output shapes, parameters and FLOPs, for `summary=true` and `trainer=debug`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quartet.data.base import DataModule
from quartet.files import written
from quartet.say import columns, printable
from quartet.system.flops import StepFlops, counted, without_weights

FILE = "summary.txt"


def write_summary(directory: Path, network: nn.Module, data: DataModule, samples: int) -> None:
    """Print the table and write it into a run; `samples`: those of an optimizer step, over all workers."""
    text = layer_table(network, data.first_inputs(1)) + "\n\n" + totals(network, data, samples)
    with written(directory / FILE) as file:
        file.write(f"{text}\n".encode("utf-8", "backslashreplace"))
    print("\n".join(f"  {printable(line)}".rstrip() for line in text.splitlines()), flush=True)


def layer_table(network: nn.Module, inputs: dict[str, Tensor]) -> str:
    """A line for each module that computes something of its own, in the order in which one sample meets them.

    Parameters and FLOPs are those outside of its submodules, so that each column adds up to the whole; a tensor that
    several modules share is counted where it is first met.
    """
    # on the meta device no weights are needed; a network that looks at values gets them
    twin, inputs_there = without_weights(network).eval(), {name: x.to("meta") for name, x in inputs.items()}
    try:
        shapes, flops = _pass(twin, inputs_there)
    except Exception:  # whatever a network of the user's may do without values
        twin = copy.deepcopy(network).cpu().eval()
        shapes, flops = _pass(twin, {name: x.cpu() for name, x in inputs.items()})

    # what a module does itself: the whole, less what the modules that it calls do
    root, modules = type(twin).__name__, dict(twin.named_modules())
    own = {name: flops.get(f"{root}.{name}" if name else root, 0) for name in shapes}
    for name in shapes:
        above = name
        while above:
            above = above.rpartition(".")[0]
            if above in shapes:
                own[above] -= flops.get(f"{root}.{name}", 0)
                break
    rows, seen = [], set()
    for name, shape in shapes.items():
        parameters = [p for p in modules[name].parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in parameters}
        n = sum(p.numel() for p in parameters)
        if n or own[name] or not list(modules[name].children()):
            rows.append((name or root, type(modules[name]).__name__, shape, _count(n), _count(own[name])))
    return columns([("layer", "type", "output", "parameters", "FLOPs"), *rows], left=3)


def totals(network: nn.Module, data: DataModule, samples: int) -> str:
    """Parameters, and the FLOPs of an optimizer step with so many samples, forward and backward."""
    parameters = list(network.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    rows = [
        ("parameters", f"{sum(p.numel() for p in parameters):,}"),
        ("trainable parameters", f"{sum(p.numel() for p in trainable):,}"),
    ]
    try:
        of_batch = StepFlops(network).of(data.first_inputs(data.batch_size), network)
        flops = f"{round(of_batch * samples / data.batch_size):,}"
    except Exception:  # as above
        flops = "unknown"
    rows.append((f"FLOPs of a step of {samples:,} samples, forward and backward", flops))
    return columns(rows, left=1)


def _pass(network: nn.Module, inputs: dict[str, Tensor]) -> tuple[dict[str, str], dict[str, int]]:
    """Output shapes of the modules that are called, in the order of their calls, and FLOPs by module."""
    shapes: dict[str, str] = {}

    def enter(name: str) -> None:
        shapes.setdefault(name, "")  # its place is above those of its submodules

    def leave(name: str, output: Any) -> None:
        shapes[name] = _shape(output)

    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: enter(name))
        module.register_forward_hook(lambda module, _, output, name=name: leave(name, output))
    _, flops = counted(lambda: network(**inputs))
    return shapes, flops


def _shape(output: Any) -> str:
    """That of a tensor, or of the first one where there are several, as recurrent layers have their states."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return "×".join(map(str, output.shape)) if isinstance(output, Tensor) else ""


def _count(n: int) -> str:
    return f"{n:,}" if n else ""
