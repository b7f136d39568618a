"""Sheets: their sizes, what stands where, and the order of severity."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from osdface.errors import UserError
from osdface.imagefile import read_image
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.report import (
    MARGIN,
    TITLE,
    pair,
    pairs_preview,
    save_png,
    severity,
    sheet,
    sheet_of_tensors,
    side_by_side,
    to_uint8,
)

RED, BLUE = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)


def plain(colour: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(colour, (height, width, 3)).copy()


class TestToUint8:
    def test_maps_minus_one_to_one_onto_bytes_and_clips(self):
        values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(2, 3, 1, 5)
        images = to_uint8(values.requires_grad_())
        assert (images.shape, images.dtype) == ((2, 1, 5, 3), np.uint8)
        assert images[1, 0, :, 2].tolist() == [0, 0, 128, 255, 255]

    def test_undoes_the_reading_of_a_picture(self):
        stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        assert np.array_equal(to_uint8(stored.float() / 127.5 - 1)[0, ..., 0], stored[0, 0].numpy())

    def test_takes_half_precision(self):
        assert to_uint8(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).min() == 255


class TestSheet:
    def test_is_a_grid_of_cells_under_titles(self):
        made = sheet([[plain(RED, 64, 64), plain(BLUE, 16, 16)]] * 3, ["LQ", "HQ"], cell=32)
        assert made.shape == (TITLE + 3 * (32 + MARGIN), 2 * (32 + MARGIN) + MARGIN, 3)
        for row in range(3):
            top = TITLE + row * (32 + MARGIN)
            assert (made[top : top + 32, MARGIN : MARGIN + 32] == RED).all()
            assert (made[top : top + 32, 2 * MARGIN + 32 : 2 * MARGIN + 64] == BLUE).all()
        assert (made[TITLE:, :MARGIN] == 255).all()
        for left in (MARGIN, 2 * MARGIN + 32):
            assert made[:TITLE, left : left + 32].min() < 100, "no title is written there"

    def test_small_pictures_keep_their_pixels(self):
        chess = np.indices((4, 4)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 255
        made = sheet([[chess]], [""], cell=16)
        assert np.array_equal(made[TITLE : TITLE + 16, MARGIN : MARGIN + 16], chess.repeat(4, 0).repeat(4, 1))

    def test_of_tensors_has_a_column_for_each_batch(self):
        made = sheet_of_tensors({"a": torch.full((2, 3, 8, 8), -1.0), "b": torch.ones(2, 3, 8, 8)}, cell=8)
        assert made.shape == (TITLE + 2 * 12, 2 * 12 + MARGIN, 3)
        assert (made[TITLE : TITLE + 8, MARGIN : MARGIN + 8] == 0).all()

    def test_of_batches_of_different_lengths_is_refused(self):
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            sheet_of_tensors({"a": torch.zeros(2, 3, 8, 8), "b": torch.zeros(1, 3, 8, 8)})


@pytest.mark.parametrize(("after", "height"), [((40, 30), 40), ((60, 80), 60), ((20, 20), 40)])
def test_side_by_side_shows_both_at_full_size(after, height):
    made = side_by_side(plain(RED, 40, 50), plain(BLUE, *after), ("before", "after"))
    assert made.shape == (TITLE + height, 50 + MARGIN + after[1], 3)
    assert (made[TITLE : TITLE + 40, :50] == RED).all()
    assert (made[TITLE : TITLE + after[0], 50 + MARGIN :] == BLUE).all()
    assert (made[TITLE:, 50 : 50 + MARGIN] == 255).all()


class TestSavePng:
    def test_writes_what_is_read_again(self, tmp_path):
        image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
        save_png(tmp_path / "new" / "a.png", image)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]

    def test_names_a_path_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"file/a\.png: cannot be written"):
            save_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))


class TestSeverity:
    @staticmethod
    def trace(factor: float, sigma: float) -> str:
        blur = {"op": "Blur", "kernel_size": 5, "sigma_x": sigma, "sigma_y": sigma / 2, "angle": 0.0}
        return json.dumps([blur, {"op": "Downsample", "factor": factor}, {"op": "JPEG", "quality": 60}])

    def test_grows_with_blur_and_with_downsampling(self):
        mild, blurred, small, both = (severity(self.trace(f, s)) for f, s in ((1, 1), (1, 8), (8, 1), (8, 8)))
        assert mild < blurred < both
        assert mild < small < both

    def test_enlarging_does_not_make_a_picture_better(self):
        assert severity(self.trace(0.8, 1)) == severity(self.trace(1, 1))

    def test_of_real_traces_orders_what_was_lost(self, pairs):
        """The rank correlation of severity and the error of LQ is strong, though noise and JPEG do not count."""
        rows = pq.read_table(pairs / "shards").to_pylist()
        errors = [np.square(read_image(r["lq"]).astype(float) - read_image(r["hq"])).mean() for r in rows]
        ranks = [np.argsort(np.argsort(values)) for values in (errors, [severity(row["trace"]) for row in rows])]
        assert np.corrcoef(*ranks)[0, 1] > 0.5


class TestPreview:
    def test_has_a_row_for_each_of_so_many_pairs(self, pairs, tmp_path):
        pairs_preview(pairs, tmp_path / "sheet.png", count=5)
        assert Image.open(tmp_path / "sheet.png").size == (2 * (128 + MARGIN) + MARGIN, TITLE + 5 * (128 + MARGIN))

    def test_goes_from_mild_to_severe(self, pairs, tmp_path):
        pairs_preview(pairs, tmp_path / "sheet.png", count=2)
        shown = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
        left, right = shown[TITLE:, MARGIN : MARGIN + 128], shown[TITLE:, 2 * MARGIN + 128 : 2 * MARGIN + 256]
        mild, severe = np.square(left[:128] - right[:128]).mean(), np.square(left[132:260] - right[132:260]).mean()
        assert mild < severe

    def test_of_fewer_rows_than_asked_shows_them_all(self, pairs, tmp_path):
        pairs_preview(pairs, tmp_path / "sheet.png", count=1000)
        rows = read_manifest(pairs).shards[0].rows
        assert Image.open(tmp_path / "sheet.png").height == TITLE + rows * (128 + MARGIN)

    def test_of_no_dataset_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no such dataset"):
            pairs_preview(tmp_path / "nowhere", tmp_path / "sheet.png")


def test_one_pair_by_its_key(pairs):
    data = PairDataset(pairs, "train")
    wanted = data[len(data) - 1]
    drawn = pair(pairs, wanted["key"])
    expected = [to_uint8(wanted[name][None])[0] for name in ("lq", "hq")]
    assert drawn.shape == (TITLE + 64, 128 + MARGIN, 3)
    assert np.array_equal(drawn[TITLE:, :64], expected[0])
    assert np.array_equal(drawn[TITLE:, 64 + MARGIN :], expected[1])
    with pytest.raises(UserError, match="no row has the key nobody-000"):
        pair(pairs, "nobody-000")
