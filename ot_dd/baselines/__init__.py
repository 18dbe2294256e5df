"""Image sets to compare with: each function returns rows of the training set."""

from ot_dd.baselines.selection import kmeans_rows, random_rows

__all__ = ["kmeans_rows", "random_rows"]
