"""Training job in its own process, which can kill itself at a named point."""

import json
import logging
import os
import signal
from pathlib import Path

import torch
from gpu_toys import find_toys

from alloop.engine import features as extraction
from alloop.engine import trunk_passes
from alloop.engine.jobs import TrainJob
from alloop.engine.train import run_train

TRAIN = {"epochs": 3, "learning_rate": 0.03, "batch_size": 16, "validation_share": 0.25}


def make_job(pictures: Path, device: str, cache: Path, out: Path, seed: int) -> TrainJob:
    toys = find_toys(pictures)
    config = toys.config("dropping_trunk", TRAIN, mode="finetune")
    return toys.train_job(config, torch.device(device), cache, out, seed=seed)


def train(pictures: Path, device: str, cache: Path, out: Path, seed: int, kill: tuple[str, int] | None) -> None:
    """Fine-tune, using the feature cache, and write the result beside the model.

    Args:
        kill: Progress message, and the number of times it is heard before this process ends itself with SIGKILL.
    """
    logging.basicConfig(level=logging.ERROR)
    extraction.SHARD_SECONDS = trunk_passes.BLOCK_SECONDS = 0.0  # every batch is written immediately
    said: list[tuple[str, int]] = []

    def listen(label: str, done: int, total: int) -> None:
        said.append((label, total))
        if kill is not None and [each for each, _ in said].count(kill[0]) == kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    result = run_train(make_job(pictures, device, cache, out, seed), listen)
    computed = max((total for label, total in said if label == "features"), default=0)
    out.with_suffix(".json").write_text(json.dumps({"sha256": result.files.sha256, "computed": computed}))
