"""Scenes: frames that a camera took of the same place, which differ by little more than noise.

A model that was trained on some frames of a scene raises fewer false alarms on the other ones than
it will at another place. So a scene is held out as a whole or not at all.

Two images are linked if their thumbnails differ by less than `LIMIT`. A scene is a connected
component of the links (single linkage): its first and last frame may differ by any amount.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import cv2
import numpy as np

HEIGHT, WIDTH = 9, 16
LIMIT = 2.5  # of the root mean square difference of two thumbnails, in grey levels of 255
_TILE = 2000


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Compute a thumbnail that does not depend on the brightness.

    Args:
        pixels: uint8 (height, width, 3), RGB.

    Returns:
        int16 (144,): the mean grey levels of 16 x 9 cells, minus their mean.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).ravel()
    levels: np.ndarray = np.rint(cells - cells.mean()).astype(np.int16)
    return levels


def group(thumbnails: np.ndarray) -> np.ndarray:
    """Find the scene of each image; the order of the images does not matter.

    It compares all pairs, in tiles of 2,000 x 2,000, and merges the scenes that a tile links before
    it goes to the next tile, so that no list of links is kept. On 2 busy cores 10,000 images take
    0.8 s; 100,000 images take 70 s and 0.4 GB.

    Args:
        thumbnails: int16 (N, 144), see `thumbnail`.

    Returns:
        int64 (N,): numbers from 0 to the number of scenes - 1.
    """
    count = len(thumbnails)
    # Integers whose sums stay below 2**24 are exact in float32. So neither the order of the images
    # nor the machine decides whether a pair at the limit is linked.
    cells = thumbnails.astype(np.float32)
    squares = np.einsum("ij,ij->i", cells, cells)[:, None]
    ones = np.ones_like(squares)
    # One matrix product gives the squared distances |a|^2 - 2ab + |b|^2.
    left_factor = np.hstack([-2 * cells, squares, ones])
    right_factor = np.hstack([cells, ones, squares])
    limit = np.float32(LIMIT**2 * HEIGHT * WIDTH)
    scenes = np.arange(count, dtype=np.int32)
    for top in range(0, count, _TILE):
        for left in range(top, count, _TILE):
            rows, columns = scenes[top : top + _TILE], scenes[left : left + _TILE]
            if (rows == rows[0]).all() and (columns == rows[0]).all():
                continue
            distances = left_factor[top : top + _TILE] @ right_factor[left : left + _TILE].T
            one, other = np.nonzero(distances < limit)
            scenes = _merge(scenes, rows[one], columns[other])
    return np.unique(scenes, return_inverse=True)[1]


def _merge(scenes: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Merge the two scenes of each pair (one, other); returns the new scene of each image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    is_different = one != other
    if not is_different.any():
        return scenes
    pairs = one[is_different], other[is_different]
    shape = len(scenes), len(scenes)
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=shape)
    components: np.ndarray = connected_components(graph, directed=False)[1]
    merged: np.ndarray = components[scenes]
    return merged


def hold_out(
    scenes: Mapping[str, str], holdout_share: float, labels: Iterable[tuple[str, str]] = ()
) -> set[str]:
    """Choose whole scenes until they reach a share of the images.

    They are chosen in the order of the SHA-256 of their names. A scene is skipped if more than half
    of the images would be held out with it, or if no other scene would remain for a label.

    Args:
        scenes: image → the name of its scene.
        holdout_share: how many images to hold out; it may become more, as scenes are whole.
        labels: pairs (image, label).

    Returns:
        The images that are held out; none if there is only one scene.
    """
    members = defaultdict(set)
    for image, scene in scenes.items():
        members[scene].add(image)
    scenes_of_label = defaultdict(set)
    for image, label in labels:
        scenes_of_label[label].add(scenes[image])
    train_scenes = set(members)
    holdout: set[str] = set()
    for scene in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(holdout) >= holdout_share * len(scenes):
            break
        remaining = train_scenes - {scene}
        is_too_large = 2 * (len(holdout) + len(members[scene])) > len(scenes)
        has_all_labels = all(remaining & shown for shown in scenes_of_label.values())
        if remaining and not is_too_large and has_all_labels:
            holdout |= members[scene]
            train_scenes = remaining
    return holdout
