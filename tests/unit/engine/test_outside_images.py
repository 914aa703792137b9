"""Images outside the pool: every form gives the numbers of the pool, and one bad image costs no other."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_classifier import KINDS, _trained

from alloop.engine.classifier import Classifier
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_rows, read_scores
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.pool.outside import Reading


def _open(toys, config, files, **changes):
    return Classifier.open(files, EngineSettings.of(config), toys.root / "cache", **changes)


def _all(parts):
    found = list(parts)
    return torch.cat([part.log_probs for part in found]), [pair for part in found for pair in part.failed]


@pytest.fixture
def plain(toys):
    config = toys.config(members=2, pool_features="off")
    return _open(toys, config, run_train(toys.train_job(config)).files)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_path_and_its_bytes_have_the_numbers_of_the_pool(toys, name: str):
    config, files = _trained(toys, name)
    pool = run_score(toys.score_job(files, config)).path
    expected = torch.cat([rows for _, rows in read_log_probs(pool)])
    model = _open(toys, config, files)
    paths = [Path(image.path) for image in toys.images[75:]]

    for images in (paths, [str(path) for path in paths], [path.read_bytes() for path in paths], toys.images[75:]):
        log_probs, failed = _all(model.predict(iter(images)))
        assert failed == []
        torch.testing.assert_close(log_probs, expected, atol=1e-6, rtol=0)
    entropy = torch.cat([part.entropy for part in model.predict(paths)])
    torch.testing.assert_close(entropy, torch.from_numpy(read_scores(pool).entropy.copy()), atol=1e-6, rtol=0)


def test_a_node_of_the_graph_is_recognized_by_its_bytes(toys):
    files = run_train(toys.train_job(pool=toys.images)).files
    path = run_score(toys.score_job(files)).path
    ids = np.array([image.image_id for image in toys.images[75:]])
    cache = {file: file.stat().st_mtime_ns for file in (toys.root / "cache").rglob("*") if file.is_file()}

    log_probs, _ = _all(_open(toys, toys.config(), files).predict([image.path for image in toys.images[75:]]))

    torch.testing.assert_close(log_probs, read_rows(path, "log_probs", ids), atol=1e-6, rtol=0)
    assert {file: file.stat().st_mtime_ns for file in (toys.root / "cache").rglob("*") if file.is_file()} == cache


def test_every_form_of_an_image_outside_the_pool_has_the_same_numbers(toys, plain, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    turned = Image.fromarray(np.rot90(values, k=1).copy())  # counter-clockwise; orientation 6 turns it clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(values).save(tmp_path / "upright.png")
    opaque = np.concatenate([values, np.full((20, 31, 1), 255, dtype=np.uint8)], axis=2)
    forms = [
        tmp_path / "upright.png",
        tmp_path / "turned.png",
        (tmp_path / "turned.png").read_bytes(),
        Image.open(tmp_path / "turned.png"),
        Image.fromarray(values),
        Image.fromarray(opaque),
        values,
        torch.from_numpy(values).permute(2, 0, 1),
    ]

    log_probs, failed = _all(plain.predict(forms))

    assert failed == []
    torch.testing.assert_close(log_probs, log_probs[:1].expand(len(forms), -1), atol=1e-6, rtol=0)


def test_gray_and_deep_images_are_read_as_their_files_are(toys, plain, tmp_path):
    gray = np.random.default_rng(2).integers(0, 256, (12, 9), dtype=np.uint8)
    deep = Image.fromarray(gray.astype(np.uint16) * 16)  # 12 bits
    deep.save(tmp_path / "deep.png")
    Image.fromarray(gray).save(tmp_path / "gray.png")

    log_probs, failed = _all(plain.predict([tmp_path / "gray.png", gray, tmp_path / "deep.png", deep]))

    assert failed == []
    torch.testing.assert_close(log_probs[0], log_probs[1])
    torch.testing.assert_close(log_probs[2], log_probs[3])
    config = toys.config(members=2, pool_features="off")
    model = Classifier(plain.version, EngineSettings.of(config), toys.root / "cache", reading=Reading(10**6, depth=10))
    shallow, failed = _all(model.predict([tmp_path / "deep.png", tmp_path / "gray.png"]))
    assert len(shallow) == 1
    assert "needs more than 10 bits" in failed[0][1]


def test_bad_images_are_named_with_the_reason_and_cost_no_other(toys, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 3)
    (tmp_path / "text.png").write_text("not an image")
    cut = Path(toys.images[0].path).read_bytes()[:-30]
    one = Image.new("RGB", (1, 1), "red")
    closed = Image.open(toys.images[1].path)
    closed.close()
    large = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(large, "PNG")
    bad = {
        0: (tmp_path / "gone.png", "does not exist"),
        1: (tmp_path, "a folder"),
        2: (tmp_path / "text.png", "not an image"),
        4: (cut, "truncated or damaged"),
        5: (np.zeros((4, 4, 3), dtype=np.float32), r"an array of float32 \[4, 4, 3\]"),
        6: (torch.zeros(4, 4, 3, dtype=torch.uint8), r"a tensor of uint8 \[4, 4, 3\]"),
        7: (None, "the type NoneType"),
        8: (closed, "closed"),
        9: (np.zeros((0, 4, 3), dtype=np.uint8), "has no pixels"),
        10: (b"", "empty file"),
        11: (large.getvalue(), "too large"),
    }
    good = {3: one, 12: Path(toys.images[2].path), 13: Image.new("CMYK", (5, 7)), 14: Image.new("LA", (5, 7))}
    images = [bad[number][0] if number in bad else good[number] for number in range(15)]

    parts = list(plain.predict(iter(images)))

    failed = dict(pair for part in parts for pair in part.failed)
    assert sorted(failed) == sorted(bad)
    for number, (_, words) in bad.items():
        assert re.search(words, failed[number]), failed[number]
    assert [image.image_id for part in parts for image in part.images] == [3, 12, 13, 14]
    assert all(part.log_probs.isfinite().all() for part in parts)


def test_an_iterator_is_read_no_further_than_the_next_batch_needs(toys, plain, monkeypatch):
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 4)
    taken = []
    endless = (taken.append(n) or toys.images[n % 90].path for n in itertools.count())

    parts = plain.predict(endless)
    sizes = [len(next(parts).images) for _ in range(3)]

    assert sizes == [4, 4, 4]
    assert len(taken) == 12


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"x", np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)])
def test_one_image_in_place_of_several_is_refused(plain, one):
    with pytest.raises(TypeError, match=r"write \[image\]"):
        list(plain.predict(one))


def test_members_that_agree_have_no_mutual_information_and_one_member_has_none(toys, plain):
    single = toys.config(uncertainty="single", pool_features="off")
    alone = _open(toys, single, run_train(toys.train_job(single)).files)

    (part,) = plain.predict(toys.images[75:])
    (other,) = alone.predict(toys.images[75:])

    mean = part.member_log_probs.exp().mean(0)
    entropies = -(part.member_log_probs.exp() * part.member_log_probs).sum(-1).mean(0)
    torch.testing.assert_close(part.mutual_information, -(mean * mean.log()).sum(-1) - entropies, atol=1e-5, rtol=0)
    assert other.mutual_information is None
    assert part.classes == ("vertical", "horizontal", "checkered")
    assert part.guesses.tolist() == [part.classes[row] for row in part.log_probs.argmax(1).tolist()]


@pytest.mark.parametrize("backbone", ["pixels", ("pixels", "toy_trunk:tiny")], ids=["one trunk", "two trunks"])
def test_cached_and_new_images_may_be_mixed_in_any_order(toys, backbone, tmp_path):
    config = toys.config(backbone, weights="none", members=2)
    files = run_train(toys.train_job(config, pool=toys.images)).files
    model = _open(toys, config, files)
    new = []
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"new-{number}.png")
        new.append(tmp_path / f"new-{number}.png")
    images = [new[0], toys.images[3].path, tmp_path / "gone.png", new[1], toys.images[1], toys.images[80].path, new[2]]

    (part,) = model.predict(images)

    alone = [next(model.predict([image])).log_probs for image in images]
    assert [len(rows) for rows in alone] == [1, 1, 0, 1, 1, 1, 1]
    torch.testing.assert_close(part.log_probs.exp(), torch.cat(alone).exp(), atol=1e-6, rtol=0)
    assert [image.image_id for image in part.images] == [0, 1, 3, toys.images[1].image_id, 5, 6]
    assert [number for number, _ in part.failed] == [2]
