"""Answers of real people about images with known labels, for simulations."""

import dataclasses

from alloop.errors import LabelError


@dataclasses.dataclass(frozen=True)
class RealPeople:
    """Answers about the images of a pool.

    Attributes:
        names: Names of P people.
        answers: Class names, a tuple of P for each image, in the pool's order; None where a person was not asked.
    """

    names: tuple[str, ...]
    answers: tuple[tuple[str | None, ...], ...]

    def check_enough(self, wanted: int) -> None:
        """Refuse to ask more people about an image than answered it.

        Raises:
            LabelError: An image has fewer answers than `wanted`.
        """
        counts = [sum(answer is not None for answer in said) for said in self.answers]
        few = [place for place, n in enumerate(counts) if n < wanted]
        if few:
            raise LabelError(
                f"{len(few)} of {len(counts)} images have fewer than {wanted} answers. The first of them is number "
                f"{few[0] + 1} of the data, with {counts[few[0]]} answers.",
                "Ask fewer people about each image (--annotators-per-image), or remove these images.",
            )
