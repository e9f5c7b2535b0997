"""Schedules at their corners, parameter groups as partitions, Muon + AdamW as one optimizer."""

import math
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from quartet import optim


@pytest.mark.parametrize("total", [10, 100, 1000])
def test_schedules_at_their_corners(total):
    assert optim.constant(total // 2, total, warmup=0.1) == 1
    assert optim.cosine(0, total, warmup=0.0, final=0.0) == 1
    assert optim.cosine(total, total, warmup=0.1, final=0.2) == pytest.approx(0.2)
    assert optim.cosine(total // 2, total, warmup=0.0, final=0.0) == pytest.approx(0.5)
    assert optim.step(total // 2 - 1, total, warmup=0, milestones=[0.5, 0.75], factor=0.1) == 1
    assert optim.step(total // 2, total, warmup=0, milestones=[0.5, 0.75], factor=0.1) == pytest.approx(0.1)
    assert optim.step(total - 1, total, warmup=0, milestones=[0.5, 0.75], factor=0.1) == pytest.approx(0.01)
    assert optim.one_cycle(0, total, rise=0.3, start=0.04, final=0.0) == pytest.approx(0.04)
    assert optim.one_cycle(round(0.3 * total), total, rise=0.3, start=0.04, final=0.0) == pytest.approx(1)
    assert optim.one_cycle(total, total, rise=0.3, start=0.04, final=0.0) == pytest.approx(0)
    assert optim.wsd(round(0.7 * total), total, warmup=0.05, decay=0.3, final=0.0) == pytest.approx(1)
    assert optim.wsd(total, total, warmup=0.05, decay=0.3, final=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_warm_up_rises_linearly_and_never_starts_at_zero(name):
    settings = {"constant": {}, "cosine": {"final": 0.0}, "wsd": {"decay": 0.2, "final": 0.0}}[name]
    rates = [getattr(optim, name)(step, 100, warmup=0.1, **settings) for step in range(10)]
    assert rates == pytest.approx([(step + 1) / 10 for step in range(10)])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.norm(self.embedding(x)))))


def test_weights_decay_and_norms_biases_embeddings_do_not():
    net = Net()
    decayed, spared = optim.parameter_groups(net, weight_decay=0.1)
    assert {id(p) for p in decayed["params"]} == {id(m.weight) for m in (net.convolution, net.hidden, net.head)}
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))


def test_a_frozen_parameter_is_in_no_group():
    net = Net()
    net.hidden.weight.requires_grad_(False)
    grouped = {id(p) for group in optim.parameter_groups(net, 0.1) for p in group["params"]}
    assert id(net.hidden.weight) not in grouped


def test_a_tied_head_counts_as_embedding():
    net = Net()
    net.head.weight = net.embedding.weight
    decayed, _ = optim.parameter_groups(net, 0.1)
    assert all(p is not net.embedding.weight for p in decayed["params"])


def test_muon_takes_hidden_matrices_only():
    net = Net()
    muon = [p for group in optim.muon_groups(net, 0.1) if group["use_muon"] for p in group["params"]]
    assert [id(p) for p in muon] == [id(net.hidden.weight)]


def make_muon(net, lr=0.01):
    settings = {"adamw_scale": 3.0, "weight_decay": 0.1, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8}
    return optim.MuonAdamW(optim.muon_groups(net, 0.1), lr=lr, **settings)


def train_steps(net, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randint(0, 5, (8, 3), generator=generator)
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), x.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_muon_with_adamw_learns_and_follows_a_schedule():
    torch.manual_seed(0)
    net = Net()
    optimizer = make_muon(net)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    assert train_steps(net, optimizer, 1, seed=0) == pytest.approx(math.log(5), rel=0.6)
    scheduler.step()
    before = [p.detach().clone() for p in net.parameters()]
    train_steps(net, optimizer, 1, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)), "lr 0 must reach both parts"
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    assert train_steps(net, optimizer, 60, seed=2) < 0.5


def test_one_rate_moves_both_parts_of_muon():
    rates = {group["use_muon"]: group["lr"] for group in make_muon(Net(), lr=0.01).param_groups}
    assert rates == {True: 0.01, False: pytest.approx(0.03)}


def test_muon_with_adamw_resumes_exactly_from_its_state():
    torch.manual_seed(0)
    straight, first = Net(), Net()
    first.load_state_dict(straight.state_dict())
    optimizer = make_muon(straight)
    train_steps(straight, optimizer, 3, seed=0)
    train_steps(straight, optimizer, 3, seed=1)

    optimizer = make_muon(first)
    train_steps(first, optimizer, 3, seed=0)
    second = Net()
    second.load_state_dict(first.state_dict())
    resumed = make_muon(second, lr=99.0)  # the saved rate must win
    resumed.load_state_dict(optimizer.state_dict())
    train_steps(second, resumed, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def a_step(optimizer_class, dtype, monkeypatch, **settings):
    """A weight (24, 40) after three steps along the same gradients."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 40, generator=generator))
    monkeypatch.setattr(optim, "is_fast", lambda *_: dtype == torch.bfloat16)
    optimizer = optimizer_class([{"params": [weight], "weight_decay": 0.1}], lr=0.01, momentum=0.95, **settings)
    for _ in range(3):
        weight.grad = torch.randn(24, 40, generator=generator)
        optimizer.step()
    return weight.detach()


def test_muon_is_torchs_muon_in_bfloat16_and_close_to_it_in_float32(monkeypatch):
    theirs = a_step(torch.optim.Muon, None, monkeypatch, adjust_lr_fn="match_rms_adamw")
    assert torch.equal(a_step(optim.Muon, torch.bfloat16, monkeypatch), theirs)
    ours = a_step(optim.Muon, torch.float32, monkeypatch)
    assert not torch.equal(ours, theirs)
    assert torch.allclose(ours, theirs, atol=2e-3), "updates are about 0.002 an element, bfloat16 has 3 digits"


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optim.orthogonalize(matrix, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(matrix, torch.randn(shape, generator=torch.Generator().manual_seed(0))), "its argument is kept"


def test_the_dtype_of_the_iteration_is_found_by_timing(monkeypatch):
    """A processor whose bfloat16 products take 20 times as long uses float32; one that is quicker uses bfloat16."""
    from quartet.system import hardware

    clock, seconds = [0.0], {torch.float32: 1e-3}
    monkeypatch.setattr("time.process_time", lambda: clock[-1])
    monkeypatch.setattr(torch, "mm", lambda a, b: clock.append(clock[-1] + seconds[a.dtype]))
    for seconds[torch.bfloat16], fast in ((20e-3, False), (0.5e-3, True)):
        hardware.is_fast.cache_clear()
        assert hardware.is_fast(torch.bfloat16, "cpu") is fast
    hardware.is_fast.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_freed_memory_is_reused():
    """Tensors that glibc would map anew each time soon cost no page faults."""
    code = """
import resource, torch
from quartet.system.hardware import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**25).fill_(1.0)  # 128 MB: 32,768 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(4)))  # the heap grows in the first rounds
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 32768 / 10
