"""How a small set lies among real data: coverage, diversity and distances, by features.

Functions of arrays: real features `[n, d]` and synthetic ones `[m, d]`, usually of one
class and before a trained classifier's last layer.
"""

import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist, pdist

from ot_dd import ot


def neighbourhoods(
    real: np.ndarray, synthetic: np.ndarray, *, k: int = 5
) -> dict[str, float]:
    """Returns precision, recall, density and coverage.

    Precision and recall of Kynkäänniemi et al. (NeurIPS 2019), density and coverage of
    Naeem et al. (ICML 2020): shares of points within the balls around the other side's
    points that reach their k-th neighbour.

    Args:
      real: `[n, d]`, `n > k`.
      synthetic: `[m, d]`.
      k: neighbours; cut to `m - 1` for the synthetic side, and recall is 0 for one
        point, which has no neighbour.

    Raises:
      ValueError: when there are too few real points.
    """
    if len(real) <= k:
        raise ValueError(f"k={k} neighbours need more than {len(real)} real points")
    between = cdist(real, synthetic)
    real_radius = np.sort(cdist(real, real), axis=1)[:, k]
    own = min(k, len(synthetic) - 1)
    radius = np.sort(cdist(synthetic, synthetic), axis=1)[:, own]
    inside = between < real_radius[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between < radius[None, :]).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float((between.min(1) < real_radius).mean()),
    }


def frechet_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Returns the squared 2-Wasserstein distance of the Gaussians fitted to both sides.

    With features of Inception-v3 this is the FID (Heusel et al., NeurIPS 2017). Few
    points make it large: compare sets of one size only.

    Args:
      real: `[n, d]`.
      synthetic: `[m, d]`.
    """
    real, synthetic = (np.asarray(v, np.float64) for v in (real, synthetic))
    means = real.mean(0) - synthetic.mean(0)
    covariances = [
        np.atleast_2d(np.cov(v, rowvar=False, ddof=min(1, len(v) - 1)))
        for v in (real, synthetic)
    ]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # tr (A B)^(1/2) by the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = sum(np.trace(c) for c in covariances)
    return float(means @ means + traces - 2 * np.sqrt(np.clip(mixed, 0, None)).sum())


def label_gap(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Returns the exact transport cost between two sets' labels, by total variation.

    Zero when the labels of a class are as mixed on synthetic images as on real ones,
    one when they have no class in common.

    Args:
      real: probabilities that teachers give to real images `[n, classes]`.
      synthetic: probabilities that they give to synthetic ones `[m, classes]`.
    """
    return ot.exact(0.5 * cdist(synthetic, _whole(real, synthetic), "cityblock"))


def _whole(real, synthetic):
    """Returns as many real points as give each synthetic one whole points.

    Exact transport is an assignment then; the last few real points are left out.
    """
    return real[: max(1, len(real) // len(synthetic)) * len(synthetic)]


def exact_transport(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Returns the exact transport cost of squared Euclidean costs.

    Args:
      real: points `[n, d]`, of which up to m - 1 are left out for a multiple of m.
      synthetic: points `[m, d]`.
    """
    points = [jnp.asarray(v) for v in (synthetic, _whole(real, synthetic))]
    return ot.exact(ot.cost_matrix(*points, "sqeuclidean"))


def diversity(points: np.ndarray) -> float:
    """Returns the mean distance between two different points of `[n, d]`, 0 for one."""
    return float(pdist(points).mean()) if len(points) > 1 else 0.0


def describe_class(
    real: np.ndarray, synthetic: np.ndarray, *, k: int = 5
) -> dict[str, float]:
    """Returns everything about one class; distances are relative to the real spread.

    Args:
      real: features of unseen real images of the class `[n, d]`.
      synthetic: features of the class's images in the set `[m, d]`.
      k: see `neighbourhoods`.

    Returns:
      `neighbourhoods`, and in units of the mean distance `s` between real points (its
      square for squared costs): `transport`, the exact transport cost with squared
      Euclidean costs; `divergence`, the Sinkhorn divergence at epsilon `0.05 s^2`;
      `mean_gap`, the squared distance of the means; `diversity`, the mean distance
      between synthetic points.
    """
    found = neighbourhoods(real, synthetic, k=k)
    spread = diversity(real) or 1.0
    scaled = [jnp.asarray(v / spread, jnp.float32) for v in (synthetic, real)]
    divergence = ot.sinkhorn_divergence(
        *scaled, cost_fn="sqeuclidean", epsilon=0.05, num_iters=200, grad="none"
    )
    gap = scaled[0].mean(0) - scaled[1].mean(0)
    return {
        **found,
        "transport": exact_transport(*scaled[::-1]),
        "divergence": float(divergence),
        "mean_gap": float(gap @ gap),
        "diversity": diversity(synthetic) / spread,
    }
