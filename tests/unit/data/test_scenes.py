"""Scenes: which images belong together, and which of them are held out."""

import numpy as np
import pytest

from ml.data import samples, scenes

CELLS = scenes.HEIGHT * scenes.WIDTH


def _picture(seed: int) -> np.ndarray:
    """A picture of large patches, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


def _frame(seed: int, number: int) -> np.ndarray:
    """The same place at another time: other noise, a little more light."""
    noise = np.random.default_rng([seed, number]).normal(0, 3, (32, 48, 3))
    return np.clip(0.8 * _picture(seed) + 10 + number % 5 + noise, 0, 255).astype(np.uint8)


def _group(pictures: list[np.ndarray]) -> list[int]:
    return scenes.group(np.array([scenes.thumbnail(picture) for picture in pictures])).tolist()


def test_frames_of_the_same_place_are_one_scene():
    groups = _group([_frame(place, number) for place in range(5) for number in range(8)])
    assert len(set(groups)) == 5
    assert all(len(set(groups[8 * place : 8 * place + 8])) == 1 for place in range(5))


def test_a_chain_of_small_differences_is_one_scene_even_if_its_ends_differ_by_much():
    # A moving light: neighbours differ by less than the limit, the first and the last by far more.
    ramp = np.linspace(-40, 40, CELLS)
    chain = np.array([np.rint(ramp * (1 + 0.05 * step)) for step in range(60)], dtype=np.int16)
    step = np.sqrt(((chain[1].astype(float) - chain[0]) ** 2).mean())
    ends = np.sqrt(((chain[-1].astype(float) - chain[0]) ** 2).mean())
    assert step < scenes.LIMIT < 20 * scenes.LIMIT < ends
    assert set(scenes.group(chain)) == {0}
    assert len(set(scenes.group(np.delete(chain, range(25, 35), axis=0)))) == 2


def test_the_limit_is_exclusive_and_exact():
    # Two cells differ by 15 levels: 2 x 225 / 144 = 3.125; three make 4.7, four 6.25 = LIMIT**2.
    thumbnails = np.zeros((3, CELLS), dtype=np.int16)
    thumbnails[1, :3] = 15
    thumbnails[2, 10:14] = 15
    assert scenes.group(thumbnails).tolist() == [0, 0, 1]


def test_more_images_than_a_tile_and_any_order_give_the_same_scenes():
    random = np.random.default_rng(0)
    places = random.normal(0, 40, (30, CELLS))
    place_of = random.integers(0, 30, 3 * scenes._TILE + 7)
    noise = random.normal(0, 1, (len(place_of), CELLS))
    images = np.rint(places[place_of] + noise).astype(np.int16)
    groups = scenes.group(images)
    assert len({*zip(groups.tolist(), place_of.tolist(), strict=True)}) == 30
    order = random.permutation(len(place_of))
    shuffled = scenes.group(images[order])
    assert len({*zip(groups[order].tolist(), shuffled.tolist(), strict=True)}) == 30


@pytest.mark.parametrize("count", [0, 1])
def test_there_may_be_no_image_or_a_single_one(count):
    assert scenes.group(np.zeros((count, CELLS), dtype=np.int16)).tolist() == [0] * count


def test_a_picture_smaller_than_the_thumbnail_has_one_too():
    assert scenes.thumbnail(np.zeros((3, 2, 3), dtype=np.uint8)).tolist() == [0] * CELLS


class TestHoldOut:
    def _scenes(self, sizes: list[int]) -> dict[str, str]:
        return {f"{s}-{i}": f"scene {s}" for s, size in enumerate(sizes) for i in range(size)}

    def test_whole_scenes_reach_the_share_and_not_much_more(self):
        scene_of = self._scenes([20] * 50)
        holdout = scenes.hold_out(scene_of, 0.15)
        assert len(holdout) == 160
        train = scene_of.keys() - holdout
        assert not {scene_of[image] for image in holdout} & {scene_of[image] for image in train}

    @pytest.mark.parametrize("sizes", [[90, 10], [10, 90], [50, 50], [1, 1], [98, 1, 1], [3, 3, 3]])
    def test_both_sides_have_a_scene_and_never_more_than_half_is_held_out(self, sizes):
        holdout = scenes.hold_out(self._scenes(sizes), 0.4)
        assert 0 < len(holdout) <= sum(sizes) / 2

    def test_a_single_scene_cannot_be_held_out(self):
        assert scenes.hold_out(self._scenes([30]), 0.2) == set()
        assert scenes.hold_out({}, 0.2) == set()

    def test_the_only_scene_of_a_label_is_not_held_out(self):
        scene_of = self._scenes([5] * 12)
        labels = {
            (image, "rare" if scene == "scene 3" else "usual") for image, scene in scene_of.items()
        }
        for share in (0.1, 0.3, 0.5):
            holdout = scenes.hold_out(scene_of, share, labels)
            assert "scene 3" not in {scene_of[image] for image in holdout}
        assert scenes.hold_out(scene_of, 0.5)


def test_each_of_the_built_in_samples_is_a_scene_of_its_own(tmp_path):
    random = np.random.default_rng(1)
    groups = _group([np.asarray(samples.mould(random)) for _ in range(300)])
    assert len(set(groups)) > 290
