"""Time to read images: where it goes, before and now, and next to other decoders.

    git worktree add OLD 0058436
    ALLOOP_DATA=FOLDER python benchmarks/speed/read.py --before OLD

Three kinds of images: photos of TrashNet as they are, the same photos enlarged to 4,000 x 3,000 pixels with noise, and
reduced to a shorter side of 128 pixels. Other decoders are compared as far as they are installed: simplejpeg,
PyTurboJPEG (with libjpeg-turbo 3), pyvips with pyvips-binary, kornia-rs.
"""

import argparse
import hashlib
import importlib.util
import inspect
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sides import compare_versions, report, table
from torch import nn

from alloop.models.backbones import Backbone, load_backbone
from alloop.pool import hashing, pixels
from alloop.pool.dataset import ImageDataset
from alloop.pool.hashing import fingerprint
from alloop.pool.ingest import inspect_file
from alloop.records import ImageRef

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[3] / "shared" / "data"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "trashnet"
TRUNK = Backbone(nn.Identity(), 1, image_size=224, resize=256)
KINDS = {"TrashNet": 40, "12 megapixels": 4, "128 pixels": 40}  # number of files
ROUNDS = 3
TARGETS = {"12 megapixels: file to trunk": 5.0, "12 megapixels: fingerprint": 4.0, "128 pixels: fingerprint": 4.0}
Decoder = Callable[[bytes], np.ndarray]


def write_images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(DATA / "trashnet.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::60]
        photos = [archive.read(name) for name in names]
    for kind, number in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for position, photo in enumerate(photos[:number]):
            path, image = folder / kind / f"{position}.jpg", Image.open(io.BytesIO(photo)).convert("RGB")
            if kind == "TrashNet":
                path.write_bytes(photo)
                continue
            if kind == "128 pixels":
                image.thumbnail((171, 171))
            else:
                large = np.asarray(image.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
                image = Image.fromarray((large + draw.normal(0, 4, large.shape)).clip(0, 255).astype(np.uint8))
            image.save(path, quality=90)


def cpu_ms(function: Callable[[], object], number: int) -> float:
    """Return CPU time in ms for each of `number` images: the shortest of several rounds."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) * 1e3 / number)
    return min(times)


def measure(folder: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    found = {}
    for kind in KINDS:
        paths = sorted((folder / kind).iterdir())
        refs = [ImageRef(n, hashlib.sha256(p.read_bytes()).hexdigest(), str(p)) for n, p in enumerate(paths)]
        dataset = ImageDataset(refs, TRUNK.preprocess)
        datas = [path.read_bytes() for path in paths]
        looked_at = [_as_fingerprints_see(data) for data in datas[:4]] * (1 if kind == "12 megapixels" else 25)
        parts = {
            "file to trunk": (lambda data=dataset: [data[position] for position in range(len(data))], len(paths)),
            "whole picture": (lambda datas=datas: [pixels.decode(data) for data in datas], len(paths)),
            "fingerprint": (lambda seen=looked_at: [fingerprint(*image) for image in seen], len(looked_at)),
            "pool add": (lambda paths=paths: [inspect_file(str(path), 10**9) for path in paths], len(paths)),
            "pool add --features": (lambda paths=paths, data=dataset: _for_pool_and_trunk(paths, data), len(paths)),
        }
        found |= {f"{kind}: {name}": cpu_ms(function, number) for name, (function, number) in parts.items()}
    return found


def _for_pool_and_trunk(paths: Sequence[Path], dataset: ImageDataset) -> None:
    """Read files for the pool and for the trunk: an older version reads each twice."""
    view = {"view": TRUNK.preprocess} if "view" in inspect.signature(inspect_file).parameters else {}
    for position, path in enumerate(paths):
        inspect_file(str(path), 10**9, **view)
        if not view:
            dataset[position]


def _as_fingerprints_see(data: bytes) -> tuple[object, ...]:
    """Return the arguments of `fingerprint`: an older version takes the whole picture."""
    if not hasattr(hashing, "needed_size"):
        return (pixels.decode(data)[0],)
    found = pixels.decode_enough(data, hashing.needed_size)
    return found.image, found.shown


# -- where the time goes ----------------------------------------------------------------------------------------------


def steps(folder: Path) -> None:
    """Print the time of each step from a file to features, as the older version takes them."""
    from torchvision.transforms.v2 import functional as transforms

    torch.set_num_threads(1)
    print("| ms a photo | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    columns = []
    for kind in KINDS:
        paths = sorted((folder / kind).iterdir())
        datas = [path.read_bytes() for path in paths]
        images = [pixels.decode(data)[0] for data in datas]
        tensors = [_tensor(image) for image in images]
        works: dict[str, Callable[[], object]] = {
            "read": lambda paths=paths: [path.read_bytes() for path in paths],
            "SHA-256": lambda datas=datas: [hashlib.sha256(data).hexdigest() for data in datas],
            "decode": lambda datas=datas: [Image.open(io.BytesIO(data)).load() for data in datas],
            "upright, RGB, checks": lambda datas=datas: [pixels.decode(data) for data in datas],
            "to tensor": lambda images=images: [_tensor(image) for image in images],
            "resize to 256": lambda tensors=tensors: [
                transforms.resize(x, [256], antialias=True).clone() for x in tensors
            ],
            "fingerprint (`pool add` only)": lambda images=images: [fingerprint(image) for image in images],
        }
        times = {name: cpu_ms(work, len(paths)) for name, work in works.items()}
        times["upright, RGB, checks"] = max(0.0, times["upright, RGB, checks"] - times["decode"])
        columns.append(times)
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{times[name]:.3f}" for times in columns) + " |")


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def rounds(folder: Path) -> None:
    """Print the share of each part of computing features of TrashNet photos with EfficientNet-lite0 on the CPU."""
    from alloop.pool.cache import FeatureCache

    torch.set_num_threads(1)
    trunk = load_backbone("backbone:efficientnet_lite0", search_paths=[EXAMPLE])
    paths = sorted((folder / "TrashNet").iterdir())
    refs = [ImageRef(n, hashlib.sha256(p.read_bytes()).hexdigest(), str(p)) for n, p in enumerate(paths)]
    dataset = ImageDataset(refs, trunk.preprocess)
    items = [dataset[n].image for n in range(len(refs))]
    stacked = torch.stack([item for item in items if item is not None])
    normal = trunk.normalize(stacked)
    with torch.inference_mode():
        rows = trunk.module(normal).numpy()

        def run() -> None:
            trunk.module(normal)

        def write() -> None:
            with tempfile.TemporaryDirectory() as place:
                cache = FeatureCache(Path(place), {"a": 1}, rows.shape[1])
                cache.add([ref.sha256 for ref in refs], rows)
                cache.take([ref.sha256 for ref in refs])

        works: dict[str, Callable[[], object]] = {
            "file to trunk": lambda: [dataset[n] for n in range(len(refs))],
            "stack and normalize": lambda: trunk.normalize(torch.stack(items)),
            "forward": run,
            "cache: write, read": write,
        }
        times = {name: cpu_ms(work, len(refs)) for name, work in works.items()}
    total = sum(times.values())
    print("\n| EfficientNet-lite0 on TrashNet | ms a photo | share |\n|---|---|---|")
    for name, ms in times.items():
        print(f"| {name} | {ms:.3f} | {ms / total:.1%} |")


# -- other decoders ---------------------------------------------------------------------------------------------------


def decoders() -> Mapping[str, Decoder]:
    found: dict[str, Decoder] = {"Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))}

    def torchvision(data: bytes) -> np.ndarray:
        from torchvision.io import decode_jpeg

        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()

    found["torchvision"] = torchvision
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    if importlib.util.find_spec("pyvips"):
        import pyvips

        pyvips.cache_set_max(0)
        found["pyvips"] = lambda data: pyvips.Image.new_from_buffer(data, "").numpy()
    if importlib.util.find_spec("kornia_rs"):
        from kornia_rs import io as kornia

        found["kornia-rs"] = lambda data: np.asarray(kornia.decode_image_jpegturbo(data, "rgb"))
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
    except (ImportError, RuntimeError):
        return found
    return found | {"PyTurboJPEG": lambda data: turbo.decode(data, pixel_format=TJPF_RGB)}


def compare_decoders(folder: Path) -> None:
    torch.set_num_threads(1)
    print("| decoder | TrashNet, ms | 12 megapixels, ms | photos with Pillow's pixels |\n|---|---|---|---|")
    sets = [[path.read_bytes() for path in sorted((folder / kind).iterdir())] for kind in list(KINDS)[:2]]
    whole = decoders()
    for name, decode in whole.items():
        same = [np.array_equal(decode(data), whole["Pillow"](data)) for datas in sets for data in datas]
        times = [cpu_ms(lambda datas=datas, d=decode: [d(data) for data in datas], len(datas)) for datas in sets]
        print(f"| {name} | {times[0]:.3f} | {times[1]:.1f} | {sum(same)} of {len(same)} |")
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow, loaded only": lambda data: Image.open(io.BytesIO(data)).load(),
        "Pillow, draft at twice 256": lambda data: pixels.decode_enough(data, TRUNK.needed_size),
    }
    for name, way in ways.items():
        times = [cpu_ms(lambda datas=datas, w=way: [w(data) for data in datas], len(datas)) for datas in sets]
        print(f"| {name} | {times[0]:.3f} | {times[1]:.1f} | – |")
    whole_way(sorted((folder / "TrashNet").iterdir()), whole)


def whole_way(paths: Sequence[Path], whole: Mapping[str, Decoder]) -> None:
    """Print the time from a TrashNet file to the trunk's tensor, alloop's way and that of each decoder.

    All read the file and check its hash. The others know neither orientation nor damage, and keep what need not be
    resized as an array.
    """
    refs = [ImageRef(n, hashlib.sha256(p.read_bytes()).hexdigest(), str(p)) for n, p in enumerate(paths)]
    dataset = ImageDataset(refs, TRUNK.preprocess)

    def other(decode: Decoder) -> list[torch.Tensor]:
        tensors = []
        for ref in refs:
            data = Path(ref.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == ref.sha256
            tensors.append(_cut(decode(data)))
        return tensors

    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        name: lambda decode=decode: other(decode) for name, decode in whole.items()
    }
    ways["alloop"] = lambda: [
        item.image for item in map(dataset.__getitem__, range(len(refs))) if item.image is not None
    ]
    expected = ways["alloop"]()
    same = {name: all(map(torch.equal, way(), expected)) for name, way in ways.items()}
    rounds = [{name: cpu_ms(way, len(refs)) for name, way in ways.items()} for _ in range(ROUNDS)]
    times = {name: sorted(one[name] for one in rounds)[ROUNDS // 2] for name in ways}
    fastest = min(times.values())
    print(
        "\n| TrashNet, file to the trunk's tensor | ms | rate by that of the fastest | same pixels |\n|---|---|---|---|"
    )
    for name, ms in sorted(times.items(), key=lambda row: row[1]):
        print(f"| {name} | {ms:.3f} | {fastest / ms:.2f} | {'yes' if same[name] else 'no'} |")
    verdict = "met" if fastest / times["alloop"] >= 0.9 else "missed"
    print(f"\nTarget for alloop: 0.9 ({verdict}).")


def _cut(values: np.ndarray) -> torch.Tensor:
    """Return the middle of an array [H, W, 3] as a tensor, resized only where it is not of the right size yet."""
    height, width = values.shape[:2]
    if TRUNK.needed_size(width, height) != (width, height):
        return TRUNK.preprocess(_Array(values))
    top, left = (round((side - TRUNK.image_size) / 2) for side in (height, width))
    middle = values[top : top + TRUNK.image_size, left : left + TRUNK.image_size].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(middle))


class _Array:
    def __init__(self, values: np.ndarray) -> None:
        self.image = Image.fromarray(values)

    def enough(self, needed: object) -> tuple[Image.Image, tuple[float, float, float, float]]:
        return self.image, (0, 0, *self.image.size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", action="store_true", help="only where the time goes, with the alloop on PYTHONPATH")
    parser.add_argument("--decoders", action="store_true", help="only other decoders")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=Path, help="folder of images from an earlier run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = given.images or Path(place) / "images"
        if not folder.exists():
            write_images(folder)
        if given.measure:
            report(measure(folder))
        elif given.steps:
            steps(folder)
            rounds(folder)
        elif given.decoders:
            compare_decoders(folder)
        else:
            old, new = compare_versions(given.before, __file__, ["--images", str(folder)], given.repeats)
            print(table(old, new, TARGETS))


if __name__ == "__main__":
    main()
