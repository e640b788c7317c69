"""Space seen from one side: points in three dimensions on the plane of the picture."""

import numpy as np

# From the front, a little from the right and from above.
AZIMUTH, ELEVATION = np.deg2rad(25.0), np.deg2rad(25.0)
RIGHT = np.array([np.cos(AZIMUTH), np.sin(AZIMUTH), 0.0])
UP = np.array([-np.sin(AZIMUTH) * np.sin(ELEVATION), np.cos(AZIMUTH) * np.sin(ELEVATION), np.cos(ELEVATION)])
AWAY = np.cross(UP, RIGHT)


def project(points: np.ndarray) -> np.ndarray:
    """Points [..., dim] as seen, [..., 2]: those of the plane as they are, those of space in parallel projection."""
    if points.shape[-1] == 2:
        return points
    with np.errstate(invalid="ignore"):  # points of a rollout that diverged
        return np.stack([points @ RIGHT, points @ UP], axis=-1)


def unproject(vector: np.ndarray, dim: int) -> np.ndarray:
    """The vector [dim] in the plane of the picture that is seen as `vector` [2]."""
    return vector if dim == 2 else vector[0] * RIGHT + vector[1] * UP


def far_first(points: np.ndarray) -> np.ndarray:
    """The order in which to paint points [n, dim], so that near ones hide far ones."""
    return np.arange(len(points)) if points.shape[-1] == 2 else np.argsort(-(points @ AWAY), kind="stable")


def faded(colours: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours [n] paler, by up to a half, the farther away their points [n, dim] are."""
    if points.shape[-1] == 2 or not len(points):
        return colours
    depth = points @ AWAY
    share = 0.5 * (depth - depth.min()) / max(float(np.ptp(depth)), 1e-12)
    channels = [(colours >> shift) & 255 for shift in (16, 8, 0)]
    red, green, blue = ((one + share * (255 - one)).astype(np.uint32) for one in channels)
    return (red << 16) | (green << 8) | blue
