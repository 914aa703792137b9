"""The script that proves alloop on a GPU, rehearsed on the CPU: it must work when a GPU is at hand for minutes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_all_parts_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    # A --basetemp in it would let the pytest of part A remove the folders of this one.
    environment.pop("PYTEST_ADDOPTS", None)

    ended = subprocess.run(
        [ROOT / "benchmarks" / "gpu" / "run.sh", "--device", "cpu", "--tiny", "--out", tmp_path, "--minutes", "20"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    failed = [row for row in rows if row["measure"] in {"failed", "not run", "stopped at its limit"}]
    assert not failed, failed
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    finished = {row["item"] for row in rows if row["part"] == "R"}
    assert finished == {"part A", "part B", "part C", "part D", "all parts"}
    # The rows that a reader looks for first; a part that skips a measurement shows here.
    measured = {(row["part"], row["item"], row["measure"]) for row in rows}
    assert {
        ("M", "device", "name"),
        ("B", "frozen, round 2", "train"),
        ("B", "finetune, round 1", "train"),
        ("B", "alloop compare", "whole command"),
        ("B", "alloop simulate", "whole command"),
        ("C", "resnet50", "features from JPEG files / the slower of decoding and trunk"),
        ("C", "efficientnet_b0", "features from memory / ceiling"),
        ("C", "vit_b_16", "ceiling"),
        ("C", "convnext_tiny", "ceiling"),
        ("C", "fine-tuning", "an epoch / a bare epoch"),
        ("D", "SL1H, seed 0", "accuracy"),
        ("D", "4HML, seed 0", "nll"),
        ("D", "LogitNorm, seed 0", "ece"),
        ("D", "ensemble-4, seed 0", "OOD AUROC"),
    } <= measured
    assert "| SL1H, seed 0 | accuracy |" in (tmp_path / "table.md").read_text()
