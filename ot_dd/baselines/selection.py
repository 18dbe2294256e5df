"""Baselines that choose real images: which rows of the training set to keep."""

import numpy as np
from sklearn.cluster import KMeans


def random_rows(labels: np.ndarray, ipc: int, seed: int) -> np.ndarray:
    """Returns `ipc` random rows of every class, `[classes, ipc]`, without repeats.

    Args:
      labels: classes `[n]`.
      ipc: images per class.
      seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    classes = range(int(labels.max()) + 1)
    return np.stack(
        [rng.choice(np.flatnonzero(labels == c), ipc, replace=False) for c in classes]
    )


def kmeans_rows(
    features: np.ndarray, labels: np.ndarray, ipc: int, seed: int
) -> np.ndarray:
    """Returns the rows nearest to each class's k-means centroids, `[classes, ipc]`.

    Args:
      features: `[n, d]`, in which distances are taken.
      labels: classes `[n]`.
      ipc: clusters per class.
      seed: of scikit-learn's k-means++ (one start).
    """
    chosen = []
    for c in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == c)
        points = np.asarray(features[rows], np.float64)
        clusters = KMeans(ipc, n_init=1, random_state=seed).fit(points)
        distances = clusters.transform(points)
        picked: list[int] = []
        for column in distances.T:  # a row serves one centroid only
            column[picked] = np.inf
            picked.append(int(column.argmin()))
        chosen.append(rows[picked])
    return np.stack(chosen)
