"""Baselines that choose real images: which rows of the training set to keep."""

import numpy as np


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
    for rows, points in _by_class(features, labels):
        clusters = _kmeans(points, ipc, seed)
        distances = clusters.transform(points)
        picked: list[int] = []
        for column in distances.T:  # a row serves one centroid only
            column[picked] = np.inf
            picked.append(int(column.argmin()))
        chosen.append(rows[picked])
    return np.stack(chosen)


def _kmeans(points, clusters, seed):
    from sklearn.cluster import KMeans  # Its import takes two seconds.

    return KMeans(clusters, n_init=1, random_state=seed % 2**32).fit(points)


def quantise(
    features: np.ndarray, labels: np.ndarray, ipc: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class's optimal quantisation: k-means centroids and their weights.

    The centroids, weighted by the share of the class that is nearest to them, are the
    measure on `ipc` points closest to the class in the 2-Wasserstein distance; DDOQ
    (Tan and Slade, ICLR 2026) samples images from them and carries the weights into the
    student's loss.

    Args:
      features: `[n, d]`, usually latents.
      labels: classes `[n]`.
      ipc: points per class.
      seed: of scikit-learn's k-means++ (one start).

    Returns:
      Centroids `[classes, ipc, d]` and weights `[classes, ipc]`, 1 on average.
    """
    centroids, weights = [], []
    for _, points in _by_class(features, labels):
        clusters = _kmeans(points, ipc, seed)
        centroids.append(clusters.cluster_centers_)
        counts = np.bincount(clusters.labels_, minlength=ipc)
        weights.append(counts / counts.mean())
    return np.stack(centroids), np.stack(weights)


def herding_rows(features: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Returns rows whose running mean follows each class's mean, `[classes, ipc]`.

    Herding (Welling 2009; Rebuffi et al. 2017): each next row is the one that brings
    the mean of those taken closest to the mean of the class.

    Args:
      features: `[n, d]`, in which means are taken.
      labels: classes `[n]`.
      ipc: rows per class.
    """
    chosen = []
    for rows, points in _by_class(features, labels, ipc):
        mean, total, picked = points.mean(0), np.zeros(points.shape[1]), []
        for count in range(1, ipc + 1):
            distances = np.linalg.norm((total + points) / count - mean, axis=1)
            distances[picked] = np.inf
            picked.append(int(distances.argmin()))
            total += points[picked[-1]]
        chosen.append(rows[picked])
    return np.stack(chosen)


def kcenter_rows(features: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Returns rows that leave no row of their class far from one, `[classes, ipc]`.

    Greedy k-center (Sener and Savarese 2018): from the row nearest to the class's mean
    on, each next one is the farthest from those taken.

    Args:
      features: `[n, d]`, in which distances are taken.
      labels: classes `[n]`.
      ipc: rows per class.
    """
    chosen = []
    for rows, points in _by_class(features, labels, ipc):
        picked = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
        nearest = np.linalg.norm(points - points[picked[0]], axis=1)
        while len(picked) < ipc:
            nearest[picked] = -np.inf
            picked.append(int(nearest.argmax()))
            distances = np.linalg.norm(points - points[picked[-1]], axis=1)
            nearest = np.minimum(nearest, distances)
        chosen.append(rows[picked])
    return np.stack(chosen)


def easiest_rows(scores: np.ndarray, labels: np.ndarray, ipc: int) -> np.ndarray:
    """Returns the rows of the lowest score of each class, `[classes, ipc]`.

    With `el2n_scores` this is EL2N's selection for small sets: hard examples help only
    where many are kept (Sorscher et al. 2022).

    Args:
      scores: `[n]`.
      labels: classes `[n]`.
      ipc: rows per class.
    """
    return np.stack(
        [
            rows[np.argsort(own[:, 0], kind="stable")[:ipc]]
            for rows, own in _by_class(scores[:, None], labels, ipc)
        ]
    )


def el2n_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns `|p - onehot|_2`, averaged over networks (Paul et al. 2021), `[n]`.

    Args:
      probabilities: of networks early in training `[networks, n, classes]`.
      labels: classes `[n]`.
    """
    errors = probabilities - np.eye(probabilities.shape[-1])[labels]
    return np.linalg.norm(errors, axis=-1).mean(0)


def forgetting_scores(correct: np.ndarray) -> np.ndarray:
    """Returns how often a network forgot each image (Toneva et al., ICLR 2019), `[n]`.

    It forgets an image that it classified correctly at one moment of training and wrongly
    at the next. One that it never classified correctly counts as forgotten without end.

    Args:
      correct: whether each image is classified correctly, `[moments, n]`.
    """
    correct = np.asarray(correct, bool)
    forgotten = (correct[:-1] & ~correct[1:]).sum(0)
    return np.where(correct.any(0), forgotten, np.inf)


def _by_class(features, labels, least: int = 1):
    """Yields each class's rows and their features in float64, `[rows, d]`."""
    for c in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == c)
        if len(rows) < least:
            raise ValueError(f"class {c} has {len(rows)} rows, fewer than {least}")
        yield rows, np.asarray(features[rows], np.float64).reshape(len(rows), -1)
