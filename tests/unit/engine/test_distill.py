"""The distilled head: against another solver, against the model that it imitates, its bytes, and damage."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.optimize import minimize

from alloop.config.schema import TrainConfig
from alloop.engine import distill as distilling
from alloop.engine.classifier import Classifier
from alloop.engine.distill import DISTILLED, RECIPE, distill, load_distilled
from alloop.engine.features import run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError
from alloop.files import sha256_of
from alloop.smoothing.smoothing import fit_smoothing


def _job(toys, config=None, **changes):
    """15 training images, 60 of the holdout, and a pool of the first 80 images."""
    return toys.train_job(config, **{"pool": toys.images[:80], **changes})


def _features(toys, images, config=None):
    settings = EngineSettings.of(config or toys.config())
    return torch.from_numpy(run_features(FeatureJob(settings, images, toys.root / "cache")).features)


def _predicted(toys, trained, images, config=None):
    """Calibrated predictions of the model itself."""
    model = Classifier.open(trained.files, EngineSettings.of(config or toys.config()), toys.root / "cache")
    return torch.cat([part.calibrated_log_probs for part in model.predict(images)])


def _toy_pool(n=60, n_features=5):
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(n, n_features, generator=generator) + 100
    log_probs = torch.randn(n, 3, generator=generator).log_softmax(dim=-1)
    return features, log_probs, fit_smoothing([f"{row:064x}" for row in range(n)], features)


def test_the_head_is_the_minimum_that_another_solver_finds():
    features, log_probs, smoothing = _toy_pool()
    wide, soft = features.double().numpy(), log_probs.double().exp().numpy()
    center = wide.mean(axis=0)
    rows = (wide - center) / np.sqrt(np.square(wide - center).sum(axis=1).mean())

    def loss(numbers):
        weight, bias = numbers[:15].reshape(3, 5), numbers[15:]
        logits = rows @ weight.T + bias
        top = logits.max(axis=1, keepdims=True)
        found = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        return -(soft * found).sum(axis=1).mean() + 0.5 * RECIPE.weight_decay * np.square(weight).sum()

    best = minimize(loss, np.zeros(18), tol=1e-14).x
    expected = torch.from_numpy(rows @ best[:15].reshape(3, 5).T + best[15:]).log_softmax(dim=-1)

    weight, bias = distill(features, log_probs, smoothing, torch.Generator().manual_seed(1))

    assert (weight.dtype, weight.shape, bias.shape) == (torch.float32, (3, 5), (3,))
    found = (features @ weight.T + bias).log_softmax(dim=-1)
    torch.testing.assert_close(found, expected.float(), atol=3e-3, rtol=0)  # L-BFGS works in float32


def test_on_average_it_is_as_sure_as_the_model():
    features, log_probs, smoothing = _toy_pool()
    weight, bias = distill(features, log_probs, smoothing, torch.Generator().manual_seed(1))
    # Biases do not decay, so at the minimum the mean probability of each class is that of the targets.
    found = (features @ weight.T + bias).softmax(dim=-1)
    torch.testing.assert_close(found.mean(dim=0), log_probs.exp().mean(dim=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"members": 1},
        {"uncertainty": "ensemble", "members": 2, "heads": 2},
        {"uncertainty": "mc-dropout", "members": 4},
    ],
)
def test_it_agrees_with_the_model_also_on_images_outside_the_graph(toys, model):
    config = toys.config(**model)
    trained = run_train(_job(toys, config))
    images = toys.images[15:]

    head, expected = load_distilled(trained.files), _predicted(toys, trained, images, config)
    found = head.log_probs(_features(toys, images, config))

    assert head.classes == ("vertical", "horizontal", "checkered")
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(75))
    assert (found.argmax(dim=1) == expected.argmax(dim=1)).all()
    assert float((found.exp() - expected.exp()).abs().mean()) < 0.05


@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
def test_decay_that_a_user_sets_is_for_labels_and_the_model_is_still_imitated(toys, weight_decay):
    config = toys.config(train=TrainConfig(workers=0, weight_decay=weight_decay))
    trained = run_train(_job(toys, config))

    expected = _predicted(toys, trained, toys.images[15:])
    found = load_distilled(trained.files).log_probs(_features(toys, toys.images[15:]))

    assert float((found.exp() - expected.exp()).abs().mean()) < 0.05


def test_two_classes_have_two_outputs(toys):
    two = [place for place in range(90) if place % 3 < 2]
    images, targets = [toys.images[place] for place in two], [place % 3 for place in two]
    job = _job(
        toys,
        classes=("vertical", "horizontal"),
        images=tuple(images[:10]),
        targets=tuple(targets[:10]),
        holdout=tuple(images[10:50]),
        holdout_targets=tuple(targets[10:50]),
    )
    trained = run_train(job)

    found = load_distilled(trained.files).log_probs(_features(toys, images))

    assert found.shape == (60, 2)
    assert (found.argmax(dim=1) == torch.tensor(targets)).all()


def test_it_imitates_the_calibrated_model(toys):
    """A flatter calibrator gives a flatter head; labels of the holdout have an effect in no other way."""
    trained = run_train(_job(toys))
    wrong = tuple((target + (place % 2)) % 3 for place, target in enumerate(toys.targets[15:75]))
    flat = run_train(_job(toys, holdout_targets=wrong, out=toys.root / "runs" / "flat"))
    features = _features(toys, toys.images[15:])

    sure, unsure = (load_distilled(one.files).log_probs(features).exp().amax(dim=1).mean() for one in (trained, flat))

    assert float(unsure) < float(sure) - 0.2
    expected = _predicted(toys, flat, toys.images[15:])
    assert float((load_distilled(flat.files).log_probs(features).exp() - expected.exp()).abs().mean()) < 0.05


def test_the_same_job_gives_the_same_bytes_in_any_order(toys):
    one = run_train(_job(toys))
    other = run_train(_job(toys, pool=tuple(reversed(toys.images[:80])), out=toys.root / "runs" / "other"))
    assert (one.files.folder / DISTILLED).read_bytes() == (other.files.folder / DISTILLED).read_bytes()
    assert one.files.sha256 == other.files.sha256


def test_it_learns_from_a_sample_of_the_pool(toys, monkeypatch):
    seen = []
    inner = distilling.distill

    def spy(features, *rest):
        seen.append(len(features))
        return inner(features, *rest)

    monkeypatch.setattr(distilling, "distill", spy)
    run_train(_job(toys))
    monkeypatch.setattr(distilling, "MOST", 50)
    run_train(_job(toys))
    # Images that came after the graph was fitted are not in it, and take no part.
    monkeypatch.setattr(distilling, "MOST", 3000)
    before = toys.root / "runs" / "model"
    run_train(_job(toys, pool=toys.images[:85], pool_before=before, out=toys.root / "runs" / "next"))
    assert seen == [80, 50, 80]


@pytest.mark.parametrize("changes", [{"pool": ()}, {"config": {"pool_features": "off"}}])
def test_a_model_with_raw_heads_only_has_none(toys, changes):
    config = toys.config(**changes.pop("config", {}))
    trained = run_train(_job(toys, config, **changes))
    assert not (trained.files.folder / DISTILLED).exists()
    with pytest.raises(ModelError, match=r"no distilled head: its heads are on raw features") as error:
        load_distilled(trained.files)
    assert error.value.hint == "Use the model itself."


def test_a_model_of_before_says_what_to_do(toys):
    trained = run_train(_job(toys))
    place = trained.files.folder / "model.json"
    data = json.loads(place.read_bytes())
    data["others"] = [pair for pair in data["others"] if pair[0] != DISTILLED]
    place.write_text(json.dumps(data))
    files = dataclasses.replace(trained.files, sha256=sha256_of(place))
    with pytest.raises(ModelError, match="has no distilled head") as error:
        load_distilled(files)
    assert "alloop train" in error.value.hint


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_noticed(toys, damage):
    trained = run_train(_job(toys))
    path = trained.files.folder / DISTILLED
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-4] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="cannot be read" if damage == "gone" else "damaged"):
        load_distilled(trained.files)


def test_the_file_is_plain_and_other_features_are_refused(toys):
    trained = run_train(_job(toys))
    tensors = safetensors.torch.load_file(trained.files.folder / DISTILLED)
    features = _features(toys, toys.images[75:])
    head = load_distilled(trained.files)

    assert sorted(tensors) == ["bias", "weight"]
    outside = (features @ tensors["weight"].T + tensors["bias"]).softmax(dim=1)
    torch.testing.assert_close(outside, head.log_probs(features).exp())
    with pytest.raises(ValueError, match=rf"need features \[B, {features.shape[1]}\]"):
        head.log_probs(features[:, 1:])
