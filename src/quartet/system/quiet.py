"""Warnings and log lines of libraries that are meant for developers, not for who trains. Imports no torch."""

from __future__ import annotations

import logging
import os
import threading
import warnings


def quiet_libraries() -> None:
    """Silence what libraries say to developers; errors and our own messages stay."""
    warnings.filterwarnings(
        "ignore", module=r"(pytorch_lightning|lightning_fabric|torch|torchmetrics|lightning_utilities|hydra|PIL)(\..*)?"
    )
    for package in ("pytorch_lightning", "lightning_fabric"):  # their own level is set when they are imported
        for name in ("rank_zero", "seed", "distributed"):
            logging.getLogger(f"{package}.utilities.{name}").setLevel(logging.ERROR)

    def report(failure: threading.ExceptHookArgs) -> None:
        # TensorBoard's writer keeps its error, mostly a full disk, and raises it at the next value that is logged
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            threading.__excepthook__(failure)

    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = report
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler library
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
