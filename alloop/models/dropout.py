"""MC dropout: M random passes as M members.

Before the heads (`HeadDropout`) the trunk runs once and only the cheap last layer repeats. Networks with dropout inside
(`active_dropout`, `stochastic_logits`) have to run M times.

Source: Gal & Ghahramani, ICML 2016; docs/methods.md section 3.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from alloop.models.heads import MultiHead
from alloop.seeds import derive_seed

RATE, PASSES = 0.25, 20


@dataclasses.dataclass(frozen=True, slots=True)
class HeadDropout:
    """Dropout on the features that heads see, in training and in scoring.

    A dropped feature takes its mean over the training images (`MultiHead.center`), which the last layer sees as 0. The
    other features are scaled by 1 / (1 - rate), as usual.

    Attributes:
        rate: Probability that a feature is dropped, in [0, 1).
        passes: Number of passes M in scoring.
        allow_zero: True to accept rate 0, at which all passes agree.

    Raises:
        ValueError: A number is out of range, or the rate is 0 without `allow_zero`.
    """

    rate: float = RATE
    passes: int = PASSES
    allow_zero: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or self.passes < 1:
            raise ValueError(f"need a rate in [0, 1) and at least 1 pass, got {self.rate:g} and {self.passes}")
        if self.rate == 0 and not self.allow_zero:
            raise ValueError("dropout at rate 0 repeats one prediction; set a rate above 0")

    def train_step(
        self, heads: MultiHead, features: Float[Tensor, "B D"], generator: torch.Generator
    ) -> Float[Tensor, "H B K"]:
        """Return the logits of all H heads with one mask per image, shared by the heads."""
        return heads(self._dropped(features, heads.center, self.masks(features, generator)))  # type: ignore[no-any-return]

    def passes_of(
        self,
        heads: MultiHead,
        features: Float[Tensor, "B D"],
        *,
        seed: int | None = None,
        image_seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Float[Tensor, "H B K"]]:
        """Yield the raw logits of all H heads pass by pass, so that memory holds only one pass.

        Args:
            heads: Heads on the features' device.
            features: Features of the trunk, computed once.
            seed: Seed of consistent masks: pass m uses one mask for all images, and the same mask in every call with
                this seed, so that a pool scored in parts shares its M networks (joint acquisition needs this).
            image_seeds: Seeds of the images [B], instead of `seed`: every image and pass gets its own mask, which does
                not depend on the rest of the batch.
            generator: Generator, instead of `seed`: every image and pass gets its own mask, drawn in the order of the
                batch.

        Raises:
            ValueError: Not exactly one of the three is given.
        """
        if sum(given is not None for given in (seed, image_seeds, generator)) != 1:
            raise ValueError(
                "MC dropout needs either a seed (consistent masks), or a generator or seeds of images (a mask for each)"
            )
        if seed is not None:
            return self._consistent(heads, features, seed)
        # Pass m uses the m-th draw of an image's own generator. A shared generator is used in the order of the batch.
        own = None if image_seeds is None else [torch.Generator().manual_seed(each) for each in image_seeds]
        return (
            heads(self._dropped(features, heads.center, self.masks(features, generator if own is None else own)))
            for _ in range(self.passes)
        )

    def _consistent(self, heads: MultiHead, features: Tensor, seed: int) -> Iterator[Tensor]:
        # One mask for all images can be applied to the weights instead: K rows rather than B.
        alone = features.new_zeros(1, features.shape[1])
        with torch.autocast(features.device.type, enabled=False):
            centered = (features.to(heads.weight.dtype) - heads.center) / heads.scale
            for number in range(self.passes):
                mask = self.masks(alone, torch.Generator().manual_seed(derive_seed(seed, "mc-dropout", number)))
                yield torch.einsum("bd,mkd->mbk", centered, heads.weight * mask) + heads.bias.unsqueeze(1)

    def logits(
        self,
        heads: MultiHead,
        features: Float[Tensor, "B D"],
        *,
        seed: int | None = None,
        image_seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "M B K"]:
        """Return all passes at once, M = passes * heads, ordered by pass. See `passes_of`."""
        passes = self.passes_of(heads, features, seed=seed, image_seeds=image_seeds, generator=generator)
        return torch.cat(list(passes))

    def masks(
        self, features: Float[Tensor, "B D"], generators: torch.Generator | Sequence[torch.Generator] | None
    ) -> Float[Tensor, "B D"]:
        """Draw masks [B, D]: 0 for dropped features, else 1 / (1 - rate). Drawn on the CPU, so that devices agree.

        Args:
            features: Features [B, D] to make masks for.
            generators: One generator for the whole batch, or one for each row.
        """
        keep = 1 - self.rate
        if isinstance(generators, Sequence):
            drawn = torch.empty(features.shape)
            for row, generator in zip(drawn, generators, strict=True):
                torch.rand(row.shape, generator=generator, out=row)
        else:
            drawn = torch.rand(features.shape, generator=generators)
        return (drawn < keep).to(device=features.device, dtype=torch.float32) / keep

    @staticmethod
    def _dropped(features: Tensor, center: Tensor, masks: Tensor) -> Tensor:
        return center + masks * (features.to(center.dtype) - center)


@contextlib.contextmanager
def active_dropout(
    model: nn.Module, *, allow_none: bool = False, allow_unreachable: bool = False, stochastic_depth: bool = False
) -> Iterator[list[str]]:
    """Set everything to eval mode except dropout modules; restore all modes at the end.

    Args:
        model: Network. Batch norm stays in eval mode.
        allow_none: True to accept a network without dropout, whose passes all agree.
        allow_unreachable: True to accept dropout that modes do not reach and that stays off.
        stochastic_depth: True to also drop whole residual branches.

    Yields:
        Names of the modules that drop.

    Raises:
        ValueError: The network has no dropout, or some dropout cannot be reached; names the modules.
    """
    modes = {module: module.training for module in model.modules()}
    hidden = unreachable_dropout(model)
    if hidden and not allow_unreachable:
        raise ValueError(f"dropout in {', '.join(hidden)} is not a module of its own and cannot be switched on alone")
    names = [name for name, module in model.named_modules() if _drops(module, stochastic_depth)]
    if not names and not allow_none:
        raise ValueError(f"{type(model).__name__} has no active dropout: all passes would agree")
    try:
        model.eval()
        for name in names:
            model.get_submodule(name).train()
        yield names
    finally:
        for module, mode in modes.items():
            module.training = mode


def stochastic_logits(
    model: nn.Module, inputs: Tensor, passes: int = PASSES, *, seed: int, allow_none: bool = False
) -> Float[Tensor, "M B K"]:
    """Return the logits of M passes through a network with dropout inside.

    Each pass has its own seed, and the process-wide generator is not changed. Masks differ between images and depend on
    their place in the batch.

    Args:
        model: Network from inputs to logits [B, K] or [H, B, K] (then M = passes * H, ordered by pass).
        inputs: Batch of inputs.
        passes: Number of passes, at least 1.
        seed: Seed of the passes.
        allow_none: True to accept a network without dropout.

    Raises:
        ValueError: As in `active_dropout`.
    """
    devices = [inputs.device] if inputs.is_cuda else []
    rows = []
    with active_dropout(model, allow_none=allow_none), torch.no_grad(), torch.random.fork_rng(devices=devices):
        for number in range(passes):
            torch.manual_seed(derive_seed(seed, "mc-dropout", number))
            logits = model(inputs)
            # Members get a new axis, because joining rows would mix images.
            rows.append(logits if logits.ndim == 3 else logits.unsqueeze(0))
    return torch.cat(rows)


def unreachable_dropout(model: nn.Module) -> list[str]:
    """Return the names of modules that drop without a dropout module: attention, recurrent layers, `F.dropout`."""
    return [name or type(model).__name__ for name, module in model.named_modules() if _hides_dropout(module)]


def _drops(module: nn.Module, stochastic_depth: bool) -> bool:
    """Return whether a module drops, by its type: the name AlphaDropout does not begin with "Dropout"."""
    if isinstance(module, StochasticDepth):
        return stochastic_depth and module.p > 0
    return isinstance(module, _DropoutNd) and module.p > 0


def _hides_dropout(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, _DropoutNd) or type(module).__module__.startswith("torch.nn."):
        return False
    if not _calls_dropout(type(module).forward):
        return False
    rates = [value for key, value in vars(module).items() if "drop" in key.lower() and isinstance(value, int | float)]
    # Without a rate among the attributes, it is written into the code.
    return not rates or any(rate > 0 for rate in rates)


def _calls_dropout(forward: Callable[..., object]) -> bool:
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):
        return False
    return any(
        f"{prefix}dropout{kind}(" in source for prefix in ("F.", "functional.") for kind in ("", "1d", "2d", "3d")
    )
