"""Processes on one card: killed and started again, and two at once."""

import json
import multiprocessing
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import gpu_child
import pytest
import torch
from gpu_toys import Toys

SECONDS = 150


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Return a fork server that has imported torch and has never used the card."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alloop.engine.train"])  # it would not find the modules beside the tests
    return context


def _start(server: ForkServerContext, *arguments: object) -> "multiprocessing.process.BaseProcess":
    process = server.Process(target=gpu_child.train, args=arguments)
    process.start()
    return process


def _ended(process: "multiprocessing.process.BaseProcess") -> int | None:
    process.join(SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def _said(out: Path) -> dict[str, object]:
    return json.loads(out.with_suffix(".json").read_text())


def test_killed_while_computing_features_and_while_training_the_same_job_goes_on(
    toys: Toys, device: torch.device, tmp_path: Path, server: ForkServerContext, measured
):
    same = (toys.root, str(device), tmp_path / "cache", tmp_path / "model", 1)
    killed = [_ended(_start(server, *same, kill)) for kill in (("features", 3), ("epochs", 2))]
    assert killed == [-signal.SIGKILL] * 2
    assert not (tmp_path / "model").exists()

    code = _ended(_start(server, *same, None))
    twin = _ended(_start(server, toys.root, str(device), tmp_path / "twin cache", tmp_path / "twin", 1, None))

    measured.same("exit codes", (code, twin), (0, 0))
    measured.say("features computed by the third run, of 100", _said(tmp_path / "model")["computed"])
    measured.same("model digest", _said(tmp_path / "model")["sha256"], _said(tmp_path / "twin")["sha256"])


def test_two_processes_on_one_card_both_finish_with_the_right_result(
    toys: Toys, device: torch.device, tmp_path: Path, server: ForkServerContext, measured
):
    both = [
        _start(server, toys.root, str(device), tmp_path / "cache", tmp_path / f"model {seed}", seed, None)
        for seed in (1, 2)
    ]
    codes = [_ended(process) for process in both]
    alone = _ended(_start(server, toys.root, str(device), tmp_path / "own cache", tmp_path / "alone", 2, None))

    measured.same("exit codes", (*codes, alone), (0, 0, 0))
    measured.same("model digest", _said(tmp_path / "model 2")["sha256"], _said(tmp_path / "alone")["sha256"])
    assert _said(tmp_path / "model 1")["sha256"] != _said(tmp_path / "model 2")["sha256"]
