"""Benchmark: number of labels that strategies of alloop and its peers need, on the same features and seed batches.

    ALLOOP_DATA=... PYTHONPATH=PEERS python benchmarks/label_efficiency/run.py --work FOLDER

FOLDER keeps features and finished runs. A second call continues where the first one stopped, and computes only named
strategies and seeds that are missing. The tables show everything in FOLDER.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from arms import ARMS, run_arms
from peers import PEERS, SMALL_ONLY, run_peer
from sets import BATCHES, LOOSE, SEEDS, Head, load_task
from tables import collect, markdown, read_csv, targets, write_csv

from alloop.composition import DEFAULT_STRATEGY
from alloop.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument(
        "--arms", nargs="*", default=list(ARMS), help="alloop's strategies, as `alloop simulate` takes them"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--tables", action="store_true", help="compute nothing, only write the tables")
    parser.add_argument("--targets", action="store_true", help="only print targets, from the CSV files in --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    if options.targets:
        former, present = (read_csv(options.out / name) for name in ("results.csv", "pool_features.csv"))
        print(targets(former, present, DEFAULT_STRATEGY))
        return
    if options.work is None:
        parser.error("--work is missing")
    work = options.work.absolute()
    for seed in [] if options.tables else options.seeds:
        for name in options.sets:
            compute(name, seed, options.arms, options.peers, work)
    runs = collect(work)
    write_csv(runs, options.out / "results.csv")
    for name in options.sets:
        print(markdown(name, [run for run in runs if run.set == name]))


def compute(name: str, seed: int, arms: list[str], peers: list[str], work: Path) -> None:
    """Compute the missing runs of a set and a seed: alloop's, the scoring head on their picks, and the peers'."""
    folder = work / "runs" / name / f"seed{seed}"
    found = run_arms(name, seed, tuple(dict.fromkeys(["random", *arms])), work)
    first = found["random"]["picks"][0]
    todo = [arm for arm in found if not _path(folder, "arm", arm).exists()]
    wanted = [peer for peer in peers if not (name == "cifar10" and peer in SMALL_ONLY)]
    wanted = [peer for peer in wanted if not _path(folder, "peer", peer).exists()]
    others = [*folder.glob("arm-*.json"), *folder.glob("peer-*.json")] if name in LOOSE else []
    if not todo and not wanted and all("loose_accuracy" in json.loads(path.read_text()) for path in others):
        return
    head = Head(load_task(name, seed, work))
    for arm in todo:
        run = found[arm]
        assert run["picks"][0] == first, f"{arm} did not start from the seed batch of random"
        kept = {key: run[key] for key in ("picks", "accuracy", "seconds", "select_seconds")}
        scored = {**kept, "strategy": arm, "seed": seed, "head_accuracy": head.curve(run["picks"])}
        write_json(_path(folder, "arm", arm), scored)
    for peer in wanted:
        started = time.monotonic()
        write_json(_path(folder, "peer", peer), run_peer(peer, head, first, seed))
        print(f"{name} seed {seed} {peer}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if name in LOOSE:
        for path in (*folder.glob("arm-*.json"), *folder.glob("peer-*.json")):
            run = json.loads(path.read_text())
            if "loose_accuracy" not in run:
                write_json(path, {**run, "loose_accuracy": head.curve(run["picks"], LOOSE[name])})


def _path(folder: Path, kind: str, name: str) -> Path:
    kept = "".join(letter if letter.isalnum() or letter == "-" else "+" for letter in name)
    return folder / f"{kind}-{kept}.json"


if __name__ == "__main__":
    main()
