"""Weights under DeepSpeed equal those of plain PyTorch: ZeRO stages x workers x accumulation (tests/exactness.py)."""

import pytest

from tests import exactness
from tests.exactness import Cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exactness.inputs(tmp_path_factory.mktemp("inputs"))


def assert_exact(found: dict[Cell, float]) -> None:
    assert {cell: value for cell, value in found.items() if not value < 1e-6} == {}


def test_two_processes_equal_plain_pytorch(folder):
    """The short form: what is hardest, partitioned gradients and parameters over ranks and micro-batches."""
    assert_exact(exactness.differences(2, folder, [Cell("osd", 3, 2, "lora+"), Cell("association", 2, 2)]))


@pytest.mark.full
def test_every_zero_stage_worker_count_and_accumulation(folder, capsys):
    found = {world: exactness.differences(world, folder, exactness.matrix()) for world in (1, 2)}
    with capsys.disabled():
        print("\n" + exactness.table(found))
    for cells in found.values():
        assert_exact(cells)
