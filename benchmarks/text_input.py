"""A large text from disk: how long until it trains, how much memory it takes, and whether the loader keeps up.

    python benchmarks/text_input.py                 1,000 MB: some ten minutes, most of them the first tokenisation
    python benchmarks/text_input.py --size 200      megabytes

Each start is a process of its own with a cache in a temporary folder. The text is the standard library's, repeated with
other names, so that documents differ. `import` is the memory of the libraries alone; what a text of 5 MB takes beyond that
is in the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
SETTINGS = ["data=text", "callbacks=none", "logger=none", "model.d_model=32", "model.n_layers=1", "model.n_heads=2",
            "model.d_ff=64"]  # fmt: skip
STEPS = 20  # of the smallest network, timed


def write_corpus(folder: Path, megabytes: float) -> None:
    """Files of the standard library, over and over; each round gives every fifth word another ending."""
    from quartet.data.text.sources import StandardLibrary

    documents, written = StandardLibrary().documents(), 0
    for turn in count():
        for document in documents:
            if written >= megabytes * 1e6:
                return
            text = re.sub(r"\b(\w*[aeiou])\b", rf"\g<1>{turn}", document.text) if turn else document.text
            path = folder / f"{turn:03}" / document.name.replace("/", "__")
            path.parent.mkdir(exist_ok=True)
            written += path.with_suffix(".txt").write_bytes(text.encode())


def start(path: str) -> dict[str, Any]:
    """In a process of its own: to the first batch, then some steps and as many batches alone."""
    from quartet.system.quiet import quiet_libraries

    quiet_libraries()
    from quartet import build

    result: dict[str, Any] = {"import": memory()}
    begun = time.perf_counter()
    config = compose(path)
    data = build.build_data(config)
    data.setup()
    loader = data.train_dataloader()
    tokens = next(iter(loader))["inputs"]["tokens"]
    data.report()
    result |= {"seconds": time.perf_counter() - begun, "data": memory(), "parts": data.report()["parts"]}
    task = build.build_task(config, data.spec, train=True)
    optimizer = build.build_optimizer(build.plain(config)["optimizer"], task.network)
    batches = list(islice(iter(loader), STEPS))
    begun = time.perf_counter()
    for batch in batches:
        logits = task.network(batch["inputs"]["tokens"])
        build.torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["target"].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    result["network"] = tokens.numel() * STEPS / (time.perf_counter() - begun)
    begun = time.perf_counter()
    n = sum(batch["target"].numel() for batch in islice(iter(loader), 50 * STEPS))
    return {**result, "loader": n / (time.perf_counter() - begun), "training": memory()}


def compose(path: str) -> Any:
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        return hydra.compose("train", [*SETTINGS, f"data.path={path}"])


def memory() -> dict[str, int]:
    """Peak resident memory, and the present one without what is mapped from files, in MB."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) // 1000 for name, key in (("peak", "VmHWM"), ("own", "RssAnon"))}


def measure(path: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--start", path]
    output = subprocess.run(
        command, env={**os.environ, "QUARTET_CACHE": cache}, check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def show(name: str, result: dict[str, Any]) -> None:
    sizes = "  ".join(
        f"{result[when]['peak']:>6,} ({result[when]['own']:,})" for when in ("import", "data", "training")
    )
    print(
        f"{name:8s} {result['seconds']:9.1f} {sizes}   {result['loader']:12,.0f} {result['network']:12,.0f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1000, help="megabytes of text")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start)))
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus, small = Path(folder, "corpus"), Path(folder, "small")
        for path, size in ((corpus, arguments.size), (small, 5)):
            path.mkdir()
            write_corpus(path, size)
        print(f"{arguments.size:,.0f} MB of text; memory in MB, peak resident (own, without mapped files)")
        print(
            f"{'start':8s} {'seconds':>9s} {'import':>12s}  {'data':>12s}  {'training':>12s}   loader tok/s network tok/s"
        )
        for name, path in (("5 MB", small), ("first", corpus), ("second", corpus)):
            result = measure(str(path), str(Path(folder, "cache")))
            show(name, result)
        size = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*")) / 1e6
        tokens = ", ".join(f"{part['tokens']:,}" for part in result["parts"].values())
        ratio = result["loader"] / result["network"]
        print(f"tokens of train, val, test: {tokens}; cache {size:,.0f} MB")
        print(f"the loader gives {ratio:,.0f} times what the network takes (at least 10 wanted)")


if __name__ == "__main__":
    main()
