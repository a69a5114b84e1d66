"""Names are the field's standard terms: none of those that had to be explained comes back."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("ml", "dags", "plugins", "tools", "benchmarks")

# A name, without leading underscores → what the field says instead.
WORDS = {
    "ahead": "buffer_size",
    "at_least": "target_size",
    "attempt_key": "idempotency_key",
    "averaging": "ema",
    "Budget": "WeightedSemaphore",
    "choose": "select_device, or what is selected",
    "circumstances": "environment diff",
    "current": "session, settings",
    "described": "what it describes",
    "description": "model card",
    "division": "splits",
    "drawings": "synthetic anomalies",
    "drawn": "reconstruct",
    "enlarged": "upsample_like",
    "exact": "float32_runtime",
    "fixed": "deterministic",
    "found": "the name of what is found",
    "given": "the name of what is given",
    "harmless": "sanitize",
    "heat": "anomaly_map",
    "held": "holdout, or the name of what is held",
    "in_background": "prefetch",
    "kept": "the name of what is kept",
    "Learning": "TrainState",
    "made": "the name of what is made",
    "map_ahead": "parallel_map",
    "may_be_turned": "may_have_orientation",
    "moved": "random_affine",
    "Network": "nn.Module's subclass only; timeouts are ClientLimits",
    "noisy": "add_noise",
    "occluders": "random_occlusion",
    "parts": "splits",
    "place": "device",
    "Rejected": "RejectedError",
    "relit": "color_jitter",
    "repetition": "reproduction",
    "room": "empty_batch, capacity",
    "RunFailed": "RunFailedError",
    "said": "the name of what is said",
    "share": "shard_batch",
    "share_statistics": "sync_batchnorm_stats",
    "shifted": "random_shift_flip",
    "smoothing": "label_smoothing",
    "so": "y_label",
    "taken": "the name of what is taken",
    "token": "key",
    "TooComplex": "TooComplexError",
    "too_close": "near_threshold",
    "translated": "store_errors, mlflow_errors",
    "transplanted": "cutpaste",
    "try": "smoke_test",
    "varied": "augment",
    "views": "tta_logits",
    "wanted": "the name of what is wanted, such as requests",
    "Wanted": "DownloadRequest",
}
# (file, name) → why it is right there.
EXCEPTIONS = {
    ("ml/models/__init__.py", "Network"): "it is a neural network, PyTorch's word",
    ("ml/models/attention_autoencoder.py", "share"): "an option of nightscore.yaml",
    ("ml/models/residual_network.py", "smoothing"): "an option of nightscore.yaml",
    ("tools/gpu_check/results.py", "parts"): "a key of the result files: the parts of the check",
    ("tools/gpu_check/steps.py", "parts"): "the parts of the check",
    ("tools/gpu_check/report.py", "parts"): "the parts of the check",
}


def _named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def _files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_no_module_class_function_or_argument_bears_a_word_of_our_own():
    found = set()
    for path in _files():
        file = path.relative_to(REPOSITORY).as_posix()
        names = {path.stem, *_named(ast.parse(path.read_text(encoding="utf-8")))}
        found |= {(file, name.lstrip("_")) for name in names if name.lstrip("_") in WORDS}
    wrong = {f"{file}: {name} → {WORDS[name]}" for file, name in found - EXCEPTIONS.keys()}
    assert wrong == set()
    assert EXCEPTIONS.keys() <= found, "an exception that nothing needs"


@pytest.mark.parametrize(
    "source",
    ["def found(): ...", "class Wanted: ...", "def f(*, held): ...", "f = lambda room: room"],
)
def test_it_sees_each_kind_of_name(source):
    assert {name.lstrip("_") for name in _named(ast.parse(source))} & WORDS.keys()
