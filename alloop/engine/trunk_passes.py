"""Images through trunks: batches of a size that fits, copies beside the computation, results that stay on the card.

On a CUDA card nothing waits for the card between two batches: pixels travel as uint8 on a stream of their own, features
stay on the card, and about once a second all that are ready come back together. The card computes on meanwhile.
"""

import copy
import dataclasses
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from alloop.engine.build import Hardware
from alloop.engine.device import full_float32, in_halves
from alloop.errors import ModelError
from alloop.models.backbones import Backbone
from alloop.models.side_by_side import split_pixels
from alloop.pool.dataset import ImageBatch

Failed = tuple[tuple[int, str], ...]  # image ids that could not be read now, and why

BLOCK_ROWS = 8192  # most features that wait on the card
BLOCK_SECONDS = 1.0  # longest wait
FASTER = 1.05  # gain of speed that is worth a doubled batch
_KNOWN = ("torchvision.", "timm.")  # packages whose networks run in bfloat16 and in any memory order
# The memory order that networks of other packages take, found by trying it.
_orders: weakref.WeakKeyDictionary[nn.Module, torch.memory_format] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Trunk:
    """A trunk that is ready to run on a device.

    Attributes:
        backbone: The trunk, whose precision counts.
        module: The module on the device: in float32 that of the backbone, in bfloat16 a copy.
        order: Memory order of images and weights.
    """

    backbone: Backbone
    module: nn.Module
    device: torch.device
    order: torch.memory_format


Prepare = Callable[[Backbone, torch.device], Trunk]


def prepare_trunk(backbone: Backbone, device: torch.device) -> Trunk:
    """Bring a trunk in eval mode to a device, in the memory order that is fastest there.

    That is channels last, except in float32 on a card: without TF32, its kernels take up to ten times as long there.

    In bfloat16, networks of torchvision and timm become a copy whose weights are bfloat16, except those of batch
    normalization. Networks of one's own code run under autocast, which keeps everything in float32 that needs it, but
    is slower.
    """
    with torch.inference_mode(mode=False):  # weights that move in inference mode could never be trained again
        module = backbone.module.to(device)
        order = memory_order(backbone, module, device)
        if backbone.precision == "bfloat16" and _is_known(module):
            module = _in_bfloat16(module)
        if order is torch.channels_last:
            module.to(memory_format=order)
        return Trunk(backbone, module, device, order)


def run_trunk(trunk: Trunk, images: Tensor) -> Tensor:
    """Run images uint8 [B, 3, S, S] through a trunk. Features [B, D] are float32, on its device.

    In float32 they are full float32, without TF32. If memory does not suffice, the batch is halved.

    Raises:
        ModelError: The trunk gives another shape.
    """
    backbone, device = trunk.backbone, trunk.device
    is_half = backbone.precision == "bfloat16"
    takes = torch.bfloat16 if is_half and _is_known(backbone.module) else torch.float32

    def run(part: Tensor) -> Tensor:
        normal = backbone.normalize(part.to(device)).to(takes, memory_format=trunk.order)
        output: Tensor = trunk.module(normal)
        return output.float()

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_half and takes is torch.float32)
    with torch.inference_mode(), full_float32(), autocast:
        features = in_halves(run, images)
    if features.shape != (len(images), backbone.n_features):
        raise ModelError(
            f"The backbone gave {list(features.shape)} for {len(images)} images.",
            f"It must give features [B, {backbone.n_features}].",
        )
    return features


def finite(features: Tensor) -> Tensor:
    """Return features that are finite.

    Raises:
        ModelError: One is not.
    """
    if not bool(torch.isfinite(features).all()):
        raise _not_finite()
    return features


def _not_finite() -> ModelError:
    return ModelError("The backbone gave features that are not finite.", "Check its weights.")


@dataclasses.dataclass(frozen=True, eq=False)
class Passed:
    """Images that are through, in the order given.

    Attributes:
        done: Number of images that are through so far, readable or not.
        positions: Positions of those of this block that could be read.
        failed: Ids of the others of this block, and the reasons.
        rows: Features [B, D] by each trunk, finite float32, on the CPU.
    """

    done: int
    positions: list[int]
    failed: Failed
    rows: tuple[Tensor, ...]


class Growth:
    """Number of images that pass the trunk at once on a card.

    The size is doubled while a doubled batch is faster by a twentieth, memory allows it, and the card is what the rest
    waits for. The first batch of a size costs time, because kernels are chosen for it: the next size is tried when a
    twentieth of the time spent so far would have paid for this, and a smaller batch is filled up to a known size. The
    times are those of the card's own clock, so that nothing has to wait for them.

    Attributes:
        size: The size of the next batch.
        ran: The largest size that ran.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._device, self._is_card = hardware.device, hardware.device.type == "cuda"
        self.size, self.ran = hardware.batch_size, 0
        self._most = max(hardware.largest_batch, self.size)
        if hardware.precision == "bfloat16":  # half the bytes
            self.size = min(2 * self.size, self._most)
        if not self._is_card or torch.are_deterministic_algorithms_enabled():
            self._most = self.size  # with other sizes the last bits are others, and jobs promise the same ones
        self._rate = 0.0  # images a second at half the size
        self._n_timed = 0
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # the first two batches of this size

    def run(self, trunks: Sequence[Trunk], images: Tensor) -> tuple[Tensor, ...]:
        """Run a batch through all trunks, and measure it if a larger one is possible."""
        filled = self._filled(images)
        parts = [filled] if len(trunks) == 1 else split_pixels(filled, [one.backbone.image_size for one in trunks])
        n_short = self._n_short()
        start = self._now() if self.size < self._most and len(images) == self.size else None
        rows = tuple(run_trunk(trunk, part)[: len(images)] for trunk, part in zip(trunks, parts, strict=True))
        if self._n_short() > n_short:
            self.size = self._most = max(1, self.size // 2)
        elif start is not None:
            self._decide(start, self._now())
        self.ran = max(self.ran, len(images))
        return rows

    def _filled(self, images: Tensor) -> Tensor:
        """Fill a batch up, on a card, to the size of others before it or to a power of two."""
        n = len(images)
        if not self._is_card or n >= self.size:
            return images
        wanted = self.size if self.ran >= self.size else min(self.size, 1 << (n - 1).bit_length())
        return torch.cat([images, images[:1].expand(wanted - n, *images.shape[1:])])

    def _n_short(self) -> int:
        """Return how often the card lacked memory."""
        return int(torch.cuda.memory_stats(self._device).get("num_ooms", 0)) if self._is_card else 0

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _decide(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._n_timed += 1
        if len(self._timed) < 2:
            self._timed.append((start, end))
            return
        if not self._timed[1][1].query():  # type: ignore[no-untyped-call]
            return
        first, second = (one.elapsed_time(other) for one, other in self._timed)
        rate = self.size / second
        free, _ = torch.cuda.mem_get_info(self._device)
        if rate < FASTER * self._rate:
            self.size = self._most = self.size // 2
        elif torch.cuda.memory_reserved(self._device) > free:  # a doubled batch takes about as much again
            self._most = self.size
        elif start.query():  # type: ignore[no-untyped-call]
            return  # the card has waited for images: a larger batch would only wait longer
        elif self._n_timed * second * (FASTER - 1) < first - second:
            return
        else:
            self._rate, self.size = rate, 2 * self.size
        self._timed.clear()
        self._n_timed = 0


def pass_trunks(
    batches: Iterable[ImageBatch],
    parts: Sequence[Backbone],
    hardware: Hardware,
    growth: Growth | None = None,
    prepare: Prepare = prepare_trunk,
) -> Iterator[Passed]:
    """Run images through one or several trunks, in the order given. Memory is O(block).

    Args:
        batches: Pixels, uint8 [b, 3, S, S], or rows [b, P] with the pixels of several trunks. Small batches are joined.
        parts: Trunks, each of one module.
        hardware: Device and sizes of batches.
        growth: Where the size of batches is found; None: made here.
        prepare: Function that brings a trunk to the device.

    Raises:
        ModelError: A trunk gives another shape, or numbers that are not finite.
    """
    before: _Returning | None = None
    for block in _blocks(batches, parts, hardware, growth or Growth(hardware), prepare):
        if before is not None:
            yield before.take()
        before = block
        if hardware.device.type != "cuda":  # nothing is computed meanwhile
            yield before.take()
            before = None
    if before is not None:
        yield before.take()


def _blocks(
    batches: Iterable[ImageBatch],
    parts: Sequence[Backbone],
    hardware: Hardware,
    growth: Growth,
    prepare: Prepare,
) -> Iterator["_Returning"]:
    """Start the computation of all images, block by block. On a card, nothing here waits for it."""
    device = hardware.device
    trunks, upload = [prepare(part, device) for part in parts], _Upload(device)
    block, waiting, done = _Block(parts), list[Tensor](), 0
    for batch in batches:
        done += block.note(batch)
        if len(batch.positions):
            waiting.append(upload(batch.images))
        if waiting and (device.type != "cuda" or sum(map(len, waiting)) >= growth.size):
            joined, size = _joined(waiting), growth.size
            block.rows.append(growth.run(trunks, joined[:size]))
            waiting = [joined[size:]] if len(joined) > size else []
        if block.is_due(device):
            n_left = sum(map(len, waiting))
            rest = block.keep_back(n_left)
            yield _Returning(block, done - n_left, device)
            block = rest
    if waiting:
        block.rows.append(growth.run(trunks, _joined(waiting)))
    if block.positions or block.failed:
        yield _Returning(block, done, device)


class _Block:
    """Images on their way, and features that stay on the card."""

    def __init__(self, parts: Sequence[Backbone]) -> None:
        self._parts = parts
        self.positions: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.rows: list[tuple[Tensor, ...]] = []
        self._since = time.monotonic()

    def note(self, batch: ImageBatch) -> int:
        """Take the images of a batch. Return their number."""
        self.positions += batch.positions.tolist()
        self.failed += batch.failed
        return len(batch.positions) + len(batch.failed)

    def is_due(self, device: torch.device) -> bool:
        """Return whether its features should travel back. On a card they wait for others."""
        if device.type != "cuda":
            return True
        is_long = time.monotonic() - self._since >= BLOCK_SECONDS
        return len(self.rows) > 0 and (len(self.positions) >= BLOCK_ROWS or is_long)

    def keep_back(self, n: int) -> "_Block":
        """Move the last n images, which are not through yet, to a new block."""
        rest = _Block(self._parts)
        if n:
            self.positions, rest.positions = self.positions[:-n], self.positions[-n:]
        return rest

    def features(self, device: torch.device) -> tuple[Tensor, ...]:
        if not self.rows:
            return tuple(torch.empty(0, part.n_features, device=device) for part in self._parts)
        return tuple(_joined(rows) for rows in zip(*self.rows, strict=True))


class _Returning:
    """Features that travel back from the device, while it computes the next ones."""

    def __init__(self, block: _Block, done: int, device: torch.device) -> None:
        self._block, self._done = block, done
        features = block.features(device)
        self._is_finite = [_to_cpu(torch.isfinite(rows).all()) for rows in features]
        self._rows = tuple(_to_cpu(rows) for rows in features)
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(device))

    def take(self) -> Passed:
        if self._arrived is not None:
            self._arrived.synchronize()  # before this, the memory may hold anything
        if not all(map(bool, self._is_finite)):
            raise _not_finite()
        # The copies free pinned memory.
        rows = self._rows if self._arrived is None else tuple(rows.clone() for rows in self._rows)
        return Passed(self._done, self._block.positions, tuple(self._block.failed), rows)


class _Upload:
    """Copies pixels to the device. On a card the copy has a stream of its own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor) -> Tensor:
        if self._stream is None:
            return images.to(self._device)
        with torch.cuda.stream(self._stream):
            moved = images.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._stream)
        moved.record_stream(now)  # otherwise its memory could be used again while the trunk reads it
        return moved


def _to_cpu(rows: Tensor) -> Tensor:
    """Start the copy to the CPU. On a card the result is there when an event recorded after this call has happened."""
    if rows.device.type != "cuda":
        return rows.cpu()
    place = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return place.copy_(rows, non_blocking=True)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_KNOWN)


def _in_bfloat16(module: nn.Module) -> nn.Module:
    """Return a copy in bfloat16, for evaluation only.

    Batch normalization right behind a convolution becomes a part of it, before the weights are rounded: on a card it
    takes longer than the convolution where channels are convolved one by one (EfficientNet). Other batch normalization
    keeps float32 weights and takes bfloat16 images all the same.
    """
    half = copy.deepcopy(module)
    for chain in [part for part in half.modules() if isinstance(part, nn.Sequential)]:
        _fuse_neighbors(chain)
    normal = [layer for layer in half.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [copy.deepcopy(layer.state_dict()) for layer in normal]  # float32, as it was
    half.to(torch.bfloat16)
    for layer, state in zip(normal, kept, strict=True):
        layer.float()
        layer.load_state_dict(state)
    return half


def _fuse_neighbors(chain: nn.Sequential) -> None:
    """Fuse each convolution with the batch normalization that directly follows it in a chain, in place."""
    for at, (first, second) in enumerate(itertools.pairwise(list(chain))):
        if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d and second.running_mean is not None:
            chain[at] = fuse_conv_bn_eval(first, second)
            chain[at + 1] = nn.Identity()


def memory_order(backbone: Backbone, module: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory order for a module that is on the device. Code of one's own is tried on a black image."""
    if device.type == "cuda" and backbone.precision == "float32":
        return torch.contiguous_format  # depthwise convolutions are up to ten times slower in the other order
    if _is_known(module):
        return torch.channels_last
    if module not in _orders:
        black = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=device)
        order = torch.channels_last
        module.to(memory_format=order)
        try:
            with torch.inference_mode():
                module(black.to(memory_format=order))
        except Exception:  # a view that this order does not allow; any other fault shows in the usual order, too
            order = torch.contiguous_format
            module.to(memory_format=order)
        _orders[module] = order
    return _orders[module]
