"""Platt, isotonic and histogram calibration against third-party values, and what holds for all calibrators."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.calibration.calibrator import Unchanged
from alloop.calibration.choose import (
    choose_calibrator,
    cross_fit,
    fit_calibrator,
    from_json,
    smallest_sample,
    to_json,
)
from alloop.calibration.folds import draw_folds
from alloop.calibration.histogram import Histogram, apply_bins, fit_bins, fit_histogram
from alloop.calibration.isotonic import apply_curve, fit_curve, fit_isotonic
from alloop.calibration.platt import Platt, fit_logistic, fit_platt
from alloop.calibration.temperature import Temperature

ASSETS = Path(__file__).parents[2] / "assets" / "golden"
GOLDEN = np.load(ASSETS / "posthoc.npz")
SCALED = np.load(ASSETS / "temperature.npz")
FITTED = ["temperature", "platt", "isotonic", "histogram-width", "histogram-mass"]
NAMES = ["none", *FITTED]


def _predictions(n: int, k: int = 4, sharpness: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs that are `sharpness` times as confident as they should be, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * 1.5
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return (logits * sharpness).log_softmax(-1), labels


def _nll(log_probs: torch.Tensor, labels: torch.Tensor) -> float:
    return torch.nn.functional.nll_loss(log_probs.double(), labels).item()


@pytest.mark.parametrize(("is_smoothed", "key"), [(True, "smoothed"), (False, "mle")])
def test_platts_curve_agrees_with_statsmodels(is_smoothed, key):
    slope, intercept = fit_logistic(
        GOLDEN["platt_scores_fit"], GOLDEN["platt_labels_fit"].astype(float), is_smoothed=is_smoothed
    )

    expected = (
        (GOLDEN["platt_A_smoothed"], GOLDEN["platt_B_smoothed"])
        if is_smoothed
        else (-GOLDEN["platt_w_mle"], -GOLDEN["platt_b_mle"])
    )
    assert (slope, intercept) == pytest.approx(tuple(map(float, expected)), abs=1e-6)
    probs = 1 / (1 + np.exp(np.clip(slope * GOLDEN["platt_scores_eval"] + intercept, -700, 700)))
    np.testing.assert_allclose(probs, GOLDEN[f"platt_probs_eval_{key}"], atol=1e-6)


def test_platt_on_two_classes_is_one_curve_over_the_log_odds():
    scores, labels = GOLDEN["platt_scores_fit"], torch.from_numpy(GOLDEN["platt_labels_fit"])
    log_probs = torch.from_numpy(np.stack([np.zeros_like(scores), scores], axis=1)).log_softmax(-1)
    held_out = GOLDEN["platt_scores_eval"]
    held = torch.from_numpy(np.stack([np.zeros_like(held_out), held_out], axis=1)).log_softmax(-1)

    platt = fit_platt(log_probs, labels)

    assert platt.slopes == pytest.approx((float(GOLDEN["platt_A_smoothed"]),), abs=1e-6)
    np.testing.assert_allclose(platt.apply(held).exp()[:, 1].numpy(), GOLDEN["platt_probs_eval_smoothed"], atol=1e-6)


def test_platt_on_more_classes_is_one_against_the_rest_then_normalized():
    log_probs, labels = _predictions(400)
    probs = log_probs.exp()
    platt = fit_platt(log_probs, labels)

    applied = platt.apply(log_probs).exp()

    odds = (probs / (1 - probs)).log()
    alone = []
    for k in range(4):
        slope, intercept = fit_logistic(odds[:, k].numpy(), (labels == k).double().numpy())
        alone.append(1 / (1 + torch.exp(slope * odds[:, k] + intercept)))
    expected = torch.stack(alone, 1) / torch.stack(alone, 1).sum(1, keepdim=True)
    torch.testing.assert_close(applied, expected, atol=1e-9, rtol=0)


def test_smoothed_targets_keep_platt_finite_where_scores_separate_the_classes():
    scores, labels = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])

    slope, intercept = fit_logistic(scores, labels)

    assert -10 < slope < 0
    assert intercept == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="separate"):
        fit_logistic(scores, labels, is_smoothed=False)


def test_isotonic_curve_agrees_with_scikit_learn():
    knots = fit_curve(GOLDEN["iso_probs_fit"], GOLDEN["iso_labels_fit"].astype(float))

    np.testing.assert_allclose([x for x, _ in knots], GOLDEN["iso_x_thresholds"], atol=1e-9)
    np.testing.assert_allclose([y for _, y in knots], GOLDEN["iso_y_thresholds"], atol=1e-9)
    np.testing.assert_allclose(apply_curve(knots, GOLDEN["iso_probs_eval"]), GOLDEN["iso_out"], atol=1e-9)


def test_isotonic_pools_a_violation_by_hand():
    knots = fit_curve(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0]))

    # 1 and 0 at 0.2 and 0.3 violate the order: both become their mean.
    np.testing.assert_allclose(apply_curve(knots, np.array([0.0, 0.1, 0.25, 0.4, 1.0])), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(("fit", "key"), [("isotonic", "ovr_iso_out"), ("histogram", "ovr_hist_out")])
def test_one_against_the_rest_agrees_with_other_libraries_without_a_floor(fit, key):
    log_probs = torch.from_numpy(GOLDEN["ovr_probs_fit"]).log()
    labels = torch.from_numpy(GOLDEN["ovr_labels_fit"])
    if fit == "isotonic":
        fitted = fit_isotonic(log_probs, labels, floor=0.0)
    else:
        fitted = fit_histogram(log_probs, labels, floor=0.0, is_smoothed=False)

    probs = fitted.apply(torch.from_numpy(GOLDEN["ovr_probs_eval"]).log()).exp()

    np.testing.assert_allclose(probs.numpy(), GOLDEN[key], atol=1e-9)


@pytest.mark.parametrize("bins", ["width", "mass"])
def test_bins_agree_with_other_libraries(bins):
    edges, values = fit_bins(
        GOLDEN["hist_probs_fit"], GOLDEN["hist_labels_fit"].astype(float), bins, 15, is_smoothed=False
    )

    if bins == "mass":
        np.testing.assert_allclose(edges, GOLDEN["hist_mass_edges"], atol=1e-9)
    applied = apply_bins(edges, values, GOLDEN["hist_probs_eval"])
    np.testing.assert_allclose(applied, GOLDEN[f"hist_out_equal_{bins}"], atol=1e-9)


def test_bins_are_right_closed_smoothed_and_worth_their_center_when_empty():
    edges, values = fit_bins(np.array([0.0, 0.5, 0.5]), np.array([0.0, 1.0, 1.0]), "width", 4, is_smoothed=True)

    assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert values.tolist() == [1 / 3, 3 / 4, 0.625, 0.875]


def test_equal_quantiles_are_merged():
    edges, values = fit_bins(np.full(10, 0.3), np.array([1.0] * 4 + [0.0] * 6), "mass", 15, is_smoothed=False)

    assert len(values) == len(edges) - 1 == 1
    assert apply_bins(edges, values, np.array([0.0, 0.3, 1.0])).tolist() == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("case", ["over", "under", "binary"])
def test_temperature_by_name_agrees_with_scipy(case):
    log_probs = torch.from_numpy(SCALED[f"{case}_logits_fit"]).log_softmax(-1)

    fitted = fit_calibrator("temperature", log_probs, torch.from_numpy(SCALED[f"{case}_labels_fit"]))

    assert fitted.calibrator.temperature == pytest.approx(float(SCALED[f"{case}_T"]), rel=1e-6)
    assert fitted.nll_before == pytest.approx(float(SCALED[f"{case}_nll_before"]), abs=1e-10)
    assert fitted.nll_after == pytest.approx(float(SCALED[f"{case}_nll_after"]), abs=1e-10)
    held_out = torch.from_numpy(SCALED[f"{case}_logits_eval"]).log_softmax(-1)
    np.testing.assert_allclose(fitted.calibrator.apply(held_out).exp(), SCALED[f"{case}_probs_eval"], atol=1e-7)


@pytest.mark.parametrize("name", FITTED)
def test_each_calibrator_repairs_overconfidence_on_images_it_has_not_seen(name):
    fitted = fit_calibrator(name, *_predictions(1500, sharpness=3))
    log_probs, labels = _predictions(1000, sharpness=3, seed=1)

    assert _nll(fitted.calibrator.apply(log_probs), labels) < _nll(log_probs, labels) - 0.1
    assert fitted.nll_after < fitted.nll_before
    assert fitted.note == ""


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 500), size=st.sampled_from([1e-3, 1.0, 1e3, 1e6]), n_classes=st.integers(2, 5))
@settings(max_examples=8, deadline=None)
def test_results_are_finite_distributions_whatever_the_prediction(name, seed, size, n_classes):
    fitted = fit_calibrator(name, *_predictions(300, n_classes, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    wild = (torch.randn(20, n_classes, generator=generator) * size).log_softmax(-1)
    wild[0] = torch.tensor([0.0] + [-math.inf] * (n_classes - 1))

    applied = fitted.calibrator.apply(wild)

    assert torch.isfinite(applied).all()
    torch.testing.assert_close(applied.exp().sum(1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("name", FITTED)
def test_one_hot_predictions_can_be_fitted_to(name):
    log_probs = torch.full((300, 3), -math.inf, dtype=torch.float64)
    labels = torch.arange(300) % 3
    log_probs[torch.arange(300), torch.where(torch.arange(300) % 10 == 0, (labels + 1) % 3, labels)] = 0

    fitted = fit_calibrator(name, log_probs, labels)

    assert torch.isfinite(fitted.calibrator.apply(log_probs)).all()
    assert fitted.nll_after <= fitted.nll_before


@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_do_not_matter(name):
    log_probs, labels = _predictions(300)
    order = torch.tensor([2, 0, 3, 1])

    renamed = fit_calibrator(name, log_probs[:, order], order.argsort()[labels]).calibrator.apply(log_probs[:, order])

    plain = fit_calibrator(name, log_probs, labels).calibrator.apply(log_probs)
    torch.testing.assert_close(renamed, plain[:, order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_the_holdout_never_shows_is_no_obstacle(name):
    log_probs, labels = _predictions(300, k=5)
    labels = torch.where(labels == 4, 0, labels)

    applied = fit_calibrator(name, log_probs, labels).calibrator.apply(log_probs)

    assert torch.isfinite(applied).all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_no_rows_are_fine(name):
    calibrator = fit_calibrator(name, *_predictions(300)).calibrator
    log_probs, _ = _predictions(5)

    half = calibrator.apply(log_probs.half())

    assert half.dtype == torch.float64
    assert torch.isfinite(half).all()
    assert calibrator.apply(log_probs[:0]).shape == (0, 4)
    torch.testing.assert_close(calibrator.apply(log_probs[:1]), calibrator.apply(log_probs)[:1])


@pytest.mark.parametrize("name", NAMES)
def test_json_brings_back_the_same_calibrator(name):
    fitted = fit_calibrator(name, *_predictions(300))

    again = from_json(json.loads(json.dumps(to_json(fitted))))

    assert again == fitted


def test_an_unknown_calibrator_in_json_is_refused():
    data = to_json(fit_calibrator("none", *_predictions(60)))
    data["calibrator"] = {"name": "tarot"}

    with pytest.raises(ValueError, match="tarot"):
        from_json(data)


def test_a_row_that_is_not_finite_is_named():
    log_probs, labels = _predictions(60)
    log_probs[17, 1] = math.nan

    with pytest.raises(ValueError, match="row 17"):
        fit_calibrator("platt", log_probs, labels)


def test_a_label_that_is_no_class_is_named():
    log_probs, labels = _predictions(60)
    labels[3] = 9

    with pytest.raises(ValueError, match="row 3 is 9"):
        fit_calibrator("platt", log_probs, labels)


def test_soft_targets_are_refused():
    log_probs, _ = _predictions(60)

    with pytest.raises(ValueError, match="class positions"):
        fit_calibrator("isotonic", log_probs, log_probs.exp())


@pytest.mark.parametrize("name", [*FITTED, "auto"])
@pytest.mark.parametrize("n", [0, 1, 49])
def test_below_fifty_labels_predictions_stay_and_the_note_says_so(name, n):
    log_probs, labels = _predictions(n)

    calibrated, fitted = cross_fit(name, log_probs, labels, seed=0)

    assert fitted.calibrator == (Temperature(1.0) if name == "temperature" else Unchanged())
    assert f"{n} holdout labels are too few" in fitted.note
    torch.testing.assert_close(calibrated, log_probs.float())


def test_isotonic_is_refused_below_two_hundred_labels_by_default():
    log_probs, labels = _predictions(199)

    with pytest.raises(ValueError, match="at least 200"):
        fit_isotonic(log_probs, labels)
    assert fit_calibrator("isotonic", log_probs, labels).calibrator == Unchanged()
    assert "too few to fit isotonic (fewer than 200)" in fit_calibrator("isotonic", log_probs, labels).note
    assert fit_isotonic(log_probs, labels, fewest=100).curves


def test_a_floor_of_half_an_image_keeps_nll_finite():
    log_probs, labels = _predictions(200)

    probs = fit_isotonic(log_probs, labels)

    assert probs.floor == 1 / 400
    assert probs.apply(log_probs).exp().min() > 0.0005


@pytest.mark.parametrize("name", FITTED)
def test_no_image_is_calibrated_by_itself(name):
    log_probs, labels = _predictions(250, sharpness=3)

    calibrated, fitted = cross_fit(name, log_probs, labels, seed=3)

    for rest, fold in draw_folds(labels.numpy(), 3, 5):
        if name == "isotonic":
            alone = fit_isotonic(log_probs[rest], labels[rest], fewest=1)
        else:
            alone = fit_calibrator(name, log_probs[rest], labels[rest]).calibrator
        torch.testing.assert_close(calibrated[fold], alone.apply(log_probs[fold]).float())
    assert not torch.equal(calibrated, fitted.calibrator.apply(log_probs).float())


def test_auto_takes_the_temperature_where_only_sharpness_is_wrong():
    name, why = choose_calibrator(*_predictions(1200, sharpness=3), seed=0)

    assert name == "temperature"
    assert "5-fold NLL on 1200 images" in why
    assert "none " in why


def test_auto_takes_a_flexible_one_where_a_temperature_cannot_help():
    log_probs, labels = _predictions(3000, sharpness=1)
    shift = torch.tensor([2.5, 0.0, 0.0, -2.5])  # a bias between classes

    name, _ = choose_calibrator((log_probs + shift).log_softmax(-1), labels, seed=0)

    assert name in {"platt", "isotonic"}


def test_auto_leaves_calibrated_predictions_nearly_as_they_are():
    log_probs, labels = _predictions(400, sharpness=1)

    calibrated, fitted = cross_fit("auto", log_probs, labels, seed=0)

    assert isinstance(fitted.calibrator, Unchanged | Temperature)
    assert _nll(calibrated, labels) == pytest.approx(_nll(log_probs, labels), abs=0.02)


def test_auto_says_which_calibrators_had_too_few_images():
    _, why = choose_calibrator(*_predictions(60), seed=0)

    assert "Not considered with 60 images of 4 classes: platt, histogram-mass, histogram-width, isotonic" in why


def test_auto_asks_more_images_of_flexible_calibrators():
    assert smallest_sample("isotonic", 3, is_auto=True) == 1000
    assert smallest_sample("platt", 50, is_auto=True) == 500
    assert smallest_sample("temperature", 50, is_auto=True) == 50
    assert smallest_sample("isotonic") == 200


def test_the_record_says_what_it_was_fitted_to():
    log_probs, labels = _predictions(100)
    other = labels.clone()
    other[0] = (other[0] + 1) % 4

    first, second = fit_calibrator("platt", log_probs, labels), fit_calibrator("platt", log_probs, other)

    assert first.n == sum(first.class_counts) == 100
    assert first.class_counts == tuple(torch.bincount(labels, minlength=4).tolist())
    assert first.data_sha256 != second.data_sha256
    assert first.accuracy_before == pytest.approx((log_probs.argmax(1) == labels).double().mean().item())


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="there is no calibrator 'plat'"):
        fit_calibrator("plat", *_predictions(60))


def test_calibrators_are_plain_numbers():
    assert Platt((-1.0,), (0.0,)).apply(torch.tensor([[0.25, 0.75]]).log()).exp()[0, 1].item() == pytest.approx(0.75)
    histogram = Histogram(((0, 0.5, 1),) * 2, ((0.2, 0.6),) * 2, floor=0.0)
    assert histogram.apply(torch.tensor([[0.25, 0.75]]).log()).exp()[0].tolist() == pytest.approx([0.25, 0.75])
