"""Parameter groups, the Muon + AdamW pair, and learning-rate schedules as pure functions of the step.

Sources: Loshchilov & Hutter 2019, decoupled weight decay (arXiv:1711.05101); Jordan et al. 2024, Muon
(kellerjordan.github.io/posts/muon); Liu et al. 2025, "Muon is scalable" (arXiv:2502.16982), whose RMS rule lets one
learning rate serve matrices and vectors; Loshchilov & Hutter 2017, cosine (arXiv:1608.03983); Smith 2018, one cycle
(arXiv:1708.07120); Hu et al. 2024, warm-up-stable-decay (arXiv:2404.06395).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from quartet.system.hardware import is_fast

# parameter groups


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups that partition the trainable parameters: weights decay; norms, biases and embeddings do not."""
    decayed, spared = [], []
    embeddings = _embeddings(network)
    for _, parameter in _trainable(network):
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if decays else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return _assert_partition(network, [group for group in groups if group["params"]])


def muon_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `MuonAdamW`: hidden matrices go to Muon; embeddings, the last layer, convolutions and vectors to AdamW.

    Muon is defined for matrices between hidden layers (Jordan et al. 2024); torch's takes 2-D parameters only.
    """
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    kept_from_muon = _embeddings(network) | {id(module.weight) for module in last}
    groups = []
    for group in parameter_groups(network, weight_decay):
        for use_muon in (True, False):
            chosen = [p for p in group["params"] if (p.ndim == 2 and id(p) not in kept_from_muon) == use_muon]
            if chosen:
                groups.append({"params": chosen, "weight_decay": group["weight_decay"], "use_muon": use_muon})
    return _assert_partition(network, groups)


# what optimizers keep for each parameter, in its shape
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum")


def check_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError where the state in a checkpoint is not this optimizer's: torch would fail in its first step."""
    kept, groups = state["state"], state["param_groups"]
    numbers = [value for group in groups for value in group.values() if isinstance(value, float)]
    if not all(isinstance(group["lr"], float | int | Tensor) for group in groups) or not all(
        map(math.isfinite, numbers)
    ):
        raise ValueError("a learning rate or another setting of the optimizer is not a finite number")
    ids = [i for group in groups for i in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in zip(ids, parameters, strict=True):
        for name, value in kept.get(i, {}).items():
            if name in MOMENTS and (not isinstance(value, Tensor) or value.shape != parameter.shape):
                raise ValueError(
                    f"{name} of parameter {i} of the optimizer is not a tensor of {tuple(parameter.shape)}"
                )


def backbone_groups(network: Any, groups: list[dict[str, Any]], lr: float, scale: float) -> list[dict[str, Any]]:
    """Each group split in two: what belongs to `network.head`, then all else, whose rate is `lr * scale`.

    Schedules multiply the rate of every group, so the two rates keep their ratio.
    """
    of_head = {id(p) for p in network.head.parameters()}
    split = []
    for in_head, rate in ((True, {}), (False, {"lr": lr * scale})):
        for group in groups:
            chosen = [p for p in group["params"] if (id(p) in of_head) == in_head]
            if chosen:
                split.append({**group, "params": chosen, **rate})
    return _assert_partition(network, split)


def _trainable(network: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def _embeddings(network: nn.Module) -> set[int]:
    return {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}


def _assert_partition(network: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for _, p in _trainable(network)), "groups must hold each parameter once"
    return groups


# the optimizer pair


class Muon(Optimizer):
    """Nesterov momentum, made orthogonal by five Newton-Schulz steps (Jordan et al. 2024) and scaled to AdamW's RMS.

    The same steps as torch.optim.Muon, whose iteration is always in bfloat16: most CPUs emulate that type, which made
    training 25 times slower (docs/notes.md). Here it is in bfloat16 only if every worker's device is fast at it, and
    weights may be sharded: each update is gathered, because the iteration needs whole matrices.
    """

    def __init__(self, params: list[dict[str, Any]], *, lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._dtype: torch.dtype | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if self._dtype is None:
                    self._dtype = _iteration_dtype(p.device)
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonalize(whole(p.grad.lerp(buffer, momentum)), self._dtype).to(p.dtype)
                if isinstance(p, DTensor):  # every worker has the whole update and keeps its shard
                    update = distribute_tensor(update, p.device_mesh, p.placements, src_data_rank=None)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))  # AdamW's RMS (Liu et al. 2025, section 2.2)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U Vᵀ of the matrix U S Vᵀ, with singular values between about 0.7 and 1.2: five quintic Newton-Schulz steps.

    The coefficients rise as steeply at zero as they can (Jordan et al. 2024).
    """
    x = matrix.to(dtype, copy=True)
    x = x.T if x.size(0) > x.size(1) else x  # the smaller Gram matrix
    x.div_(x.norm().clamp(min=1e-7))  # largest singular value at most 1
    for _ in range(5):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if matrix.size(0) > matrix.size(1) else x


def _iteration_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if it is fast on the devices of all workers: they must compute the same update."""
    fast = is_fast(torch.bfloat16, device.type)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        agreed = torch.tensor(float(fast), device=device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
        fast = bool(agreed.item())
    return torch.bfloat16 if fast else torch.float32


class MuonAdamW(Optimizer):
    """Muon for hidden matrices and AdamW for all else, as one optimizer (Lightning's automatic loop drives only one).

    Both parts share this object's `param_groups` and `state`, so schedules, checkpoints and `zero_grad` see one
    optimizer. `params` are groups with a flag `use_muon` (see `muon_groups`). Muon's update is scaled to AdamW's RMS, so
    that rates are of one kind; AdamW's part runs at the rate times `adamw_scale`, and a sweep of `lr` moves both.
    """

    parameter_groups = staticmethod(muon_groups)

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        adamw_scale: float,
        weight_decay: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool = False,
    ):
        self._parts: list[Optimizer] = []
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "use_muon": False})
        muon = [group for group in self.param_groups if group["use_muon"]]
        rest = [group for group in self.param_groups if not group["use_muon"]]
        if muon:
            self._parts.append(Muon(muon, lr=lr, momentum=momentum))
        if rest:
            rest = [{**group, "lr": group["lr"] * adamw_scale} for group in rest]
            adamw = torch.optim.AdamW(rest, lr=lr * adamw_scale, betas=(betas[0], betas[1]), eps=eps, fused=fused)
            self._parts.append(adamw)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """Let the parts work on this object's groups and state."""
        for part in self._parts:
            use_muon = isinstance(part, Muon)
            part.param_groups = [group for group in self.param_groups if group["use_muon"] == use_muon]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


# what is computed of all weights, which workers may hold in shares (trainer=fsdp)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The L2 norm of all gradients, summed in float64: the same float32 number however many workers hold them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    shares = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    precision = torch.float32 if shares[0].device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    norms = torch._foreach_norm(shares, 2, dtype=precision)  # type: ignore[attr-defined]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if any(isinstance(g, DTensor) for g in gradients):
        total = norm.square()
        torch.distributed.all_reduce(total)
        norm = total.sqrt()
    return norm.float()


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients by one number, so that their norm is at most `largest` (Pascanu et al. 2013, arXiv:1211.5063)."""
    parameters = list(parameters)
    norm = gradient_norm(parameters) + 1e-6  # torch's own guard against a division by zero
    if norm.device.type == "cpu" and norm <= largest:  # elsewhere looking at it would make the processor wait
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, (largest / norm).clamp(max=1.0))  # type: ignore[attr-defined]


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


# schedules: (step, total_steps, settings) -> multiplier of the learning rate


class Schedule(LambdaLR):
    """torch's LambdaLR with one multiplier for all groups; its step is made every step, and torch's takes 27 µs."""

    def step(self, epoch: int | None = None) -> None:
        if epoch is not None or self.last_epoch < 0:  # the first one sets up what LambdaLR keeps
            super().step(epoch)
            return
        self._step_count += 1
        self.last_epoch += 1
        factor = self.lr_lambdas[0](self.last_epoch)
        self._last_lr = [base * factor for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def constant(step: int, total: int, *, warmup: float) -> float:
    """Linear warm-up over the share `warmup` of the steps, then 1."""
    return _ramp(step, warmup * total)


def cosine(step: int, total: int, *, warmup: float, final: float) -> float:
    """Linear warm-up, then half a cosine from 1 to `final`."""
    start = warmup * total
    if step < start:
        return _ramp(step, start)
    return _cosine_between(1.0, final, (step - start) / max(1.0, total - start))


def step(step: int, total: int, *, warmup: float, milestones: list[float], factor: float) -> float:
    """Warm-up, then times `factor` at each of the `milestones` (shares of the steps)."""
    passed = sum(step >= milestone * total for milestone in milestones)
    return _ramp(step, warmup * total) * factor**passed


def one_cycle(step: int, total: int, *, rise: float, start: float, final: float) -> float:
    """Cosine from `start` up to 1 over the share `rise` of the steps, then down to `final`."""
    peak = rise * total
    if step < peak:
        return _cosine_between(start, 1.0, step / max(1.0, peak))
    return _cosine_between(1.0, final, (step - peak) / max(1.0, total - peak))


def wsd(step: int, total: int, *, warmup: float, decay: float, final: float) -> float:
    """Warm-up, stable at 1, then linear to `final` over the last share `decay` of the steps."""
    remaining = (total - step) / max(1.0, decay * total)
    return _ramp(step, warmup * total) * (final + (1 - final) * min(1.0, max(0.0, remaining)))


def _ramp(step: int, length: float) -> float:
    return min(1.0, (step + 1) / length) if length >= 1 else 1.0


def _cosine_between(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
