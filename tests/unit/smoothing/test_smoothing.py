"""Smoothed features: against a plain second implementation, by hand on small graphs, and on input at its limits."""

import hashlib

import numpy as np
import pytest
import torch

from alloop.smoothing import smoothing
from alloop.smoothing.neighbors import principal_axes
from alloop.smoothing.smoothing import FEWEST, Smoothing, choose_nodes, fit_smoothing


def _keys(n: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(n)]


def _features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Three clusters with an offset, as a trunk's features have one."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, d, generator=generator)
    return 5 + centers[torch.arange(n) % 3] + 0.6 * torch.randn(n, d, generator=generator)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**exponent) @ vectors.T


class _Plain:
    """The eight steps one by one, in float64, with loops over images."""

    def __init__(self, x: np.ndarray, most: int = 400) -> None:
        self.mean = x.mean(axis=0)
        _, values, vt = np.linalg.svd(x - self.mean, full_matrices=False)
        self.v = vt[: min(most, int((values > 1e-5 * values[0]).sum()))].T
        u = self.directions(x)
        n = len(u)
        pairs = [(i, j) for i in range(n) for j in self.near(u[i], u, 5, i)]
        self.s = np.mean([np.outer(u[i] - u[j], u[i] - u[j]) for i, j in pairs], axis=0)
        self.mean_value = np.trace(self.s) / len(self.s)
        self.g, own = self.spaces(u)
        neighbors = [self.near(self.g[i], self.g, 10, i) for i in range(n)]
        self.sigma = np.array([np.linalg.norm(self.g[i] - self.g[neighbors[i][-1]]) for i in range(n)])
        w = np.zeros((n, n))
        for i in range(n):
            for j in neighbors[i]:
                w[i, j] = np.exp(-np.sum((self.g[i] - self.g[j]) ** 2) / (self.sigma[i] * self.sigma[j]))
        w = np.maximum(w, w.T)
        p = w / w.sum(axis=1, keepdims=True)
        self.parts = [own]
        for alpha, steps in ((0.8, 20), (0.95, 60)):
            f = own
            for _ in range(steps):
                f = alpha * p @ f + (1 - alpha) * own
            self.parts.append(f)
        self.rows = self.side_by_side(self.parts)

    def directions(self, x: np.ndarray) -> np.ndarray:
        return _unit((x - self.mean) @ self.v)

    def spaces(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eye = np.eye(len(self.s))
        return (
            _unit(u @ _power(self.s + 0.3 * self.mean_value * eye, -1 / 2)),
            _unit(u @ _power(self.s + self.mean_value * eye, -1 / 4)),
        )

    @staticmethod
    def near(row: np.ndarray, nodes: np.ndarray, k: int, own: int = -1) -> list[int]:
        order = np.argsort([-row @ node for node in nodes], kind="stable")
        return [int(j) for j in order if j != own][:k]

    def side_by_side(self, parts: list[np.ndarray]) -> np.ndarray:
        scaled = []
        for part, fitted in zip(parts, self.parts, strict=True):
            center = fitted.mean(axis=0)
            scaled.append((part - center) / np.sqrt(np.mean(np.sum((fitted - center) ** 2, axis=1))))
        return np.concatenate(scaled, axis=1) / np.sqrt(3)

    def place(self, x: np.ndarray) -> np.ndarray:
        g, n = self.spaces(self.directions(x))
        parts = [n, np.empty_like(n), np.empty_like(n)]
        for row in range(len(x)):
            found = self.near(g[row], self.g, 10)
            d = np.array([np.linalg.norm(g[row] - self.g[j]) for j in found])
            w = np.exp(-(d**2) / (d[-1] * self.sigma[found]))
            w /= w.sum()
            for place, alpha in ((1, 0.8), (2, 0.95)):
                parts[place][row] = (1 - alpha) * n[row] + alpha * w @ self.parts[place][found]
        return self.side_by_side(parts)


def _similarities(rows: np.ndarray | torch.Tensor) -> np.ndarray:
    """Inner products, which do not depend on the arbitrary signs of the axes."""
    wide = np.asarray(rows, dtype=np.float64)
    return wide @ wide.T


@pytest.mark.parametrize(("n", "d", "axes"), [(90, 7, 400), (60, 100, 400), (120, 40, 12)])
def test_nodes_and_other_images_get_the_features_of_the_plain_implementation(n, d, axes, monkeypatch):
    monkeypatch.setattr(smoothing, "AXES", axes)
    keys = sorted(_keys(n))
    x, new = _features(n, d), _features(20, d, seed=1)

    fitted = fit_smoothing(keys, x)
    plain = _Plain(x.double().numpy(), axes)

    ours = torch.cat([fitted.transform(keys, x), fitted.place(new)])
    theirs = np.concatenate([plain.rows, plain.place(new.double().numpy())])
    assert fitted.n_features == theirs.shape[1]
    np.testing.assert_allclose(_similarities(ours), _similarities(theirs), atol=2e-4)
    for part in range(3):
        columns = slice(part * fitted.n_features // 3, (part + 1) * fitted.n_features // 3)
        np.testing.assert_allclose(_similarities(ours[:, columns]), _similarities(theirs[:, columns]), atol=2e-4)


def test_each_part_is_centered_and_has_a_third_of_the_mean_squared_norm():
    keys = _keys(80)

    rows = fit_smoothing(keys, _features(80, 6)).transform(keys, torch.full((80, 6), torch.nan))

    assert rows.mean(dim=0).abs().max() < 1e-6
    for part in rows.split(6, dim=1):
        assert part.square().sum(dim=1).mean().item() == pytest.approx(1 / 3, rel=1e-5)


def test_the_order_of_the_images_changes_no_byte():
    keys, x = _keys(70), _features(70, 9)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))

    one = fit_smoothing(keys, x).to_tensors()
    other = fit_smoothing([keys[place] for place in order.tolist()], x[order]).to_tensors()

    assert all(one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)


def test_images_do_not_change_the_features_of_those_beside_them():
    keys, x = _keys(400), _features(400, 12)
    new = _features(300, 12, seed=2)
    fitted = fit_smoothing(keys, x)

    together = fitted.place(new)

    assert torch.equal(together, torch.cat([fitted.place(new[row : row + 1]) for row in range(300)]))
    mixed = fitted.transform([keys[5], "f" * 64, keys[0]], torch.stack([x[0], new[7], x[0]]))
    assert torch.equal(mixed[1], together[7])
    assert torch.equal(mixed[[0, 2]], fitted.rows[fitted.positions([keys[5], keys[0]])])


def test_known_links_change_no_byte():
    keys, x = _keys(400), _features(400, 12)
    fitted, new = fit_smoothing(keys, x), _features(300, 12, seed=2)
    images, rows = [*_keys(700)[400:], keys[5], keys[0]], torch.cat([new, x[[5, 0]]])

    links = fitted.link(new)

    assert torch.equal(fitted.transform(images, rows, links), fitted.transform(images, rows))
    torch.testing.assert_close(links.weights.sum(dim=1), torch.ones(300))
    assert torch.equal(links.nodes[7], fitted.link(new[7:8]).nodes[0])


def test_a_copy_of_a_node_lies_next_to_it():
    keys, x = _keys(300), _features(300, 12)
    fitted = fit_smoothing(keys, x)

    placed, rows = fitted.place(x), fitted.transform(keys, x)

    torch.testing.assert_close(placed[:, :12], rows[:, :12], atol=1e-5, rtol=0)  # α = 0 has no neighbors
    assert (placed - rows).norm(dim=1).median() < 0.3 * (placed - rows.roll(1, dims=0)).norm(dim=1).median()


def test_smoothing_brings_images_of_a_cluster_together():
    keys, x = _keys(150), _features(150, 10)
    cluster = torch.arange(150) % 3

    rows = fit_smoothing(keys, x).transform(keys, x)

    def share_within(z: torch.Tensor) -> float:
        within = sum(float((z[cluster == k] - z[cluster == k].mean(dim=0)).square().sum()) for k in range(3))
        return within / float((z - z.mean(dim=0)).square().sum())

    assert share_within(rows[:, 20:]) < share_within(rows[:, 10:20]) < share_within(rows[:, :10])
    assert share_within(rows[:, 20:]) < 0.5 * share_within(x)


def test_a_pair_has_one_weight_in_both_directions_and_rows_sum_to_1(monkeypatch):
    monkeypatch.setattr(smoothing, "NEIGHBORS", 1)
    # 0 and 1 are nearest to each other at distance 1; 2 is nearest to 1, at distance 2.
    found = torch.tensor([[1], [0], [1]])
    squared = torch.tensor([[1.0], [1.0], [4.0]])

    graph = smoothing._graph(found, squared, torch.tensor([1.0, 1.0, 2.0])).toarray()

    near, far = np.exp(-1), np.exp(-4 / 2)
    expected = [[0, 1, 0], [near / (near + far), 0, far / (near + far)], [0, 1, 0]]
    np.testing.assert_allclose(graph, expected, atol=1e-7)


def test_nodes_whose_weights_are_all_tiny_still_have_neighbors(monkeypatch):
    monkeypatch.setattr(smoothing, "NEIGHBORS", 1)
    # 0 and 1 are copies, so their bandwidth is 0; 2 is far from both.
    graph = smoothing._graph(
        torch.tensor([[1], [0], [0]]), torch.tensor([[0.0], [0.0], [4.0]]), torch.tensor([0.0, 0.0, 2.0])
    ).toarray()

    np.testing.assert_allclose(graph, [[0, 1, 0], [1, 0, 0], [1, 0, 0]], atol=1e-7)


def test_diffusion_between_two_nodes_follows_the_recurrence():
    graph = smoothing.scipy.sparse.csr_array(np.array([[0, 1], [1, 0]], dtype=np.float32))

    own, fast, slow = smoothing._diffused(graph, torch.tensor([[1.0], [0.0]]), lambda done: None)

    assert own.flatten().tolist() == [1, 0]
    for sums, alpha, steps in ((fast, 0.8, 20), (slow, 0.95, 60)):
        a, b = 1.0, 0.0
        for _ in range(steps):
            a, b = alpha * b + (1 - alpha), alpha * a
        assert sums.flatten().tolist() == pytest.approx([a, b], abs=1e-6)


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda x: torch.zeros_like(x),
        lambda x: torch.full_like(x, 0.1),
        lambda x: x[:1].repeat(len(x), 1),
        lambda x: torch.cat([x[:1].repeat(40, 1), x[40:]]),  # more copies than neighbors
        lambda x: torch.cat([x[:1].repeat(len(x) - 1, 1), x[-1:]]),
        lambda x: torch.cat([x[:30], 2 * x[:30].mean(dim=0) - x[:30]]),  # symmetric, so that the mean can be hit
        lambda x: x * 1e-30,
        lambda x: x * 1e30,
        lambda x: torch.cat([x[:-1], x[-1:] * 1e6]),
        lambda x: torch.cat([x, torch.ones(len(x), 3)], dim=1),
        lambda x: x[:, :1],
    ],
)  # fmt: skip
def test_input_at_its_limits_gives_finite_features(spoiled):
    keys, x = _keys(60), spoiled(_features(60, 8))
    fitted = fit_smoothing(keys, x)

    strange = torch.stack(
        [x.mean(dim=0), x[0], torch.zeros(x.shape[1]), x[0] * 1e8, -x[0], torch.full_like(x[0], 3e38)]
    )

    assert fitted.transform(keys, x).isfinite().all()
    placed = fitted.place(strange.clamp(-3e38, 3e38))
    assert placed.isfinite().all()
    assert placed.norm(dim=1).max() < 1e4
    restored = Smoothing.from_tensors(fitted.to_tensors())
    assert torch.equal(restored.place(strange.clamp(-3e38, 3e38)), placed)


def test_an_image_at_the_mean_has_no_direction_of_its_own():
    x = _features(60, 8)
    x = torch.cat([x, 2 * x.mean(dim=0) - x, x.mean(dim=0, keepdim=True)])
    keys = sorted(_keys(121))

    fitted = fit_smoothing(keys, x)

    assert fitted.places[-1].tolist() == [0] * 8
    unsmoothed = fitted.rows[-1, :8] * 3**0.5 * fitted.scales[0] + fitted.centers[:8]
    assert unsmoothed.abs().max() < 1e-6


def test_axes_without_variance_are_left_out():
    x = _features(100, 5)
    wide = torch.cat([x, x @ torch.ones(5, 2), torch.full((100, 3), 7.0)], dim=1)

    assert principal_axes(wide, 400)[1].shape == (10, 5)
    assert principal_axes(wide.repeat(1, 20), 400)[1].shape == (200, 5)  # more features than images
    assert principal_axes(wide, 3)[1].shape == (10, 3)


def test_principal_axes_are_those_of_the_covariance_on_both_paths():
    x = _features(30, 50)
    mean, axes, rms = principal_axes(x, 4)
    expected = np.linalg.svd(x.double().numpy() - x.double().numpy().mean(axis=0))

    np.testing.assert_allclose(np.abs(axes.numpy().T @ expected.Vh[:4].T), np.eye(4), atol=1e-5)
    assert rms == pytest.approx(np.sqrt((expected.S**2).sum() / 30))
    repeated = principal_axes(x.repeat(2, 1), 4)  # 60 rows, 50 features
    np.testing.assert_allclose(np.abs(axes.numpy().T @ repeated[1].numpy()), np.eye(4), atol=1e-5)
    torch.testing.assert_close(repeated[0], mean)


def test_what_was_written_is_what_is_read():
    keys, x = _keys(50), _features(50, 6)
    fitted = fit_smoothing(keys, x)

    read = Smoothing.from_tensors(fitted.to_tensors())

    assert read.keys == fitted.keys == tuple(sorted(keys))
    assert torch.equal(
        read.transform([*keys, "0" * 64], torch.cat([x, x[:1]])),
        fitted.transform([*keys, "0" * 64], torch.cat([x, x[:1]])),
    )


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("rows", lambda t: t[:-1], "rows is"),
        ("widths", lambda t: t.double(), "widths is"),
        ("axes", lambda t: t[:, :-1], "metric is"),
        ("axes", lambda t: t[0], "axes must be"),
        ("keys", lambda t: t.flip(0), "ascending"),
        ("keys", lambda t: t[:, :31], "keys must be bytes"),
        ("places", lambda t: t.clone().fill_(torch.nan), "places is not finite"),
        ("scales", lambda t: None, "no tensor scales"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(name, broken, message):
    tensors = fit_smoothing(_keys(50), _features(50, 6)).to_tensors()
    spoiled = broken(tensors.pop(name))

    with pytest.raises(ValueError, match=message):
        Smoothing.from_tensors(tensors if spoiled is None else tensors | {name: spoiled})


def test_wrong_input_is_refused_with_its_position():
    keys, x = _keys(40), _features(40, 6)
    x[7, 2] = torch.inf
    fitted = fit_smoothing(keys, _features(40, 6))

    with pytest.raises(ValueError, match="position 7 are not finite"):
        fit_smoothing(keys, x)
    with pytest.raises(ValueError, match="position 7 are not finite"):
        fitted.place(x)
    with pytest.raises(ValueError, match="position 7 are not finite"):
        fitted.transform([key[::-1] for key in keys], x)
    with pytest.raises(ValueError, match=f"at least {FEWEST}"):
        fit_smoothing(keys[:29], x[:29])
    with pytest.raises(ValueError, match="occurs twice, at positions 3 and 39"):
        fit_smoothing([*keys[:39], keys[3]], _features(40, 6))
    with pytest.raises(ValueError, match="64 hex digits"):
        fit_smoothing([*keys[:39], "cat.jpg"], _features(40, 6))
    with pytest.raises(ValueError, match=r"need features \[B, 6\]"):
        fitted.place(x[:, :5])
    with pytest.raises(ValueError, match="40 keys, and features of 39"):
        fitted.transform(keys, x[:39])


def test_nothing_to_place_gives_no_rows():
    fitted = fit_smoothing(_keys(40), _features(40, 6))

    assert fitted.transform([], torch.empty(0, 6)).shape == fitted.place(torch.empty(0, 6)).shape == (0, 18)


def test_a_small_pool_becomes_nodes_as_a_whole():
    keys = _keys(20)

    assert choose_nodes([*keys, keys[0]], [], most=20) == sorted(keys)


def test_a_large_pool_is_sampled_around_the_labeled_images():
    keys = _keys(2000)
    labeled = keys[100:150]

    chosen = choose_nodes(keys, [*labeled, "0" * 64], most=400)

    assert chosen == sorted(chosen) == choose_nodes(keys[::-1], labeled[::-1], most=400)
    assert len(chosen) == 400 and set(labeled) <= set(chosen) <= set(keys)
    rest = set(chosen) - set(labeled)
    # about 350 · 1000 / 1950 of each half; the standard deviation is 8.5
    assert abs(len(rest & set(keys[:1000])) - 350 * 950 / 1950) < 40
    more = choose_nodes([*keys, *_keys(2100)[2000:]], labeled, most=400)
    assert len(rest & set(more)) > 300  # a pool that grows by 5 % keeps nearly all of the sample


def test_too_many_labeled_images_are_sampled_too():
    keys = _keys(100)

    chosen = choose_nodes(keys, keys[:60], most=50)

    assert len(chosen) == 50 and set(chosen) <= set(keys[:60])
