"""Time of `alloop pool add`, in the main process and in the processes that read files.

    python benchmarks/speed/add.py --before OLD [--images 5000] [--photos FOLDER]

Without a folder of photos, small JPEG files are made: colored noise of 32 x 32 pixels, all different.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sides import compare_versions, report, table

SETTINGS = '[project]\nname = "speed"\nclasses = ["one", "two"]\n'
TARGETS = {"new image, main process": 0.15, "known file, main process": 0.05}  # ms


def write_photos(folder: Path, n: int) -> None:
    folder.mkdir()
    for number in range(n):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:07d}.jpg")


def measure(photos: Path, n: int) -> None:
    from alloop.engine.executor_local import LocalExecutor
    from alloop.loop.intake.ingest import add_images
    from alloop.loop.workbench import make_tools, open_workbench
    from alloop.loop.workspace import create_workspace
    from alloop.project import open_project

    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_workspace(folder, SETTINGS)
        with open_project(folder) as project:
            for kind in ("new image", "known file"):
                own, others = time.process_time(), children()
                with open_workbench(make_tools(project, LocalExecutor())) as bench:
                    add_images(bench, [str(photos)])
                figures[f"{kind}, main process"] = (time.process_time() - own) / n * 1000
                if kind == "new image":
                    figures["new image, processes that read"] = (children() - others) / n * 1000
    report(figures)


def children() -> float:
    """Return the CPU seconds of the processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="Checkout of the older version.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--photos", type=Path, help="Folder of photos.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="For this script itself.")
    options = parser.parse_args()
    if options.measure:
        measure(options.photos, options.images)
        return
    with tempfile.TemporaryDirectory() as name:
        photos = options.photos or Path(name) / "photos"
        if options.photos is None:
            write_photos(photos, options.images)
        n = sum(path.is_file() for path in photos.rglob("*"))
        arguments = ["--photos", str(photos), "--images", str(n)]
        old, new = compare_versions(options.before, __file__, arguments, options.repeats)
    print(f"{n} images, CPU time of one image\n\n{table(old, new, {})}\n")
    for figure, most in TARGETS.items():
        verdict = "met" if new[figure] <= most else "missed"
        print(f"- {figure}: {new[figure]:.3f} ms, target at most {most} ms ({verdict})")
    each = new["new image, main process"], new["new image, processes that read"] / 16
    print(f"- 1,000,000 such images on 16 cores: {max(each) * 1000 / 60:.1f} minutes, target 10")


if __name__ == "__main__":
    main()
