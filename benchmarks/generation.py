"""Tokens per second of a Transformer that generates, and what a token costs beside the matrix products it needs.

    python benchmarks/generation.py                       6 layers of width 384, 1,000 tokens: some ten minutes
    python benchmarks/generation.py --nanogpt PATH        beside nanoGPT, of which PATH is a clone
    python benchmarks/generation.py --batch 8 --threads 1 --tokens 200 --fast

All are timed in turn, round after round; a ratio is the median of the rounds with its smallest and largest. `products` is
a loop that does nothing but multiply by the weights: the least that a token can cost. The second table is about long
texts: milliseconds of a token near the beginning and near the end, and how much of the difference attention takes alone.
Weights are random. A processor without AVX-512 is imitated with ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
import torch.nn.functional as F

from quartet import build, sampling

PROJECT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 65  # characters, as in nanoGPT's Shakespeare
SETTINGS: dict[str, Any] = {"temperature": 0.8, "top_k": 50}


def network(model: str, given: argparse.Namespace) -> torch.nn.Module:
    """One of `conf/model`, in the sizes of the command line."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        node = build.plain(hydra.compose("train", [f"model={model}"]))["model"]
    sizes = {"n_layers": given.layers, "n_heads": given.heads, "d_model": given.width, "d_ff": 4 * given.width}
    sizes |= {"n_kv_heads": given.kv_heads, "dropout": 0.0}
    facts = {"vocab_size": VOCAB_SIZE, "context_length": given.context}
    return build.make({**node, **sizes}, "model", **facts).eval()


def steps(model: torch.nn.Module, given: argparse.Namespace, *, cache: bool) -> Iterator[None]:
    """The tokens of a batch, one after the other."""
    generators = [torch.Generator().manual_seed(row) for row in range(given.batch)]
    limits = {"max_tokens": given.tokens, "top_p": None}
    for _ in sampling.generate_batch(model, [0], generators=generators, cache=cache, **limits, **SETTINGS):
        yield


def products(given: argparse.Namespace) -> Iterator[None]:
    """The multiplications by the weights of one network, those of the attention left out."""
    width, inputs = given.width, {n * given.width: torch.randn(given.batch, n * given.width) for n in (1, 4)}
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    weights = [torch.randn(shape) for _ in range(given.layers) for shape in shapes] + [torch.randn(VOCAB_SIZE, width)]
    for _ in range(given.tokens):
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)
        yield


def attention(given: argparse.Namespace, length: int) -> float:
    """Milliseconds that the attention of a new token takes alone after `length` others, in every layer; of 20 the median."""
    head, kv_heads = given.width // given.heads, given.kv_heads or given.heads
    q = torch.randn(given.batch, kv_heads, given.heads // kv_heads, head)
    caches = [torch.randn(2, given.batch, kv_heads, given.context, head) for _ in range(given.layers)]
    others, times = products(given), []
    for _ in range(min(20, given.tokens)):
        next(others)  # the weights drive the keys and values out of the processor's cache, as they do in a network
        started = time.perf_counter()
        for keys, values in caches:
            F.scaled_dot_product_attention(q, keys[:, :, :length], values[:, :, :length])
        times.append(time.perf_counter() - started)
    return median(times) * 1000


def nanogpt(given: argparse.Namespace) -> Callable[[], Iterator[None]]:
    """Its `generate`, which yields no tokens: timed as a whole."""
    sys.path.insert(0, given.nanogpt)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    sizes = {"n_layer": given.layers, "n_head": given.heads, "n_embd": given.width, "block_size": given.context}
    model = GPT(GPTConfig(vocab_size=VOCAB_SIZE, dropout=0.0, bias=False, **sizes)).eval()

    def generate() -> Iterator[None]:
        model.generate(torch.zeros(given.batch, 1, dtype=torch.long), given.tokens, **SETTINGS)
        yield

    return generate


def milliseconds(tokens: Iterator[None]) -> list[float]:
    stamps = [time.perf_counter()]
    stamps += [time.perf_counter() for _ in tokens]
    return [(after - before) * 1000 for before, after in itertools.pairwise(stamps)]


def spread(values: list[float]) -> str:
    return f"{median(values):9.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 6, "width": 384, "heads": 6, "context": 1024}
    for name, default in {"tokens": 1000, "batch": 1, "threads": 2, "rounds": 3, **sizes}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kv-heads", type=int, help="of grouped-query attention; without, as many as heads")
    parser.add_argument("--nanogpt", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--fast", action="store_true", help="leave out what has no cache")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    # 1. what is timed, and rounds of it
    gpt2, modern = network("transformer_gpt2", given), network("transformer", given)
    kinds: dict[str, Callable[[], Iterator[None]]] = {
        "products": lambda: products(given),
        "transformer_gpt2": lambda: steps(gpt2, given, cache=True),
        "transformer": lambda: steps(modern, given, cache=True),
    }
    if not given.fast:
        kinds["gpt2, no cache"] = lambda: steps(gpt2, given, cache=False)
    if given.nanogpt:
        kinds["nanoGPT"] = nanogpt(given)
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    with torch.inference_mode():
        for number in range(given.rounds):
            for name, kind in kinds.items():
                times[name].append(milliseconds(kind()))
                print(f"round {number + 1}: {name}, {sum(times[name][-1]) / 1000:.1f} s", file=sys.stderr, flush=True)

        # 2. tokens a second, of all rows together
        print(f"{given.tokens} tokens, batch {given.batch}, {given.threads} threads, torch {torch.__version__}")
        speed = {name: [given.batch * given.tokens / sum(one) * 1000 for one in rows] for name, rows in times.items()}
        others = [name for name in ("products", "gpt2, no cache", "nanoGPT") if name in kinds]
        print(f"{'':18s}{'tokens a second':>28s}" + "".join(f"{f'/ {name}':>28s}" for name in others))
        for name, values in speed.items():
            ratios = [[a / b for a, b in zip(values, speed[other], strict=True)] for other in others]
            print(f"{name:18s}" + "".join(f"{spread(x):>28s}" for x in [values, *ratios]))

        # 3. the first and the last tenth, a shorter one for a text below 100 tokens
        tenth = max(given.tokens // 10, 1)
        early, late = attention(given, tenth // 2), attention(given, min(given.tokens, given.context) - tenth // 2)
        print(f"\n{'':18s}{'first tenth, ms':>18s}{'last tenth, ms':>18s}{'growth, ms':>14s}")
        print(f"{'attention alone':18s}{early:18.3f}{late:18.3f}{late - early:14.3f}")
        for name in ("transformer_gpt2", "transformer"):
            first = median(x for one in times[name] for x in one[1:tenth])
            last = median(x for one in times[name] for x in one[-tenth:])
            print(f"{name:18s}{first:18.3f}{last:18.3f}{last - first:14.3f}")


if __name__ == "__main__":
    main()
