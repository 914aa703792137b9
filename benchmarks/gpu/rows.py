"""Options, rows of results and clocks that all parts of the GPU benchmark share."""

import argparse
import contextlib
import csv
import dataclasses
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

COLUMNS = ("part", "item", "measure", "value", "unit", "note")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a part.

    Attributes:
        device: Device, as alloop names it.
        tiny: True for sizes that two CPU cores finish in seconds; the numbers then mean nothing.
        out: Folder of the results.
        work: Folder that the pictures are unpacked to.
        seconds: Time that this part may take.
    """

    device: torch.device
    tiny: bool
    out: Path
    work: Path
    seconds: float

    def size(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def parse(description: str | None) -> Options:
    """Read the options that run.sh gives to every part."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=100.0)
    options = Options(**vars(parser.parse_args()))
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


class Rows:
    """Appends each row to rows.csv at once, so that an interrupted run keeps its measurements."""

    def __init__(self, out: Path, part: str) -> None:
        self._path, self._part = out / "rows.csv", part

    def add(self, item: str, measure: str, value: float | str | None, unit: str = "", note: str = "") -> None:
        """Add one row. Without a value (None) the row says "not measured", and the note says why."""
        shown = "not measured" if value is None else value if isinstance(value, str) else f"{value:.4g}"
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow([self._part, item, measure, shown, unit, note])
        print(f"{self._part}  {item}: {measure} {shown} {unit} {note}".rstrip(), flush=True)

    @contextlib.contextmanager
    def guarded(self, item: str) -> Iterator[None]:
        """Turn an error of a measurement into a row, so that the other measurements continue."""
        try:
            yield
        except Exception as error:  # this run has to show which measurements fail
            self.add(item, "failed", type(error).__name__, note=" ".join(str(error).split())[:300])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the largest memory of tensors since `reset_peak`, in GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def seconds_of(work, options: Options, at_least: float = 0.4) -> float:
    """Return the median seconds of a call of `work()`, after a warm-up: at least three calls and `at_least` seconds.

    A tiny run calls it once.
    """
    device = options.device
    for _ in range(options.size(2, 0)):
        work()
    synchronize(device)
    times: list[float] = []
    while not times or (not options.tiny and (sum(times) < at_least or len(times) < 3)):
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Busy:
    """Samples, ten times a second, the share of time in which the card was busy.

    The driver averages over a sixth of a second to a second, so the share is only rough for steps of less than a
    second.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Busy":
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._device.type == "cuda":
            self._thread.join()

    def take(self) -> float | None:
        """Return the mean share in percent since the last call; None if the driver does not report it."""
        samples, self._samples = self._samples, []
        return statistics.fmean(samples) if samples else None

    def _sample(self) -> None:
        with contextlib.suppress(Exception):  # no NVML, or no right to ask it
            while not self._stop.wait(0.1):
                self._samples.append(torch.cuda.utilization(self._device))
