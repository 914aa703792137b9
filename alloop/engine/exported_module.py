"""A whole model as one module without alloop's classes inside: uint8 images [B, 3, S, S] → calibrated log p̄ [B, K].

Of trunks side by side, each has an input of its own, because each sees the images at another size.
Only operations that torch.export and ONNX know: no loops over rows, no lookups by content, no random numbers.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from alloop.calibration.calibrator import LOWEST_LOG, Calibrator, Unchanged
from alloop.calibration.histogram import Histogram
from alloop.calibration.isotonic import Isotonic
from alloop.calibration.platt import FARTHEST, Platt
from alloop.calibration.temperature import Temperature
from alloop.calibration.weighing import Weighed
from alloop.losses.logit_norm import normalize_logits
from alloop.losses.named import Loss
from alloop.models.backbones import Backbone
from alloop.models.heads import MultiHead
from alloop.models.side_by_side import join_blocks
from alloop.predictive import mean_log_probs
from alloop.smoothing.smoothing import NEIGHBORS, PARTS, SMALLEST, STEPS, Smoothing

_TINY = 1e-30  # in place of a length of 0, in float32


class TrunkAndHeads(nn.Module):
    """A trunk, or trunks side by side, with the heads that see its features: images to the members' log p [M, B, K].

    Args:
        backbone: Trunk and normalization, on the CPU in eval mode.
        heads: Heads on raw features.
        loss: Loss of the training, which says how logits become probabilities.
        masks: Dropout masks [P, D], which give each head P passes; None without dropout.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[MultiHead], loss: Loss, masks: Tensor | None = None) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(_Trunk(part) for part in backbone.alone)
        self.heads = nn.ModuleList(_Head(part, loss, masks) for part in heads)

    def features(self, images: Sequence[UInt8[Tensor, "B 3 _ _"]]) -> Float[Tensor, "B D"]:
        """Return features, given the images at the size of each trunk."""
        blocks: list[Tensor] = [trunk(part) for trunk, part in zip(self.trunks, images, strict=True)]
        return blocks[0] if len(blocks) == 1 else join_blocks(blocks)

    def members(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "M B K"]:
        """Return log p of every member."""
        return torch.cat([head(features) for head in self.heads])


class _Trunk(nn.Module):
    """One trunk with its normalization."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(backbone.module).to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", torch.tensor(backbone.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).reshape(1, 3, 1, 1))

    def forward(self, images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        rows: Tensor = self.trunk((images.float() / 255 - self.mean) / self.std)
        return rows.float()


class ExportedModel(nn.Module):
    """Mean probability of all members, then the calibrator.

    Args:
        parts: Trunks with their raw heads; several for networks with trunks of their own.
        smoothed: Heads on smoothed features, with their smoothing; they use the features of the only trunk.
        calibrator: Calibrator of [B, K], or of [B, 2, K] if there are smoothed heads.
    """

    def __init__(
        self,
        parts: Sequence[TrunkAndHeads],
        calibrator: Calibrator,
        smoothed: "SmoothedHeads | None" = None,
    ) -> None:
        super().__init__()
        self.parts, self.smoothed = nn.ModuleList(parts), smoothed
        self.calibrator = _calibration(calibrator)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, *images: UInt8[Tensor, "B 3 _ _"]) -> Float[Tensor, "B K"]:
        """Return calibrated log-probabilities, float32, given the images at the size of each trunk."""
        trunks = [part for part in self.parts if isinstance(part, TrunkAndHeads)]
        features = [part.features(images) for part in trunks]
        raw = mean_log_probs(torch.cat([part.members(rows) for part, rows in zip(trunks, features, strict=True)]))
        if self.smoothed is not None:
            raw = torch.stack([raw, mean_log_probs(self.smoothed(features[0]))], dim=1)
        calibrated: Tensor = self.calibrator(raw.double().log_softmax(dim=-1).clamp_min(LOWEST_LOG))
        return calibrated.float()


class SmoothedHeads(nn.Module):
    """Heads on smoothed features: every image is placed among the nodes, as an image outside the pool is."""

    axes: Tensor
    metric: Tensor
    spread: Tensor
    places: Tensor
    widths: Tensor
    rows: Tensor
    centers: Tensor
    scales: Tensor
    mean: Tensor
    least: Tensor

    def __init__(
        self, smoothing: Smoothing, heads: Sequence[MultiHead], loss: Loss, masks: Tensor | None = None
    ) -> None:
        super().__init__()
        for name in ("axes", "metric", "spread", "places", "widths", "rows", "centers", "scales"):
            self.register_buffer(name, getattr(smoothing, name))
        self.register_buffer("mean", smoothing.mean)
        self.register_buffer("least", smoothing.least)
        self.heads = nn.ModuleList(_Head(part, loss, masks) for part in heads)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "M B K"]:
        """Return log p of every member."""
        placed = self.place(features)
        return torch.cat([head(placed) for head in self.heads])

    def place(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B 3A"]:
        """Return smoothed features; the steps are those of `Smoothing.place`."""
        directions = self._directions(features)
        places, own = _unit(directions @ self.metric), _unit(directions @ self.spread)
        found = (places @ self.places.T).topk(NEIGHBORS, dim=1).indices
        squared = (places.unsqueeze(1) - self.places[found]).square().sum(dim=2)
        width = squared.amax(dim=1, keepdim=True).sqrt()
        weights = (-squared / (width * self.widths[found]).clamp_min(SMALLEST)).softmax(dim=1).unsqueeze(2)
        n_axes, parts = self.axes.shape[1], []
        for part, alpha in enumerate((0.0, *STEPS)):
            columns = slice(part * n_axes, (part + 1) * n_axes)
            mixed = (own - self.centers[columns]) / (self.scales[part] * PARTS**0.5)
            if alpha:
                averaged = (weights * self.rows[:, columns][found]).sum(dim=1)
                mixed = (1 - alpha) * mixed + alpha * averaged
            parts.append(mixed)
        return torch.cat(parts, dim=1)

    def _directions(self, features: Tensor) -> Tensor:
        centered = features.double() - self.mean
        largest = centered.abs().amax(dim=1, keepdim=True).clamp_min(_TINY)
        along = ((centered / largest).float() @ self.axes).double()
        lengths = along.square().sum(dim=1, keepdim=True).sqrt()
        directions = along / lengths.clamp_min(_TINY)
        return torch.where(lengths * largest <= self.least, torch.zeros_like(directions), directions).float()


class _Head(nn.Module):
    """Log p of the heads of one network [M, B, K], for each dropout mask if there are some, in the order of passes."""

    center: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, heads: MultiHead, loss: Loss, masks: Tensor | None) -> None:
        super().__init__()
        weight = heads.weight.detach()
        self.register_buffer("center", heads.center.detach().clone())
        self.register_buffer("scale", heads.scale.detach().clone())
        passes = 1 if masks is None else len(masks)
        if masks is not None:
            weight = (weight * masks.reshape(passes, 1, 1, -1)).flatten(0, 1)
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", heads.bias.detach().repeat(passes, 1).unsqueeze(1))
        self.tau = dict(loss.parameters)["tau"] if loss.rule.normalizes_logits else None

    def forward(self, features: Tensor) -> Tensor:
        centered = (features - self.center) / self.scale
        logits = torch.matmul(centered, self.weight.transpose(1, 2)) + self.bias
        if self.tau is not None:
            logits = normalize_logits(logits, self.tau)
        return logits.log_softmax(dim=-1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt().clamp_min(_TINY)


# -- calibrators: float64 [B, K] to float64 [B, K] --------------------------------------------------------------------


def _calibration(calibrator: Calibrator) -> nn.Module:
    if isinstance(calibrator, Weighed):
        return _Weighed(calibrator)
    if isinstance(calibrator, Temperature):
        return _Divided(calibrator.temperature)
    if isinstance(calibrator, Platt):
        return _Logistic(calibrator)
    if isinstance(calibrator, Isotonic):
        return _Curves(calibrator)
    if isinstance(calibrator, Histogram):
        return _Bins(calibrator)
    if isinstance(calibrator, Unchanged):
        return nn.Identity()
    raise ValueError(f"the calibrator {calibrator.name} cannot be exported")


class _Weighed(nn.Module):
    def __init__(self, calibrator: Weighed) -> None:
        super().__init__()
        self.raw, self.smoothed = calibrator.raw, calibrator.smoothed
        self.then = _calibration(calibrator.then)

    def forward(self, log_probs: Tensor) -> Tensor:
        weighed = (self.raw * log_probs[:, 0] + self.smoothed * log_probs[:, 1]).log_softmax(dim=-1)
        then: Tensor = self.then(weighed.clamp_min(LOWEST_LOG))
        return then


class _Divided(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, log_probs: Tensor) -> Tensor:
        return (log_probs / self.temperature).log_softmax(dim=-1)


class _Logistic(nn.Module):
    slopes: Tensor
    intercepts: Tensor

    def __init__(self, calibrator: Platt) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(calibrator.slopes, dtype=torch.float64))
        self.register_buffer("intercepts", torch.tensor(calibrator.intercepts, dtype=torch.float64))

    def forward(self, log_probs: Tensor) -> Tensor:
        if log_probs.shape[1] == 2:
            odds = (log_probs[:, 1:] - log_probs[:, :1]).clamp(-FARTHEST, FARTHEST)
            negative = odds * self.slopes + self.intercepts
            negative = torch.cat([-negative, negative], dim=1)
        else:
            negative = self._odds(log_probs) * self.slopes + self.intercepts
        # log sigmoid(-x) = -log(1 + exp(x)), in operations that ONNX has in float64
        return (-(negative.clamp_min(0) + torch.log1p((-negative.abs()).exp()))).log_softmax(dim=-1)

    @staticmethod
    def _odds(log_probs: Tensor) -> Tensor:
        # 1 - p of the top class may round to 0, so the other probabilities are summed.
        is_top = torch.nn.functional.one_hot(log_probs.argmax(dim=1), log_probs.shape[1]).bool()
        others = torch.where(is_top, torch.full_like(log_probs, LOWEST_LOG), log_probs).logsumexp(dim=1, keepdim=True)
        rest = torch.log1p(-log_probs.exp().clamp_max(0.5))
        return (log_probs - torch.where(is_top, others, rest)).clamp(-FARTHEST, FARTHEST)


class _ByPlace(nn.Module):
    """Base of calibrators that look up the place of each probability on an axis of its class."""

    places: Tensor
    lasts: Tensor

    def __init__(self, places: Sequence[Sequence[float]], floor: float) -> None:
        super().__init__()
        self.register_buffer("places", _padded(places, float("inf")))
        self.register_buffer("lasts", torch.tensor([len(row) - 1 for row in places]))
        self.floor = floor

    def _take(self, table: Tensor, positions: Tensor) -> Tensor:
        """Return table[k, position] for each class k: [B, K]."""
        return table.unsqueeze(0).expand(positions.shape[0], -1, -1).gather(2, positions.unsqueeze(2)).squeeze(2)

    def _finished(self, values: Tensor, probs: Tensor) -> Tensor:
        kept = values.clamp(self.floor, 1 - self.floor)
        total = kept.sum(dim=1, keepdim=True)
        shares = torch.where(total > 0, kept / torch.where(total > 0, total, torch.ones_like(total)), probs)
        return shares.log().log_softmax(dim=-1)


class _Curves(_ByPlace):
    """Linear between knots, constant outside."""

    heights: Tensor

    def __init__(self, calibrator: Isotonic) -> None:
        super().__init__([[x for x, _ in knots] for knots in calibrator.curves], calibrator.floor)
        self.register_buffer("heights", _padded([[y for _, y in knots] for knots in calibrator.curves], None))

    def forward(self, log_probs: Tensor) -> Tensor:
        probs = log_probs.exp()
        right = (probs.unsqueeze(2) >= self.places.unsqueeze(0)).sum(dim=2)
        right = torch.minimum(right.clamp_min(1), self.lasts.clamp_min(1).unsqueeze(0))
        x0, x1 = self._take(self.places, right - 1), self._take(self.places, right)
        y0, y1 = self._take(self.heights, right - 1), self._take(self.heights, right)
        share = ((probs - x0) / (x1 - x0)).clamp(0, 1)
        return self._finished(y0 + share * (y1 - y0), probs)


class _Bins(_ByPlace):
    """The value of the right-closed bin."""

    values: Tensor

    def __init__(self, calibrator: Histogram) -> None:
        super().__init__(calibrator.edges, calibrator.floor)
        self.register_buffer("values", _padded(calibrator.values, None))

    def forward(self, log_probs: Tensor) -> Tensor:
        probs = log_probs.exp()
        found = (self.places.unsqueeze(0) < probs.unsqueeze(2)).sum(dim=2) - 1
        found = torch.minimum(found.clamp_min(0), (self.lasts - 1).unsqueeze(0))
        return self._finished(self._take(self.values, found), probs)


def _padded(rows: Sequence[Sequence[float]], filler: float | None) -> Tensor:
    """Return rows of equal length, at least 2, filled up at the end: with `filler`, or the row's last value."""
    width = max(2, *(len(row) for row in rows))
    filled = [[*row, *[row[-1] if filler is None else filler] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)
