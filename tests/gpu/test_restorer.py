"""Restoring on CUDA: the CPU's picture in float32, and near to it in half precision."""

import pytest
import torch

from osdface.errors import UsageError
from osdface.restorer import Restorer

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(bundle_folder, pictures):
    return Restorer.load(bundle_folder).restore(pictures)


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 1e-3), ("bfloat16", 0.05), ("float16", 0.01)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("execution", ["plain", "folded"])
def test_near_to_the_cpu(bundle_folder, pictures, expected, dtype, most, execution):
    restored = Restorer.load(bundle_folder, "cuda", dtype, execution=execution).restore(pictures).float().cpu()
    difference = float((restored - expected).abs().mean())
    print(f"\n{execution} {dtype}: mean difference {difference:.1e}")
    assert difference < most


def test_compiled(bundle_folder, pictures, expected):
    restorer = Restorer.load(bundle_folder, "cuda")
    restorer.generator.unet.compile()
    assert float((restorer.restore(pictures).cpu() - expected).abs().max()) < 1e-2


def test_lean_is_for_cpus(bundle_folder):
    with pytest.raises(UsageError, match="lean"):
        Restorer.load(bundle_folder, "cuda", execution="lean")
