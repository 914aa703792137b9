"""Trunks on the CPU: alloop before and now, and the other engines that could run them.

    python benchmarks/speed/trunk.py --before OLD          # alloop before and now
    python benchmarks/speed/trunk.py --engines             # memory order, fused batch norm, bfloat16, compiled, ONNX …

Times are CPU time for an image, in milliseconds, batches of 4, without decoding. Differences are relative to the whole
row of an image's features, by the trunk as torch runs it by default. An engine that is not installed has no row.
"""

import argparse
import copy
import io
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from sides import HERE, compare_versions, cpu_seconds, report, table
from torch import Tensor, nn

from alloop.models.backbones import Backbone, load_backbone

TRUNKS = ("backbone:efficientnet_lite0", "resnet50", "efficientnet_b0", "vit_b_16", "convnext_tiny")
TARGETS = {"backbone:efficientnet_lite0": 1.5}
N, ROUNDS = 4, 3
Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="OLD", help="checkout of an older alloop")
    parser.add_argument("--engines", action="store_true", help="compare engines instead")
    parser.add_argument(
        "--compile", action="store_true", help="with --engines: also torch.compile, which takes minutes"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        report({name: measure_alloop(name) for name in TRUNKS})
    elif options.engines:
        compare_engines(compiles=options.compile)
    elif options.before is None:
        parser.error("name an older checkout: --before OLD, or use --engines")
    else:
        print(table(*compare_versions(options.before, __file__), TARGETS))


def load(name: str) -> Backbone:
    return load_backbone(name, "DEFAULT" if ":" in name else "none", search_paths=[HERE / "examples" / "trashnet"])


def pixels(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (N, 3, backbone.image_size, backbone.image_size), dtype=torch.uint8, generator=generator
    )


def milliseconds(run: Callable[[], object]) -> float:
    started = cpu_seconds()
    run()
    return (cpu_seconds() - started) * 1000 / N


def measure_alloop(name: str) -> float:
    """Milliseconds for an image by the alloop that is imported, which may be an older one."""
    import alloop.engine.features as extraction
    from alloop.engine.build import Hardware

    backbone, cpu = load(name), torch.device("cpu")
    images = pixels(backbone)
    if hasattr(extraction, "run_trunk"):
        hardware = Hardware(cpu, N, 0)
        run = lambda: extraction.run_trunk(backbone.module, backbone, images, hardware)  # noqa: E731
    else:
        from alloop.engine.trunk_passes import prepare_trunk, run_trunk

        trunk = prepare_trunk(backbone, cpu)
        run = lambda: run_trunk(trunk, images)  # noqa: E731
    run()
    return statistics.median(milliseconds(run) for _ in range(ROUNDS))


# -- engines ----------------------------------------------------------------------------------------------------------


def compare_engines(*, compiles: bool) -> None:
    print("| trunk | engine | ms of an image | times faster | difference |\n|---|---|---|---|---|")
    for name in TRUNKS:
        backbone = load(name)
        with torch.inference_mode():
            images = backbone.normalize(pixels(backbone))
        engines = dict(make_engines(backbone.module, images, compiles=compiles))
        with torch.inference_mode():
            rows = {engine: run(images).clone() for engine, run in engines.items()}
            times: dict[str, list[float]] = {engine: [] for engine in engines}
            for _ in range(ROUNDS):  # by turns
                for engine, run in engines.items():
                    times[engine].append(milliseconds(lambda: run(images)))  # noqa: B023
        for engine in engines:
            spent, plain = statistics.median(times[engine]), statistics.median(times["as torch runs it"])
            gap = float(
                ((rows[engine] - rows["as torch runs it"]).norm(dim=1) / rows["as torch runs it"].norm(dim=1)).max()
            )
            print(f"| {name} | {engine} | {spent:.1f} | {plain / spent:.2f} | {gap:.0e} |", flush=True)


def make_engines(module: nn.Module, images: Tensor, *, compiles: bool) -> Iterable[tuple[str, Run]]:
    """Yield every engine that runs here: a name, and a function from normalized images to features."""
    plain = copy.deepcopy(module)
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    yield "as torch runs it", plain
    yield "channels last (alloop)", lambda batch: last(batch.contiguous(memory_format=torch.channels_last))
    makers = {"fused batch norm": fused, "ONNX Runtime": onnx_runtime, "OpenVINO": openvino}
    if has_bfloat16():
        makers["bfloat16"] = half
    if compiles:
        makers["compiled"] = compiled
    for name, make in makers.items():
        try:
            yield name, make(copy.deepcopy(module), images)
        except Exception as error:  # not installed, or not for this trunk
            print(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}", file=sys.stderr)


def fused(module: nn.Module, _: Tensor) -> Run:
    from torch.fx.experimental.optimization import fuse

    whole = fuse(module).to(memory_format=torch.channels_last)
    return lambda batch: whole(batch.contiguous(memory_format=torch.channels_last))


def compiled(module: nn.Module, images: Tensor) -> Run:
    fast = torch.compile(module.to(memory_format=torch.channels_last))

    def run(batch: Tensor) -> Tensor:
        rows: Tensor = fast(batch.contiguous(memory_format=torch.channels_last))
        return rows

    started = cpu_seconds()
    with torch.inference_mode():
        run(images)
    print(f"compiling took {cpu_seconds() - started:.0f} s", file=sys.stderr)
    return run


def half(module: nn.Module, _: Tensor) -> Run:
    module = module.to(memory_format=torch.channels_last)

    def run(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            rows: Tensor = module(batch.contiguous(memory_format=torch.channels_last))
        return rows.float()

    return run


def has_bfloat16() -> bool:
    from alloop.engine.device import has_bfloat16

    return has_bfloat16(torch.device("cpu"))


def onnx_runtime(module: nn.Module, images: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(as_onnx(module, images), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def openvino(module: nn.Module, images: Tensor) -> Run:
    import openvino as engine

    core = engine.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}  # by itself it may take bfloat16
    ready = core.compile_model(core.read_model(as_onnx(module, images)), "CPU", exact)
    return lambda batch: torch.from_numpy(ready([batch.numpy()])[0])


def as_onnx(module: nn.Module, images: Tensor) -> bytes:
    program = torch.onnx.export(
        module, (images.clone(),), input_names=["images"], output_names=["features"], dynamo=True, verbose=False
    )
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
