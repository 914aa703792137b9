"""The features cache: what was put in comes out, in the order asked, or is missing; never anything else."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alloop.errors import ModelError, WorkspaceError
from alloop.pool import cache as module
from alloop.pool.cache import FeatureCache

KEY = {"backbone": "toy", "weights": "none", "preprocessing": {"size": 8}}
D = 3
OPEN_FILES = Path("/proc/self/fd")


def sha(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def shas(*numbers: int) -> list[str]:
    return [sha(i) for i in numbers]


def features(*numbers: int) -> np.ndarray:
    return np.array([[i, i + 0.5, -i] for i in numbers], dtype=np.float32)


def make(root: Path, key: dict = KEY, n_features: int = D, **options) -> FeatureCache:
    return FeatureCache(root, key, n_features, **options)


def shards(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.glob("*.npy"))


@pytest.fixture
def filled(tmp_path) -> FeatureCache:
    """Shards (1, 2, 3) and (4, 5)."""
    cache = make(tmp_path)
    cache.add(shas(1, 2, 3), features(1, 2, 3))
    cache.add(shas(4, 5), features(4, 5))
    return cache


def test_features_come_out_in_the_order_asked_and_as_often(filled):
    asked = [5, 1, 4, 1, 3]

    for cache in (filled, make(filled.folder.parent)):
        taken = cache.take(shas(*asked))

        assert taken.dtype == np.float32
        assert np.array_equal(taken, features(*asked))


def test_missing_names_what_is_not_there_once_and_in_order(filled):
    assert filled.missing(shas(9, 1, 8, 9, 5)) == shas(9, 8)
    assert make(filled.folder.parent).missing(shas(1, 2, 3, 4, 5)) == []


def test_an_empty_cache_misses_everything_and_takes_nothing(tmp_path):
    cache = make(tmp_path)

    assert cache.missing(shas(2, 1)) == shas(2, 1)
    assert cache.missing([]) == []
    assert cache.take([]).shape == (0, D)
    assert len(cache) == 0


def test_adding_nothing_writes_nothing(tmp_path):
    cache = make(tmp_path)

    cache.add([], np.empty((0, D), dtype=np.float32))

    assert shards(cache) == []


def test_taking_what_is_not_there_is_an_error_with_the_numbers(filled):
    with pytest.raises(ModelError, match="1 of 2 images have no features"):
        filled.take(shas(1, 9))


def test_another_key_another_width_and_another_type_are_other_caches(filled):
    root = filled.folder.parent
    others = [make(root, {**KEY, "backbone": "b"}), make(root, n_features=4), make(root, dtype=np.float16)]

    assert len({cache.folder for cache in [filled, *others]}) == 4
    assert all(cache.missing(shas(1)) == shas(1) for cache in others)
    assert make(root, dict(reversed(KEY.items()))).folder == filled.folder


def test_the_key_is_written_for_people(filled):
    assert json.loads((filled.folder / "key.json").read_text()) == {"key": KEY, "n_features": D, "dtype": "float32"}


def test_half_precision_is_stored_in_half_the_space_and_taken_as_float32(tmp_path):
    cache = make(tmp_path, dtype=np.float16)
    cache.add(shas(1), np.array([[0.1, 1.0, -2.0]]))

    taken = cache.take(shas(1))

    # 0.1 in half precision is 1638 / 2^14
    assert (taken.dtype, taken.tolist()) == (np.float32, [[1638 / 2**14, 1.0, -2.0]])


def test_a_shard_is_a_file_that_numpy_opens_named_by_its_checksum(tmp_path):
    cache = make(tmp_path)
    cache.add(shas(1, 2), features(1, 2))
    (path,) = shards(cache)

    record = np.load(path, allow_pickle=False)

    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(record["features"][0], features(1, 2))
    assert [bytes(row).hex() for row in record["sha256"][0]] == shas(1, 2)


def test_many_rows_go_into_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_BYTES", 100)  # a row takes 32 + 3 x 4 bytes, so two fit
    cache = make(tmp_path)

    cache.add(shas(*range(5)), features(*range(5)))

    assert len(shards(cache)) == 3
    assert np.array_equal(cache.take(shas(4, 0, 3)), features(4, 0, 3))


def test_an_added_row_is_seen_at_once_by_another_process(filled):
    other = make(filled.folder.parent)
    assert other.missing(shas(6)) == shas(6)

    filled.add(shas(6), features(6))

    assert np.array_equal(other.take(shas(6)), features(6))
    assert other.missing(shas(6)) == []


def test_hashes_that_differ_in_the_last_byte_or_end_in_zeros_are_different(tmp_path):
    stem = "ab" * 30
    similar = [stem + tail for tail in ("0000", "0001", "0100", "00ff")]
    cache = make(tmp_path)
    cache.add(similar[:3], features(1, 2, 3))

    assert cache.missing(similar) == [similar[3]]
    assert np.array_equal(cache.take([similar[2], similar[0], similar[1]]), features(3, 1, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused_naming_the_image(bad, tmp_path):
    cache = make(tmp_path)
    values = features(1, 2, 3)
    values[1, 2] = bad

    with pytest.raises(ModelError, match=sha(2)):
        cache.add(shas(1, 2, 3), values)

    assert shards(cache) == []


def test_a_feature_too_large_for_half_precision_is_refused(tmp_path):
    with pytest.raises(ModelError, match=sha(1)):
        make(tmp_path, dtype=np.float16).add(shas(1), np.array([[1e6, 0, 0]]))


@pytest.mark.parametrize("shape", [(2, D + 1), (1, D), (2 * D,)])
def test_features_of_another_shape_are_a_bug(shape, tmp_path):
    with pytest.raises(ValueError, match="do not fit 2 images"):
        make(tmp_path).add(shas(1, 2), np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("text", ["abc", "zz" * 32, "ab" * 31])
def test_what_is_not_a_sha256_is_a_bug(text, tmp_path):
    with pytest.raises(ValueError):
        make(tmp_path).missing([text])


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def shard_of(cache: FeatureCache, number: int) -> Path:
    (path,) = [path for path in shards(cache) if bytes.fromhex(sha(number)) in path.read_bytes()]
    return path


# Magic, header text, a hash, a feature: every part of a shard (the header takes 256 bytes or fewer before the last 132)
@pytest.mark.parametrize("offset", [0, 7, 8, 12, 30, 60, -1, -36, -37, -130])
def test_one_wrong_bit_anywhere_makes_the_shards_rows_missing(offset, filled):
    flip(shard_of(filled, 1), offset)
    cache = make(filled.folder.parent)

    assert cache.missing(shas(1, 2, 3, 4, 5)) == shas(1, 2, 3)
    assert np.array_equal(cache.take(shas(5, 4)), features(5, 4))

    cache.add(shas(1, 2, 3), features(1, 2, 3))
    for again in (cache, make(filled.folder.parent)):
        assert again.missing(shas(1, 2, 3, 4, 5)) == []
        assert np.array_equal(again.take(shas(3, 4, 1)), features(3, 4, 1))


def test_a_damaged_shard_is_named_in_a_warning_and_deleted(filled, caplog):
    path = shard_of(filled, 1)
    flip(path, -1)

    with caplog.at_level(logging.WARNING, logger="alloop"):
        make(filled.folder.parent).missing(shas(1))

    assert [(record.levelname, path.name in record.message) for record in caplog.records] == [("WARNING", True)]
    assert "checksum" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 5, 100, -1, -40])
def test_a_truncated_shard_is_dropped(length, filled):
    path = shard_of(filled, 1)
    path.write_bytes(path.read_bytes()[:length])
    cache = make(filled.folder.parent)

    assert cache.missing(shas(1, 4)) == shas(1)
    assert not path.exists()


def test_damage_is_found_by_take_too_and_never_returned(filled):
    flip(shard_of(filled, 1), -1)

    with pytest.raises(ModelError, match="2 of 3 images have no features"):
        make(filled.folder.parent).take(shas(1, 2, 4))


def test_a_damaged_copy_does_not_hide_a_sound_one(filled):
    filled.add(shas(1, 9), features(1, 9))
    flip(shard_of(filled, 2), -1)
    cache = make(filled.folder.parent)

    assert cache.missing(shas(1, 2, 9)) == shas(2)
    assert np.array_equal(cache.take(shas(1)), features(1))


def test_a_foreign_npy_file_is_not_read_as_features_and_not_deleted(filled, caplog):
    data = (filled.folder / "foreign.npy", np.zeros((2, D), dtype=np.float32))
    np.save(*data)
    digest = hashlib.sha256(data[0].read_bytes()).hexdigest()
    foreign = data[0].rename(filled.folder / f"{digest}.npy")
    cache = make(filled.folder.parent)

    assert cache.missing(shas(1)) == []
    assert "another layout" in caplog.text
    assert foreign.exists()


def test_a_shard_that_cannot_be_opened_this_time_is_not_deleted(filled, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module.np, "load", refuse)
        patch.setattr(module, "sha256_of", refuse)
        assert make(filled.folder.parent).missing(shas(1)) == shas(1)

    assert make(filled.folder.parent).missing(shas(1)) == []


def test_a_cache_deleted_while_in_use_is_missing_not_wrong(filled):
    assert filled.missing(shas(1, 4)) == []
    for path in shards(filled):
        path.unlink()

    with pytest.raises(ModelError, match="2 of 2"):
        filled.take(shas(1, 4))
    assert filled.missing(shas(1, 4)) == shas(1, 4)

    filled.add(shas(1), features(1))
    assert np.array_equal(filled.take(shas(1)), features(1))


def test_what_a_killed_writer_left_is_not_read_and_removed_after_a_day(filled):
    leftover = filled.folder / f".{'0' * 64}.npy.abc.tmp"
    leftover.write_bytes(b"half a shard")

    assert make(filled.folder.parent).missing(shas(1, 6)) == shas(6)
    assert leftover.exists()  # a writer of today may still be at it

    os.utime(leftover, (time.time() - 90_000,) * 2)
    make(filled.folder.parent)
    assert not leftover.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_and_leaves_no_half_shard(call, filled, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(WorkspaceError, match="disk is full"):
            filled.add(shas(6), features(6))

    assert len(list(filled.folder.iterdir())) == 3  # two shards and the key
    assert filled.missing(shas(1, 6)) == shas(6)


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from alloop.pool.cache import FeatureCache

cache = FeatureCache(Path(sys.argv[1]), {"k": 1}, 2)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    cache.add([hashlib.sha256(str(i).encode()).hexdigest()], np.array([[i, -i]], dtype=np.float32))
    print(i, flush=True)
"""


def test_two_processes_may_write_at_once_even_the_same_rows(tmp_path):
    ranges = [("0", "40"), ("20", "60")]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), *r], stdout=subprocess.DEVNULL) for r in ranges
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]

    cache = FeatureCache(tmp_path, {"k": 1}, 2)

    assert cache.missing(shas(*range(60))) == []
    assert cache.take(shas(*range(60))).tolist() == [[i, -i] for i in range(60)]


def test_after_a_kill_in_the_middle_everything_that_was_reported_is_there(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), "0", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        reported = [int(writer.stdout.readline()) for _ in range(20)]
        writer.kill()

    cache = FeatureCache(tmp_path, {"k": 1}, 2)

    assert cache.take(shas(*reported)).tolist() == [[i, -i] for i in reported]


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="only Linux lists a process's open files as a folder")
def test_no_shard_stays_open(filled):
    for i in range(100, 150):
        filled.add(shas(i), features(i))
    before = len(list(OPEN_FILES.iterdir()))

    filled.take(shas(*range(100, 150)))
    make(filled.folder.parent).missing(shas(*range(100, 150)))

    assert len(list(OPEN_FILES.iterdir())) == before


def test_features_under_a_key_with_one_other_entry_are_counted(filled, tmp_path):
    new = make(tmp_path, {**KEY, "pixels": 2})
    make(tmp_path, {**KEY, "pixels": 1, "weights": "others"}).add(shas(6, 7), features(6, 7))
    make(tmp_path, {**KEY, "pixels": 2, "weights": "others"}).add(shas(6, 7), features(6, 7))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "key.json").write_text("[")

    assert new.n_known_otherwise(shas(1, 2, 6, 9), "pixels") == 2
    assert new.n_known_otherwise(shas(6, 9), "pixels") == 0
    assert new.n_known_otherwise(shas(1, 2, 3), "weights") == 0
    assert new.n_known_otherwise(shas(1, 2, 6, 7), "weights") == 2
    assert new.n_known_otherwise(shas(1, 2, 3, 6, 7), "pixels", "weights") == 3
    assert filled.n_known_otherwise(shas(1, 2, 3), "pixels") == 0
