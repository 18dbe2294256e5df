"""Selections against brute force and hand-computed choices."""

import itertools

import numpy as np
import ot as pot
import pytest

from ot_dd import baselines


def data(seed=0, n=60, d=3, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n // classes)
    return rng.normal(size=(n, d)) + 4 * labels[:, None], labels


@pytest.mark.parametrize(
    "choose",
    [
        lambda f, y: baselines.random_rows(y, 4, 0),
        lambda f, y: baselines.kmeans_rows(f, y, 4, 0),
        lambda f, y: baselines.herding_rows(f, y, 4),
        lambda f, y: baselines.kcenter_rows(f, y, 4),
        lambda f, y: baselines.easiest_rows(f[:, 0], y, 4),
    ],
)
def test_each_class_gets_rows_of_its_own(choose):
    features, labels = data()
    rows = choose(features, labels)
    assert rows.shape == (3, 4)
    for c, own in enumerate(rows):
        assert (labels[own] == c).all() and len(set(own)) == 4


def test_herding_takes_the_best_next_row():
    features, labels = data(n=36)
    rows = baselines.herding_rows(features, labels, 5)
    for c, own in enumerate(rows):
        points = np.flatnonzero(labels == c)
        mean = features[points].mean(0)

        def error(chosen, mean=mean):
            return np.linalg.norm(features[list(chosen)].mean(0) - mean)

        for k in range(5):
            others = set(points) - set(own[:k])
            best = min(others, key=lambda r, k=k: error([*own[:k], r]))
            assert own[k] == best


def test_kcenter_is_within_twice_the_best_radius():
    features, labels = data(n=30)
    for c, own in enumerate(baselines.kcenter_rows(features, labels, 3)):
        points = features[labels == c]

        def radius(centers, points=points):
            gaps = np.linalg.norm(points[:, None] - centers[None], axis=-1)
            return gaps.min(1).max()

        best = min(
            radius(points[list(chosen)])
            for chosen in itertools.combinations(range(len(points)), 3)
        )
        assert radius(features[own]) <= 2 * best


def test_el2n_by_hand():
    probabilities = np.array([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    scores = baselines.el2n_scores(probabilities, np.array([0, 0]))
    np.testing.assert_allclose(scores, [np.sqrt(0.5) / 2, np.sqrt(2.0)])
    assert baselines.easiest_rows(scores, np.array([0, 0]), 1).tolist() == [[0]]


def test_forgetting_by_hand():
    moments = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]])
    scores = baselines.forgetting_scores(moments)
    np.testing.assert_array_equal(scores, [1, 0, np.inf, 2])
    assert baselines.easiest_rows(-scores, np.zeros(4, int), 2).tolist() == [[2, 3]]


def test_a_weighted_quantisation_is_closer_than_one_without_weights():
    rng = np.random.default_rng(0)
    shares = np.repeat([0.0, 8.0, 20.0], [70, 20, 10])
    features = rng.normal(size=(100, 2)) + shares[:, None]
    labels = np.zeros(100, int)
    centroids, weights = baselines.quantise(features, labels, 3, 0)
    np.testing.assert_allclose(weights.mean(), 1.0)
    np.testing.assert_allclose(np.sort(weights[0]), [0.3, 0.6, 2.1])
    cost = pot.dist(features, centroids[0])
    uniform = np.full(100, 0.01)
    weighted = pot.emd2(uniform, weights[0] / 3, cost)
    np.testing.assert_allclose(weighted, cost.min(1).mean(), rtol=1e-6)
    assert weighted < 0.5 * pot.emd2(uniform, np.full(3, 1 / 3), cost)


@pytest.mark.parametrize("choose", [baselines.herding_rows, baselines.kcenter_rows])
def test_a_class_with_too_few_rows_is_refused(choose):
    labels = np.array([0] * 5 + [1] * 4)
    with pytest.raises(ValueError, match="class 1 has 4 rows, fewer than 5"):
        choose(np.random.default_rng(0).normal(size=(9, 3)), labels, 5)
    with pytest.raises(ValueError, match="class 1 has 4 rows, fewer than 5"):
        baselines.easiest_rows(np.arange(9.0), labels, 5)
