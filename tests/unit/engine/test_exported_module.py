"""The exported module against alloop's own arithmetic: calibrators, placing, heads under every loss and dropout."""

import hashlib

import numpy as np
import onnxruntime
import pytest
import torch

from alloop.calibration.choose import fit_calibrator
from alloop.calibration.isotonic import Isotonic
from alloop.calibration.weighing import Weighed
from alloop.engine.exported_module import SmoothedHeads, _calibration
from alloop.losses.named import find_loss
from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.smoothing.smoothing import fit_smoothing

pytestmark = pytest.mark.usefixtures("onnx_operators")

NAMES = ["none", "temperature", "platt", "isotonic", "histogram-mass", "histogram-width"]


def _predictions(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return (1.7 * logits).log_softmax(-1), labels


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_calibrator_says_the_same(name, k):
    log_probs, labels = _predictions(400, k)
    calibrator = fit_calibrator(name, log_probs, labels).calibrator
    others, _ = _predictions(300, k, seed=1)
    sure = torch.eye(k, dtype=torch.float64).mul(2000).log_softmax(-1)  # probabilities of exactly 0 and 1
    rows = torch.cat([others, sure]).clamp_min(-1e6)

    torch.testing.assert_close(_calibration(calibrator)(rows).exp(), calibrator.apply(rows).exp(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_before_the_calibrator(name):
    log_probs, labels = _predictions(400, 4)
    noisy, _ = _predictions(400, 4, seed=5)
    both = torch.stack([(log_probs + noisy).log_softmax(-1), log_probs], dim=1)
    calibrator = fit_calibrator(name, both, labels).calibrator
    assert isinstance(calibrator, Weighed)
    torch.testing.assert_close(_calibration(calibrator)(both).exp(), calibrator.apply(both).exp(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_every_calibrator_works_in_onnx(name, tmp_path):
    log_probs, labels = _predictions(400, 4)
    calibrator = fit_calibrator(name, log_probs, labels).calibrator
    rows, _ = _predictions(30, 4, seed=1)
    batch = ({0: torch.export.Dim("batch", min=1, max=1000)},)
    exported = torch.export.export(_calibration(calibrator), (rows[:4],), dynamic_shapes=batch)

    torch.onnx.export(exported, (rows[:4],), tmp_path / "c.onnx", input_names=["x"], dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(tmp_path / "c.onnx").run(None, {"x": rows.numpy()})

    np.testing.assert_allclose(np.exp(found), calibrator.apply(rows).exp(), atol=1e-9)


def test_a_class_of_one_knot_is_constant():
    calibrator = Isotonic((((0.5, 0.25),), ((0.1, 0.2), (0.4, 0.8))), 0.01)
    rows = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.75, 0.25]], dtype=torch.float64).log()
    torch.testing.assert_close(_calibration(calibrator)(rows), calibrator.apply(rows))


def test_an_unknown_calibrator_is_refused():
    with pytest.raises(ValueError, match="the calibrator other cannot be exported"):
        _calibration(type("Other", (), {"name": "other"})())


@pytest.fixture(scope="module")
def placed():
    """A smoothing of 120 images, and 50 others, one of them at the mean and one far away."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 20, generator=generator) + 3 * torch.randint(3, (120, 1), generator=generator)
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(120)]
    smoothing = fit_smoothing(keys, rows)
    others = torch.randn(50, 20, generator=generator)
    others[0] = smoothing.mean.float()
    others[1] *= 1e6
    return smoothing, others


@pytest.mark.parametrize("loss", ["cross-entropy", "logit-norm"])
@pytest.mark.parametrize("passes", [0, 3])
def test_smoothed_heads_say_the_same_of_images_outside_the_pool(placed, loss, passes):
    smoothing, others = placed
    heads = MultiHead(smoothing.n_features, 2, 4, torch.Generator().manual_seed(1)).eval()
    heads.standardize_by(smoothing.rows)
    found = find_loss(loss)
    dropout = HeadDropout(0.25, passes) if passes else None
    features = smoothing.place(others)
    logits = heads(features) if dropout is None else dropout.logits(heads, features, seed=9)
    masks = None if dropout is None else dropout.fixed_masks(smoothing.n_features, 9)

    with torch.inference_mode():
        said = SmoothedHeads(smoothing, [heads], found, masks)(others)

    torch.testing.assert_close(said, found.log_probs(logits), rtol=0, atol=2e-5)


def test_placing_is_that_of_the_smoothing(placed):
    smoothing, others = placed
    module = SmoothedHeads(smoothing, [], find_loss())
    np.testing.assert_allclose(module.place(others), smoothing.place(others), atol=1e-5)
