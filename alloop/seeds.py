"""Sources of randomness: one named stream per purpose, all derived from the project's seed."""

import hashlib

import numpy as np
import numpy.typing as npt


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive the seed for one purpose, for example `derive_seed(seed, round_number, "holdout")`.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every process.
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def tie_keys(sha256s: list[str], seed: int) -> npt.NDArray[np.uint64]:
    """Return keys [N] that break ties between equal scores: the smaller key goes first.

    A key depends on the image's content hash and the seed only, never on its position, so shuffling, sharding or
    re-adding a pool cannot change who wins a tie.
    """
    x = np.array([int(sha256[:16], 16) for sha256 in sha256s], dtype=np.uint64)
    return mixed(x ^ np.uint64(seed))


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply one step of splitmix64, a one-to-one map, to each number (Steele, Lea & Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
