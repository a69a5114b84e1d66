"""The scoring engine with images from memory: one pass, bounded memory, no image lost."""

import io
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ml.config.schema import Limits
from ml.cores import usable_cores
from ml.images.rejection import Reason, RejectedError
from ml.models import build
from ml.program.gpu import StreamPool
from ml.program.gpu_runtime import GpuRuntime
from ml.program.info import ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export
from ml.scoring import engine
from ml.scoring.engine import BatchResult, Item, Prediction, Rejection, score
from ml.storage.download import DownloadResult
from tests.support.deferred_gpu import DeferredGpu

LIMITS = Limits(max_pixels=10_000, max_bytes=100_000)


def _png(value: int, size=(24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value % 256, 40, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def _known(size) -> torch.Tensor:
    """The images that novelty is fitted to: each of one colour, like most images below."""
    contents = [_png(value, (size[1], size[0])) for value in range(0, 256, 2)]
    images = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def _exported(folder, name: str, architecture: str, classes, size) -> tuple[Path, ProgramInfo]:
    torch.manual_seed(0)
    network = build(architecture, size, classes, {"width": 4}).eval()
    known = _known(size)
    network.after_fit(known, torch.zeros(len(known), dtype=torch.int64))
    path = folder / f"{name}.pt2"
    export(network, path, size)
    task = "anomaly" if architecture == "anomaly_segmenter" else "classification"
    # Below every score, so that all images are flagged and have anomaly maps.
    threshold = 1e-9 if task == "anomaly" else None
    return path, ProgramInfo(name, 3, task, classes, size, threshold, sha256(path))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    return [
        _exported(folder, "classifier", "residual_network", ("a", "b", "c"), (16, 16)),
        _exported(folder, "detector", "anomaly_segmenter", ("normal", "anomalous"), (16, 24)),
    ]


@pytest.fixture(scope="module")
def programs(exported):
    return [Program.load(path, info, "cpu") for path, info in exported]


class Bucket:
    """Objects in memory that counts how often each is fetched."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.fetched: list[str] = []

    def fetch(self, requests):
        for item, uri, *_ in requests:
            self.fetched.append(uri)
            if uri in self.objects:
                yield DownloadResult(item, self.objects[uri], f"etag of {uri}")
            else:
                yield DownloadResult(item, None, "")

    def items(self) -> list[Item]:
        return [
            Item(date(2026, 1, 1), number, uri, f"etag of {uri}", len(content))
            for number, (uri, content) in enumerate(self.objects.items())
        ]


def _score(items, programs, bucket, **options) -> BatchResult:
    """The results of all batches."""
    results = BatchResult()
    for batch in score(items, programs, bucket.fetch, LIMITS, **options):
        results.predictions.extend(batch.predictions)
        results.rejections.extend(batch.rejections)
    return results


def _predict(items, programs, bucket, **options) -> list[Prediction]:
    """The predictions, where nothing is rejected."""
    results = _score(items, programs, bucket, **options)
    assert results.rejections == []
    return results.predictions


def test_each_image_is_fetched_once_and_scored_by_every_program(programs):
    bucket = Bucket({f"s3://b/{n}.png": _png(n) for n in range(50)})
    results = _predict(bucket.items(), programs, bucket, batch_size=16)
    assert sorted(bucket.fetched) == sorted(bucket.objects)
    for program in programs:
        own = [r for r in results if r.model == program.info.model]
        assert sorted(r.item.image_id for r in own) == list(range(50))
        assert all(r.version == 3 for r in own)
    detected = [r for r in results if r.model == "detector"]
    assert all(
        r.flagged and r.pixels.shape == (3, 16, 24) and r.anomaly_map.shape == (8, 12)
        for r in detected
    )
    classified = [r for r in results if r.model == "classifier"]
    assert all(
        r.predicted_class in "abc" and 0 < r.confidence <= 1 and r.pixels is None
        for r in classified
    )


def _on_a_gpu(path: Path, info: ProgramInfo, gpu: DeferredGpu) -> Program:
    program = torch.export.load(path)
    runtime = GpuRuntime(program, info.name, info.input_size, "float32", StreamPool(gpu))
    return Program(runtime, info, "cuda")


def test_on_a_gpu_each_image_has_the_results_that_it_has_on_a_cpu(exported, programs):
    """Images are decoded to page-locked memory; some batches are too large for the GPU's memory."""
    bucket = Bucket({f"s3://b/{n}.png": _png(n) for n in range(300)})
    bucket.objects["s3://b/7.png"] = b"no image"
    items = bucket.items()
    gpus = [DeferredGpu(), DeferredGpu()]
    there = [_on_a_gpu(*one, gpu) for one, gpu in zip(exported, gpus, strict=True)]
    gpus[1].images = 40
    for gpu in gpus:
        gpu.copied = 0
    found, expected = _score(items, there, bucket), _score(items, programs, bucket)
    assert sorted(found.rejections) == sorted(expected.rejections)
    assert len(found.predictions) == len(expected.predictions) == 598
    by_image = {(one.model, one.item): one for one in expected.predictions}
    for one in found.predictions:
        other = by_image[one.model, one.item]
        assert (one.predicted_class, one.flagged) == (other.predicted_class, other.flagged)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        if one.flagged:
            assert np.array_equal(one.pixels, other.pixels)
            np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-5)
    assert there[1].batch_size <= 40
    # Of the detector's parts only the indices of maps, which are few, are copied on the host.
    assert gpus[0].copied == 0
    assert max(gpus[1].named("launch")) > 40


def test_an_image_is_marked_for_review_exactly_when_its_novelty_reaches_the_threshold(programs):
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    contents = [_png(5 * n) for n in range(40)] + [buffer.getvalue()]
    bucket = Bucket({f"s3://b/{n}.png": content for n, content in enumerate(contents)})
    detector = programs[1]
    # The novelty of one of the images, which therefore reaches it.
    before = _predict(bucket.items(), [detector], bucket)
    assert not any(r.review for r in before)
    threshold = sorted(r.novelty for r in before)[30]
    marking = Program(
        detector.runtime,
        replace(detector.info, novelty_threshold=threshold),
        "cpu",
        detector.float32_runtime,
    )
    results = _predict(bucket.items(), [programs[0], marking], bucket)
    detected = [r for r in results if r.model == "detector"]
    assert all(0 <= r.novelty <= 1 and r.review == (r.novelty >= threshold) for r in detected)
    assert sum(r.review for r in detected) == 11
    assert max(detected, key=lambda r: r.novelty).item.image_id == 40
    # The mark changes nothing else, and a classifier's images have none.
    assert all(r.flagged and r.predicted_class == "anomalous" for r in detected)
    classified = [r for r in results if r.model == "classifier"]
    assert all(r.novelty is None and not r.review for r in classified)


class _Shade(torch.nn.Module):
    """A detector without novelty, or one whose novelty is NaN for dark images."""

    def __init__(self, novelty: bool) -> None:
        super().__init__()
        self.novelty = novelty

    def forward(self, pixels):
        shade = pixels.float().mean((1, 2, 3)) / 255
        outputs = shade, pixels[:, 0, ::2, ::2].float() / 255
        return (*outputs, (shade - 0.4).sqrt()) if self.novelty else outputs


@pytest.mark.parametrize("novelty", [False, True])
def test_a_program_without_novelty_scores_and_one_that_is_no_number_rejects(novelty, tmp_path):
    path = tmp_path / "model.pt2"
    export(_Shade(novelty), path, (16, 16))
    names = ("normal", "anomalous")
    info = ProgramInfo("shade", 1, "anomaly", names, (16, 16), 0.5, sha256(path))
    program = Program.load(path, info, "cpu")
    # A mean shade of 0.31 and of 0.65.
    bucket = Bucket({"s3://b/dark.png": _png(0), "s3://b/light.png": _png(255)})
    results = _score(bucket.items(), [program], bucket)
    light = results.predictions[-1]
    assert (light.item.uri, light.flagged, light.review) == ("s3://b/light.png", True, False)
    if novelty:
        (dark,) = results.rejections
        assert len(results.predictions) == 1
        assert light.novelty == pytest.approx(0.497, abs=1e-3)
        assert (dark.item.uri, dark.reason) == ("s3://b/dark.png", Reason.NOT_FINITE)
        assert (dark.model, dark.version) == ("shade", 1)
    else:
        dark = results.predictions[0]
        assert results.rejections == []
        assert light.novelty is None
        assert (dark.novelty, dark.flagged, dark.review) == (None, False, False)


def test_the_batch_size_changes_nothing(programs):
    bucket = Bucket({f"s3://b/{n}.png": _png(n * 5) for n in range(37)})
    single = _predict(bucket.items(), programs[:1], bucket, batch_size=1)
    batched = _predict(bucket.items(), programs[:1], bucket, batch_size=64)
    assert [r.predicted_class for r in single] == [r.predicted_class for r in batched]
    np.testing.assert_allclose(
        [r.confidence for r in single], [r.confidence for r in batched], rtol=1e-4
    )


def _batched(contents, size: int, max_bytes: int = 10**6) -> list[int]:
    item = Item(date(2026, 1, 1), 1, "s3://b/x.png", "e", 1)
    fetched = [(item, content) for content in contents]
    return [len(batch) for batch in engine._batches(fetched, size, max_bytes)]


def test_batches_are_of_the_size_but_for_a_smaller_first_and_the_rest():
    assert _batched([b"x"] * 21, 8) == [4, 8, 8, 1]
    assert _batched([b"x"] * 12, 8) == [4, 8]
    assert _batched([b"x"] * 11, 5) == [2, 4, 5]
    assert _batched([b"x"] * 3, 1) == [1, 1, 1]
    assert _batched([], 8) == []


def test_a_batch_of_large_images_is_handed_over_earlier():
    rejected = RejectedError(Reason.GONE)
    assert _batched([b"123"] * 10, 64, 10) == [4, 4, 2]
    assert _batched([b"12345"] * 6, 64, 10) == [2, 2, 2]
    # A rejected image has no bytes.
    assert _batched([b"123", b"123", b"123", rejected, b"123", b"123"], 64, 10) == [5, 1]


def test_bad_images_are_rejected_with_a_reason_and_the_others_are_scored(programs):
    bucket = Bucket(
        {
            "s3://b/good.png": _png(1),
            "s3://b/empty.png": b"",
            "s3://b/text.png": b"hello",
            "s3://b/cut.png": _png(2, (90, 90))[:120],
            "s3://b/wide.png": _png(3, (2000, 10)),
        }
    )
    items = bucket.items()
    day = date(2026, 1, 1)
    items += [
        Item(day, 10, "s3://b/gone.png", "x", 10),
        Item(day, 11, "s3://b/good.png", "another", 10),
        Item(day, 12, "s3://b/good.png", "etag of s3://b/good.png", 10**9),
    ]
    results = _score(items, programs, bucket)
    assert len(results) == 2 * len(items)
    reasons = {(r.model, r.item.image_id): r.reason for r in results.rejections}
    for model in ("classifier", "detector"):
        (good,) = (r for r in results.predictions if r.model == model)
        assert good.item.image_id == 0
        assert [reasons[model, image] for image in (1, 2, 3, 4, 10, 11, 12)] == [
            "empty",
            "not_an_image",
            "truncated",
            "too_many_pixels",
            "gone",
            "changed",
            "too_many_bytes",
        ]
    assert all(isinstance(r, Rejection) and r.detail for r in results.rejections)
    assert all(r.version == 3 for r in (*results.predictions, *results.rejections))


def test_it_reads_only_a_bounded_way_ahead(programs):
    content = _png(7)
    read = 0

    def items():
        nonlocal read
        for number in range(100_000):
            read += 1
            yield Item(date(2026, 1, 1), number, "s3://b/x.png", "e", len(content))

    def fetch(requests):
        return (DownloadResult(item, content, "e") for item, *_ in requests)

    batches = score(items(), programs[:1], fetch, LIMITS, batch_size=8)
    next(batches)
    batches.close()
    assert read < 8 * 4 * (usable_cores() + 2)


def test_an_outage_is_not_a_rejection(programs):
    def fetch(requests):
        for number, (item, *_) in enumerate(requests):
            if number == 3:
                raise ConnectionError("the store is away")
            yield DownloadResult(item, _png(1), item.etag)

    bucket = Bucket({f"s3://b/{n}.png": _png(n) for n in range(5)})
    with pytest.raises(ConnectionError):
        list(score(bucket.items(), programs[:1], fetch, LIMITS))


def test_nothing_to_score_gives_nothing(programs):
    assert list(score([], programs, Bucket({}).fetch, LIMITS)) == []
