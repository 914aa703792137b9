"""What real people answered about images whose truth is known, so that a simulation can ask them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RealPeople:
    """Answers about the images of a pool.

    Attributes:
        names: Of P people.
        answers: Class names, a tuple of P for each image, in the pool's order.
    """

    names: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
