"""k-means: k-means++ seeds, Lloyd's iterations, empty clusters moved to the points that fit worst.

N points, D features, K centroids. Sources: Lloyd 1982; Arthur and Vassilvitskii 2007.
"""

from collections.abc import Callable

import numpy as np

CHUNK = 16_384  # points compared with all centroids at a time
SEEDING_POINTS = 20_000  # k-means++ looks at no more than this many: its cost is K passes over them
TOLERANCE = 1e-4  # relative fall of the distortion below which the iterations end


def assign(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] nearest centroid of each point, ties to the lowest, and float64 [N] squared distances.

    In float64, so that the answer for a point does not depend on the points beside it.
    """
    centres = centroids.astype(np.float64)
    norms = np.square(centres).sum(axis=1)
    nearest, distance = np.empty(len(points), np.int64), np.empty(len(points))
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK].astype(np.float64)
        scores = norms - 2 * (part @ centres.T)
        best = scores.argmin(axis=1)
        nearest[start : start + CHUNK] = best
        least = np.take_along_axis(scores, best[:, None], axis=1)[:, 0] + np.square(part).sum(axis=1)
        distance[start : start + CHUNK] = np.maximum(least, 0)
    return nearest, distance


def fit(
    points: np.ndarray,
    clusters: int,
    seed: int,
    iterations: int = 100,
    progress: Callable[[int, float], None] = lambda iteration, distortion: None,
) -> np.ndarray:
    """float32 [K, D] centroids; the same points and seed give the same ones. `progress` is told the mean distance.

    ValueError for fewer distinct points than clusters.
    """
    if clusters < 1 or len(points) < clusters:
        raise ValueError(f"kmeans: want at least as many points as clusters, got {len(points):,} and {clusters}")
    random = np.random.default_rng(seed)
    centroids = _seeds(points, clusters, random)
    before = np.inf
    for iteration in range(iterations):
        nearest, distance = assign(points, centroids)
        after = float(distance.mean())
        progress(iteration, after)
        counts = np.bincount(nearest, minlength=clusters)
        sums = np.stack([np.bincount(nearest, weights=column, minlength=clusters) for column in points.T], axis=1)
        centroids = sums / np.maximum(counts, 1)[:, None]
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = points[np.argsort(-distance, kind="stable")[: len(empty)]]
        if not len(empty) and before - after <= TOLERANCE * after:
            break
        before = after
    return centroids.astype(np.float32)


def _seeds(points: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """float64 [K, D]: each next seed is drawn with probability proportional to its squared distance to the others."""
    size = max(clusters, min(len(points), SEEDING_POINTS))
    sample = points[np.sort(random.choice(len(points), size, replace=False))].astype(np.float64)
    chosen = [int(random.integers(size))]
    distance = np.full(size, np.inf)
    for _ in range(1, clusters):
        distance = np.minimum(distance, np.square(sample - sample[chosen[-1]]).sum(axis=1))
        total = distance.sum()
        if total == 0:
            raise ValueError(f"kmeans: want {clusters} distinct points, got {len(chosen)}; use fewer clusters")
        chosen.append(int(np.searchsorted(np.cumsum(distance), random.random() * total).clip(0, size - 1)))
    return sample[chosen]
