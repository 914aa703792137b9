"""Scoring a pool: what is in the file, what it is checked against, what happens to bad images."""

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from alloop.engine import features, score_writer, trunk_passes
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_scores
from alloop.engine.train import run_train
from alloop.errors import ModelError
from alloop.models import backbones
from alloop.records import ModelFiles


@pytest.fixture
def model(toys) -> ModelFiles:
    return run_train(toys.train_job()).files


def _log_probs(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    ids, rows = zip(*read_log_probs(path), strict=True)
    return np.concatenate(ids), torch.cat(rows)


def test_scores_are_calibrated_predictions_in_the_order_of_the_job(toys, model, heard):
    calls, listen = heard

    result = run_score(toys.score_job(model), listen)

    scores = read_scores(result.path)
    ids, log_probs = _log_probs(result.path)
    assert result.n_images == 15
    assert scores.image_ids.tolist() == ids.tolist() == [image.image_id for image in toys.images[75:]]
    assert scores.sha256s == [image.sha256 for image in toys.images[75:]]
    probs = log_probs.exp()
    torch.testing.assert_close(probs.sum(1), torch.ones(15))
    names = [scores.classes[top] for top in probs.argmax(1).tolist()]
    assert scores.predicted == names
    assert np.mean([names[row] == scores.classes[toys.targets[75 + row]] for row in range(15)]) > 0.9
    entropy = -(probs.double() * log_probs.double()).sum(1)
    np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(scores.confidence, 1 - entropy / math.log(3), atol=1e-5)
    assert calls[-1] == ("score", 15, 15)


def test_the_file_says_which_model_made_it(toys, model):
    path = run_score(toys.score_job(model)).path

    scores = read_scores(path)

    assert scores.model_sha256 == model.sha256
    assert scores.classes == toys.config().project.classes
    assert scores.temperature > 0
    assert pq.read_schema(path).field("log_probs").type.list_size == 3


def test_training_and_scoring_agree_on_the_same_images_but_for_cross_fitting(toys):
    trained = run_train(toys.train_job())

    path = run_score(toys.score_job(trained.files, images=toys.images[15:75])).path

    _, log_probs = _log_probs(path)
    np.testing.assert_array_equal(log_probs.argmax(1), trained.holdout_calibrated_log_probs.argmax(1))


def test_scoring_in_small_pieces_gives_the_same_numbers(toys, model, monkeypatch):
    whole = _log_probs(run_score(toys.score_job(model)).path)[1]
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 4)
    monkeypatch.setattr(score_writer, "GROUP_VALUES", 12)  # rows of 3 classes: 4 a group

    result = run_score(toys.score_job(model, out=toys.root / "pieces.parquet"))

    assert pq.ParquetFile(result.path).num_row_groups == 4
    torch.testing.assert_close(_log_probs(result.path)[1], whole)


def test_the_same_scores_have_the_same_checksum(toys, model):
    first, second = (run_score(toys.score_job(model, out=toys.root / f"{name}.parquet")) for name in "ab")

    assert first.sha256 == second.sha256


def test_images_that_cannot_be_read_are_named_and_left_out(toys, model):
    Path(toys.images[80].path).write_bytes(b"")

    result = run_score(toys.score_job(model))

    assert [image_id for image_id, _ in result.failed] == [toys.images[80].image_id]
    assert result.n_images == 14
    assert toys.images[80].image_id not in read_scores(result.path).image_ids


def test_an_empty_pool_gives_an_empty_file(toys, model):
    result = run_score(toys.score_job(model, images=()))

    assert result.n_images == 0
    assert len(read_scores(result.path).image_ids) == 0
    assert list(read_log_probs(result.path)) == []


def test_a_damaged_model_is_refused_before_anything_is_written(toys, model):
    (model.folder / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelError, match="damaged"):
        run_score(toys.score_job(model))

    assert not (toys.root / "runs" / "scores.parquet").exists()


def test_a_model_of_another_image_size_is_refused(toys, model):
    with pytest.raises(ModelError, match="another backbone, other weights or another image size"):
        run_score(toys.score_job(model, toys.config(image_size=16)))


def test_after_a_change_of_the_pixels_models_stay_and_features_are_computed_again(toys, model, monkeypatch, caplog):
    monkeypatch.setattr(backbones, "PIXELS", backbones.PIXELS + 1)

    with caplog.at_level(logging.WARNING):
        result = run_score(toys.score_job(model, images=toys.images[60:]))

    assert result.n_images == 30
    assert "15 features are computed again: this version of alloop" in caplog.text  # the rest was never computed


def test_a_damaged_score_file_is_refused_with_the_way_out(toys):
    path = toys.root / "scores.parquet"
    path.write_bytes(b"PAR1 and then nothing")

    with pytest.raises(ModelError, match="cannot be read") as caught:
        read_scores(path)

    assert "alloop score" in caught.value.hint


def test_a_changed_byte_of_a_score_is_found(toys, model):
    path = run_score(toys.score_job(model)).path
    with pq.ParquetFile(path) as file:
        row = file.metadata.row_group(0)
        columns = {row.column(at).path_in_schema: row.column(at) for at in range(file.metadata.num_columns)}
    data = bytearray(path.read_bytes())
    data[columns["ood"].data_page_offset + columns["ood"].total_compressed_size - 1] ^= 1
    path.write_bytes(data)

    with pytest.raises(ModelError, match=r"scores\.parquet cannot be read"):
        read_scores(path)


def test_too_little_memory_halves_the_batch_and_says_so(toys, model, monkeypatch, caplog):
    expected = _log_probs(run_score(toys.score_job(model)).path)[1]
    stack = features.Backbone.normalize
    sizes = []

    def short_of_memory(backbone, images):
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        sizes.append(len(images))
        return stack(backbone, images)

    monkeypatch.setattr(features.Backbone, "normalize", short_of_memory)

    job = toys.score_job(model, cache=toys.root / "fresh", out=toys.root / "halved.parquet")
    result = run_score(job)

    assert max(sizes) <= 4
    assert "out of memory with a batch of 15 images: going on with 7" in caplog.text
    torch.testing.assert_close(_log_probs(result.path)[1], expected)


def test_an_interrupted_extraction_goes_on_where_it_stopped(toys, model, monkeypatch, heard):
    config = toys.config(train=toys.config().train.model_copy(update={"batch_size": 4}))
    run_trunk = trunk_passes.run_trunk
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_trunk(*arguments)

    monkeypatch.setattr(trunk_passes, "run_trunk", interrupted)
    job = dataclasses.replace(toys.score_job(model, config), cache=toys.root / "fresh")
    with pytest.raises(KeyboardInterrupt):
        run_score(job)
    monkeypatch.setattr(trunk_passes, "run_trunk", run_trunk)

    said, listen = heard
    run_score(job, listen)

    assert [call for call in said if call[0] == "features"][-1] == ("features", 7, 7)


def test_the_local_executor_trains_and_scores_here_and_now(toys):
    executor = LocalExecutor()

    trained = executor.submit(toys.train_job())

    assert executor.submit(toys.score_job(trained.files)).n_images == 15
