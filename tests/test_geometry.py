"""Against the reference implementation of the metrics, and closed forms."""

import numpy as np
import ot as pot
import pytest
import scipy.linalg
from prdc import compute_prdc
from scipy.spatial.distance import cdist

from ot_dd import geometry
from ot_dd.ot import exact


def clouds(seed=0, n=200, m=30, d=8):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), 0.8 * rng.normal(size=(m, d)) + 0.2


@pytest.mark.parametrize("k", [1, 5, 10])
def test_neighbourhoods_are_the_reference_ones(k):
    real, synthetic = clouds()
    ours = geometry.neighbourhoods(real, synthetic, k=k)
    theirs = compute_prdc(real, synthetic, nearest_k=k)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name)


def test_small_sets_have_their_own_neighbours():
    real, synthetic = clouds(m=3)
    one = geometry.neighbourhoods(real, synthetic[:1])
    assert one["recall"] == 0 and 0 < one["density"]
    few = geometry.neighbourhoods(real, synthetic)  # k = 5 is cut to 2.
    radius = cdist(synthetic, synthetic).max(1)
    assert few["recall"] == (cdist(real, synthetic) < radius).any(1).mean()
    with pytest.raises(ValueError, match="k=5.*5 real points"):
        geometry.neighbourhoods(real[:5], synthetic)


def test_frechet_distance_by_the_matrix_root():
    real, synthetic = clouds(m=100)
    a, b = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    gap = real.mean(0) - synthetic.mean(0)
    wanted = gap @ gap + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    found = geometry.frechet_distance(real, synthetic)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(geometry.frechet_distance(real, real), 0, atol=1e-8)
    gap = real.mean(0) - synthetic[0]  # One point has no spread.
    found = geometry.frechet_distance(real, synthetic[:1])
    np.testing.assert_allclose(found, gap @ gap + np.trace(a), rtol=1e-6)


def test_a_collapsed_set_and_a_spread_one():
    """All at the mean: no diversity, no gap of means, and far by transport."""
    real, _ = clouds()
    collapsed = np.repeat(real.mean(0, keepdims=True), 10, axis=0)
    spread = real[:10]
    one, two = (geometry.describe_class(real, s) for s in (collapsed, spread))
    assert one["diversity"] == 0 and two["diversity"] > 0.8
    assert one["mean_gap"] < 1e-10 < two["mean_gap"]
    assert one["coverage"] < two["coverage"]
    assert min(one["divergence"], two["divergence"]) > 0
    scale = geometry.diversity(real)
    wanted = ((real - real.mean(0)) ** 2).sum(1).mean() / scale**2
    np.testing.assert_allclose(one["transport"], wanted, rtol=1e-5)


def test_units_do_not_matter():
    real, synthetic = clouds()
    one = geometry.describe_class(real, synthetic)
    two = geometry.describe_class(100 * real, 100 * synthetic)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, err_msg=name)


def test_frechet_distance_of_narrow_features():
    real, synthetic = np.random.default_rng(0).normal(100, 5, (2, 50, 8))
    synthetic = synthetic + 40
    narrow = [v.astype(np.float16) for v in (real, synthetic)]
    found = geometry.frechet_distance(*narrow)
    np.testing.assert_allclose(
        found, geometry.frechet_distance(real, synthetic), rtol=1e-2
    )


def test_real_points_that_are_all_alike_have_no_spread_to_divide_by():
    found = geometry.describe_class(np.ones((20, 3)), np.zeros((4, 3)))
    np.testing.assert_allclose(found["transport"], 3.0, rtol=1e-6)
    with pytest.raises(ValueError, match="k=5 neighbours need more than 3 real points"):
        geometry.describe_class(np.ones((3, 3)), np.zeros((4, 3)))


def test_exact_transport_does_not_depend_on_scales():
    rng = np.random.default_rng(0)
    cost, a, b = rng.random((30, 20)), rng.random(30) ** 4, rng.random(20) ** 4
    a, b = a / a.sum(), b / b.sum()
    wanted = pot.emd2(a, b, cost)
    for scale in (1e-9, 1.0, 1e9):
        np.testing.assert_allclose(exact(cost * scale, a, b), wanted * scale, rtol=1e-9)
        found = exact(cost, a * scale, b * scale)
        np.testing.assert_allclose(found, wanted * scale, rtol=1e-9)
    # Skewed weights of many points, which absolute tolerances called infeasible.
    cost, a, b = rng.random((300, 200)), rng.random(300) ** 4, rng.random(200) ** 4
    a, b = a / a.sum(), b / b.sum()
    np.testing.assert_allclose(exact(cost, a, b), pot.emd2(a, b, cost), rtol=1e-9)
