import pytest
import torch

from ml.models.components import muon
from ml.models.components.muon import Muon, orthogonalize

SHAPES = [(6, 40), (40, 6), (12, 12)]


def _train(make_optimizer, steps=4):
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = make_optimizer(matrices)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        optimizer.step()
    return matrices


def test_in_bfloat16_a_step_is_that_of_torch_s_muon(monkeypatch):
    monkeypatch.setattr(muon, "has_fast_bfloat16", lambda kind: True)
    settings = {"weight_decay": 0.05, "momentum": 0.8}
    ours = _train(lambda matrices: Muon(matrices, 0.15, iterations=3, **settings))
    expected = _train(lambda matrices: torch.optim.Muon(matrices, 0.15, ns_steps=3, **settings))
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, 5, torch.float32)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    products = left.T @ result @ right.T
    assert torch.allclose(products, torch.diag(products.diag()), atol=1e-4)


def test_float32_and_bfloat16_agree_as_far_as_bfloat16_can_tell():
    matrix = torch.randn(30, 80, generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonalize(matrix, 3, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded).abs().max() < 0.02


def test_a_gradient_of_zero_changes_nothing():
    matrix = torch.nn.Parameter(torch.ones(3, 5))
    matrix.grad = torch.zeros(3, 5)
    Muon([matrix], 0.1, weight_decay=0, momentum=0.8, iterations=3).step()
    assert torch.equal(matrix, torch.ones(3, 5))


def test_a_matrix_without_a_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(3, 5))
    Muon([matrix], 0.1, weight_decay=0.5, momentum=0.8, iterations=3).step()
    assert torch.equal(matrix, torch.ones(3, 5))
