"""The dataset on disk: its schema to other readers, what verify finds, and the order of training."""

import itertools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import cli, console
from osdface.errors import UserError
from osdface.files import sha256
from osdface.imagefile import read_image
from pipelines.pairs.manifest import describe, read_manifest
from pipelines.pairs.reading import PairDataset, ShuffledBatches, ahead
from pipelines.pairs.schema import note, row_digest
from pipelines.pairs.verify import verify


@pytest.fixture
def copied(pairs, tmp_path) -> Path:
    return Path(shutil.copytree(pairs, tmp_path / "copied"))


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


class TestSchema:
    COLUMNS = {
        "key": pa.string(), "source_uri": pa.string(), "source_sha256": pa.string(), "variant": pa.int32(),
        "split": pa.string(), "hq": pa.binary(), "lq": pa.binary(), "target": pa.binary(), "target_uri": pa.string(),
        "target_sha256": pa.string(), "height": pa.int32(), "width": pa.int32(),
        "trace": pa.string(), "recipe_digest": pa.string(),
    }  # fmt: skip

    def test_is_the_design_s_for_plain_pyarrow(self, pairs):
        table = pq.read_table(pairs / "shards")
        assert dict(zip(table.schema.names, table.schema.types, strict=True)) == self.COLUMNS
        assert (table.num_rows, len(set(table["key"].to_pylist()))) == (48, 48)

    def test_is_plain_for_pandas(self, pairs, faces_folder):
        frame = pd.read_parquet(pairs / "shards")
        assert frame["key"].is_monotonic_increasing
        assert set(frame["split"]) == {"train", "val", "test"}
        row = frame.iloc[0]
        assert row["source_sha256"] == sha256(faces_folder / row["source_uri"])
        assert read_image(row["hq"]).shape == read_image(row["lq"]).shape == (row["height"], row["width"], 3)
        assert [entry["op"] for entry in json.loads(row["trace"])][-1] == "Resize"
        assert row["recipe_digest"] == read_manifest(pairs).spec.recipe.digest

    def test_shards_hold_as_many_rows_as_the_manifest_says(self, pairs):
        manifest = read_manifest(pairs)
        assert [pq.read_metadata(pairs / "shards" / s.name).num_rows for s in manifest.shards] == [16, 16, 16]
        assert sum(manifest.counts.splits.values()) == manifest.counts.rows == 48

    @pytest.mark.parametrize("column", COLUMNS)
    def test_the_digest_covers_every_column(self, pairs, column):
        row = pq.read_table(pairs / "shards").slice(0, 1).to_pylist()[0]
        value = row[column]
        value = b"" if value is None and column == "target" else value or ""
        other = value + 1 if isinstance(value, int) else value + (b"x" if isinstance(value, bytes) else "x")
        assert row_digest(row | {column: other}) != row_digest(row)


class TestVerify:
    @pytest.mark.parametrize("replay", [0, 7, 1000])
    def test_replays_as_many_rows_as_asked(self, pairs, replay):
        verified = verify(pairs, replay)
        assert verified == (read_manifest(pairs).digest, 3, 48, min(replay, 48))

    def test_names_a_shard_with_a_changed_byte(self, copied):
        path = copied / "shards" / "part-00001.parquet"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"part-00001\.parquet: its bytes differ from the manifest's sha256"):
            verify(copied)

    def test_names_a_missing_shard(self, copied):
        (copied / "shards" / "part-00002.parquet").unlink()
        with pytest.raises(UserError, match=r"part-00002\.parquet: missing; run the dataset's `osdface data synth`"):
            verify(copied)

    def test_names_a_torn_shard(self, copied):
        path = copied / "shards" / "part-00000.parquet"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(UserError, match=r"part-00000\.parquet: cannot be read"):
            verify(copied)

    def test_names_a_shard_that_only_readers_see(self, copied):
        shutil.copy(copied / "shards" / "part-00000.parquet", copied / "shards" / "part-00003.parquet")
        with pytest.raises(UserError, match=r"part-00003\.parquet: readers see it, but the manifest does not"):
            verify(copied)

    def test_names_missing_rejects(self, copied):
        (copied / "rejects.parquet").unlink()
        with pytest.raises(UserError, match=r"rejects\.parquet: missing"):
            verify(copied)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda m: m.update(digest="0" * 64), r"manifest\.json: its digest is not that of its spec and shards"),
            (lambda m: m["spec"].update(seed=5), r"manifest\.json: its digest is not that of its spec and shards"),
            (lambda m: m["spec"]["recipe"].update(name="x"), r"manifest\.json: its digest is not that of its spec"),
            (lambda m: m["shards"].reverse(), r"manifest\.json: its digest is not that of its spec and shards"),
            (lambda m: m["shards"].pop(), r"part-00002\.parquet: readers see it, but the manifest does not"),
            (lambda m: m["shards"][1].update(content="0" * 64), r"part-00001\.parquet: its rows differ from what"),
            (lambda m: m["shards"][1].update(rows=15), r"part-00001\.parquet: its rows differ from what"),
            (lambda m: m["counts"].update(rows=49), r"manifest\.json: its counts are not those of its shards"),
            (lambda m: m["counts"].update(rejects=1), r"manifest\.json: its counts are not those of its shards"),
        ],
    )
    def test_names_what_was_edited_in_the_manifest(self, copied, change, sentence):
        edit(copied, change)
        with pytest.raises(UserError, match=sentence):
            verify(copied)

    def test_finds_a_row_that_does_not_replay(self, copied):
        """As if a library's new version computed other pixels: the digests are in order, the trace is not."""
        path = copied / "shards" / "part-00000.parquet"
        rows = pq.read_table(path).to_pylist()
        rows[0]["trace"] = rows[1]["trace"]
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
        shard = describe(path.name, path.stat().st_size, sha256(path), [note(row) for row in rows])
        edit(copied, lambda manifest: manifest["shards"].__setitem__(0, shard.model_dump()))
        with pytest.raises(UserError, match=rf"part-00000\.parquet: row {rows[0]['key']} does not replay"):
            verify(copied, replay=3)


class TestUnfinished:
    @pytest.fixture
    def unfinished(self, copied) -> Path:
        (copied / "manifest.json").unlink()
        return copied

    @pytest.mark.parametrize("reader", [read_manifest, verify, lambda folder: PairDataset(folder, "train")])
    def test_is_refused_by_every_reader(self, unfinished, reader):
        with pytest.raises(UserError, match=r"copied: no manifest\.json, so not a finished dataset; run its `osdface"):
            reader(unfinished)

    @pytest.mark.parametrize(
        "command",
        ["data verify {}", "data info {}", "data preview {} --out {}/x.png", "train vre --data {} --out {}/out"],
    )
    def test_is_refused_by_every_command(self, unfinished, home, command, capfd):
        assert console.run(cli.app, command.format(unfinished, unfinished).split()) == 1
        assert "no manifest.json, so not a finished dataset" in capfd.readouterr().err
        assert not (unfinished / "out").exists()

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match="nowhere: no such dataset; make one with `osdface data synth`"):
            read_manifest(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("text", "field"),
        [("{", "Invalid JSON"), ("{}", "digest: Field required"), ('{"format_version": 1}', "format_version")],
    )
    def test_a_manifest_that_is_damaged(self, copied, text, field):
        (copied / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=rf"manifest\.json: damaged or of another format \(.*{field}"):
            read_manifest(copied)


class TestPairDataset:
    def test_has_the_rows_of_its_split_as_tensors(self, pairs):
        table = pd.read_parquet(pairs / "shards").set_index("key")
        for split in ("train", "val", "test"):
            data = PairDataset(pairs, split)
            assert [data[i]["key"] for i in range(len(data))] == list(table.index[table["split"] == split])
        item = data[len(data) - 1]
        for name in ("hq", "lq"):
            stored = read_image(table.loc[item["key"], name]).transpose(2, 0, 1)
            assert item[name].dtype == torch.float32
            assert torch.equal(((item[name] + 1) * 127.5).round().byte(), torch.from_numpy(stored.copy()))
            assert item[name].min() >= -1
            assert item[name].max() <= 1

    def test_batches_are_its_items(self, pairs):
        data = PairDataset(pairs, "train")
        batch = data.batch([5, 0])
        assert batch["key"] == [data[5]["key"], data[0]["key"]]
        assert batch["lq"].shape == batch["hq"].shape == (2, 3, 64, 64)
        assert torch.equal(batch["lq"][0], data[5]["lq"])
        assert torch.equal(batch["hq"][1], data[0]["hq"])

    def test_keeps_a_bounded_number_of_row_groups(self, pairs):
        data = PairDataset(pairs, "train", kept_groups=1)
        keys = [data[i]["key"] for i in (0, len(data) - 1, 0)]
        assert keys[0] == keys[2] != keys[1]
        assert data._group.cache_info().currsize == 1

    def test_works_in_pytorch_s_loader(self, pairs):
        loader = torch.utils.data.DataLoader(PairDataset(pairs, "val"), batch_size=2)
        assert next(iter(loader))["lq"].shape[1:] == (3, 64, 64)

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1 torn")])
    def test_names_a_shard_that_is_missing_or_torn(self, copied, damage):
        damage(copied / "shards" / "part-00001.parquet")
        with pytest.raises(UserError, match=r"part-00001\.parquet: (missing|cannot be read)"):
            PairDataset(copied, "train")


class TestShuffledBatches:
    @pytest.fixture(scope="class")
    @staticmethod
    def data(pairs) -> PairDataset:
        return PairDataset(pairs, "train")

    @staticmethod
    def take(batches: ShuffledBatches, count: int, start: int = 0) -> list[list[int]]:
        return [batches.batch(step) for step in range(start, start + count)]

    def test_is_a_function_of_seed_and_step(self, data):
        expected = self.take(ShuffledBatches(data, 4, seed=1), 20)
        assert self.take(ShuffledBatches(data, 4, seed=1), 20) == expected
        assert self.take(ShuffledBatches(data, 4, seed=1), 5, 7) == expected[7:12]
        assert self.take(ShuffledBatches(data, 4, seed=2), 20) != expected

    @pytest.mark.parametrize("parts", [1, 2, 3, 6])
    def test_parts_share_a_batch(self, data, parts):
        batches = ShuffledBatches(data, 6, seed=1)
        for step in range(12):
            shares = [batches.part(step, part, parts) for part in range(parts)]
            assert {len(share) for share in shares} == {6 // parts}
            assert list(itertools.chain(*shares)) == batches.batch(step)

    @pytest.mark.parametrize("size", [1, 4, 7, 11])
    def test_every_epoch_is_every_row_once(self, data, size):
        assert size == 1 or any(len(data) % other for other in (4, 7, 11))  # some batches run over an epoch's border
        batches, epochs = ShuffledBatches(data, size, seed=3), 5
        stream = list(itertools.chain(*self.take(batches, -(-epochs * len(data) // size))))
        seen = [stream[start : start + len(data)] for start in range(0, epochs * len(data), len(data))]
        assert all(sorted(epoch) == list(range(len(data))) for epoch in seen)
        assert all(one != two for one, two in itertools.combinations(seen, 2))
        assert batches.per_epoch == len(data) / size

    def test_a_small_window_keeps_reading_local(self, data):
        order = ShuffledBatches(data, 4, seed=0, window=1).order(0)
        group = {row: number for number, rows in enumerate(data.groups) for row in rows}
        visits = [group[row] for row in order]
        changes = int(np.count_nonzero(np.diff(visits)))
        assert changes == len(data.groups) - 1
        wide = [group[row] for row in ShuffledBatches(data, 4, seed=0).order(0)]
        assert int(np.count_nonzero(np.diff(wide))) > changes

    def test_fewer_rows_than_a_batch_are_refused(self, data):
        with pytest.raises(UserError, match=rf"pairs: its split has {len(data)} pairs, fewer than a batch of 64"):
            ShuffledBatches(data, 64, seed=0)


class TestReadingAhead:
    def test_gives_everything_in_order(self):
        assert list(ahead(lambda n: (time.sleep(0.01 * (n % 3)), n)[1], range(20), 3)) == list(range(20))

    def test_reads_while_the_caller_works_and_not_too_far(self):
        read = []
        results = ahead(read.append, range(50), 2)
        next(results)
        time.sleep(0.2)
        assert len(read) == 5
        results.close()

    def test_raises_an_error_where_its_result_is_due(self):
        results = ahead(lambda n: 1 / (2 - n), range(5), 2)
        assert [next(results), next(results)] == [0.5, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
