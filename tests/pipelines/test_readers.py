"""A dataset is read by others: pyarrow, pandas, DuckDB, Hugging Face `datasets` and PyTorch's loader."""

import io
import json
import pickle
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from osdface.imagefile import read_image
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig
from pipelines.synthesize.derive import remove


@pytest.fixture(scope="module")
def folder(draw, ray_session, tmp_path_factory) -> Path:
    """Twelve pictures, two variants each, one picture removed and with it a shard's rows, half of them with a twin."""
    place = tmp_path_factory.mktemp("readers")
    draw(place / "in", range(12))
    draw(place / "with twins", range(20, 24))
    draw(place / "twins", range(20, 24), (40, 40))
    sources = [{"uri": str(place / "in")}, {"uri": str(place / "with twins"), "target": str(place / "twins")}]
    split = Split(val=0.2, test=0.3)
    synthesize(SynthConfig(sources=sources, out=place / "out", size=32, shard_rows=2, variants=2, split=split))
    first = pq.read_table(place / "out" / "shards")["source_sha256"][0].as_py()
    assert remove(place / "out", [first]).shards[0].rows == 0
    return place / "out"


@pytest.fixture(scope="module")
def rows(folder) -> list[dict]:
    return pq.read_table(folder / "shards").to_pylist()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pyarrow_filters_by_column(folder, rows):
    data = pyarrow.dataset.dataset(folder / "shards", format="parquet")
    assert data.count_rows() == len(rows) == 30
    table = data.to_table(columns=["key", "lq"], filter=pyarrow.dataset.field("split") == "train")
    assert table.num_rows == read_manifest(folder).counts.splits["train"] > 0
    assert decoded(table["lq"][0].as_py()).shape == (32, 32, 3)


def test_pandas_reads_rows_and_rejects(folder, rows):
    frame = pd.read_parquet(folder / "shards")
    assert frame["key"].tolist() == [row["key"] for row in rows]
    assert (frame["height"].dtype, frame["width"].unique().tolist()) == (np.int32, [32])
    assert frame["target"].notna().sum() == 6
    assert all(isinstance(json.loads(trace), list) for trace in frame["trace"])
    assert list(pd.read_parquet(folder / "rejects.parquet").columns) == ["source_uri", "kind", "reason", "addition"]


def test_duckdb_counts_by_split_and_reads_traces(folder):
    counted = duckdb.sql(f"select split, count(*) from '{folder}/shards/*.parquet' group by split").fetchall()
    assert dict(counted) == {k: n for k, n in read_manifest(folder).counts.splits.items() if n}
    query = f"select json_array_length(trace), octet_length(lq) from '{folder}/shards/*.parquet' limit 1"
    operators, size = duckdb.sql(query).fetchall()[0]
    assert operators > 2
    assert size > 100


class TestHuggingFace:
    @pytest.fixture(scope="class")
    @staticmethod
    def loaded(folder, tmp_path_factory) -> dict[str, datasets.Dataset]:
        """By the card's configuration, and as plain Parquet files whose binary columns are cast."""
        cache = str(tmp_path_factory.mktemp("cache"))
        by_card = datasets.load_dataset(str(folder), cache_dir=cache)
        plain = datasets.load_dataset("parquet", data_files=f"{folder}/shards/*.parquet", cache_dir=cache)
        assert list(by_card) == list(plain) == ["train"]
        cast = plain["train"]
        for name in ("hq", "lq", "target"):
            cast = cast.cast_column(name, datasets.Image())
        return {"card": by_card["train"], "parquet": cast}

    @pytest.mark.parametrize("way", ["card", "parquet"])
    def test_pictures_decode(self, loaded, rows, way):
        data = loaded[way]
        for name in ("hq", "lq", "target"):
            assert isinstance(data.features[name], datasets.Image)
        assert len(data) == 30
        assert data["key"][:] == [row["key"] for row in rows]
        for k in (0, 17, 29):
            for name in ("hq", "lq"):
                assert np.array_equal(np.asarray(data[k][name]), decoded(rows[k][name]))
        shown = [row["target"] is not None for row in data]
        assert shown == [row["target"] is not None for row in rows]
        assert sum(shown) == 6

    def test_the_card_is_one_that_hubs_read(self, folder):
        _, head, text = (folder / "README.md").read_text().split("---\n", 2)
        header = yaml.safe_load(head)
        assert header["configs"] == [{"config_name": "default", "data_files": "shards/*.parquet"}]
        assert {"license", "task_categories", "tags"} <= header.keys()
        assert read_manifest(folder).digest in text
        assert "made by remove from" in text


class TestTorch:
    def test_loader_with_two_workers_gives_every_row_once(self, folder, rows):
        data = PairDataset(folder, "train")
        loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, num_workers=2)
        batches = list(loader)
        keys = [key for batch in batches for key in batch["key"]]
        assert sorted(keys) == sorted(row["key"] for row in rows if row["split"] == "train")
        assert batches[0]["lq"].shape == batches[0]["hq"].shape == (4, 3, 32, 32)
        by_key = {row["key"]: row for row in rows}
        for k, key in enumerate(batches[0]["key"]):
            shown = ((batches[0]["lq"][k].numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
            assert np.array_equal(shown, read_image(by_key[key]["lq"]))

    def test_goes_to_workers_that_are_started_anew(self, folder):
        """As `spawn` sends it, with what it has kept by then."""
        data = PairDataset(folder, "train")
        first = data[0]
        copy = pickle.loads(pickle.dumps(data))  # noqa: S301
        assert len(copy) == len(data)
        assert torch.equal(copy[0]["lq"], first["lq"])
