"""Synthesis to and from S3: the digest of a local one, resumed, mended, one writer, and receipts on condition."""

import pytest

from osdface.errors import UserError
from pipelines import lease
from pipelines.pairs.manifest import read_manifest
from pipelines.pairs.reading import PairDataset
from pipelines.pairs.verify import verify
from pipelines.sources import Source
from pipelines.store import Store
from pipelines.synthesize import shards
from pipelines.synthesize.build import synthesize
from pipelines.synthesize.config import Split, SynthConfig, Work
from pipelines.synthesize.derive import extend, remove
from pipelines.synthesize.folder import claimed

pytestmark = pytest.mark.usefixtures("ray_session")


def config(sources, out, **changes) -> SynthConfig:
    settings = {"size": 32, "shard_rows": 4, "split": Split(test=0.3)} | changes
    return SynthConfig(sources=[str(sources)], out=str(out), **settings)


@pytest.fixture(scope="module")
def faces(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("faces"), range(10))


@pytest.fixture(scope="module")
def local(faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "pairs"
    synthesize(config(faces, out))
    return out


@pytest.fixture
def made(faces, s3) -> Store:
    synthesize(config(faces, f"{s3}/pairs"))
    return Store(f"{s3}/pairs")


def test_gives_the_digest_of_a_local_run(made, local):
    manifest = read_manifest(made)
    assert manifest.digest == read_manifest(local).digest == verify(made.uri, replay=10).digest
    named = [f"part-{number:05d}-{shard.sha256[:12]}.parquet" for number, shard in enumerate(manifest.shards)]
    assert made.names("shards") == named
    assert sorted(made.names()) == [".receipts", "README.md", "manifest.json", "rejects.parquet", "shards"]
    assert len(PairDataset(made.uri, "train")) == manifest.counts.splits["train"]


def test_sources_on_s3_give_the_same_digest_too(faces, local, s3):
    source = Store(f"{s3}/faces")
    for path in faces.iterdir():
        source.put(path.name, path.read_bytes())
    assert synthesize(config(source.uri, f"{s3}/pairs")).digest == read_manifest(local).digest


def test_resumes_without_manifest_and_makes_what_is_missing_alone(made, faces, local, monkeypatch):
    names, tasks, spread = made.names("shards"), [], shards.spread
    made.remove("manifest.json")
    made.remove(f"shards/{names[1]}")
    monkeypatch.setattr(shards, "spread", lambda f, items, *rest: tasks.extend(items) or spread(f, items, *rest))
    assert synthesize(config(faces, made.uri)).digest == read_manifest(local).digest
    assert [task["number"] for task in tasks] == [1]
    assert made.names("shards") == names
    assert verify(made.uri).rows == 10


def test_changes_leave_other_shards_and_no_bytes_of_what_was_removed(made, draw, tmp_path):
    before = set(made.names("shards"))
    extended = extend(made.uri, [Source(uri=str(draw(tmp_path, range(20, 23))))], Work())
    assert before < set(made.names("shards"))
    rows = PairDataset(made.uri, "train")
    hashed = rows[0]["key"].rpartition("-")[0]
    smaller = remove(made.uri, [hashed])
    assert (smaller.parent, smaller.counts.rows) == (extended.digest, 12)
    assert len(before - set(made.names("shards"))) == 1
    assert verify(made.uri).rows == 12


def test_a_second_job_on_one_output_is_refused(made, faces, draw, tmp_path):
    with claimed(made, read_manifest(made).spec):
        for job in (
            lambda: synthesize(config(faces, made.uri)),
            lambda: extend(made.uri, [Source(uri=str(draw(tmp_path, range(20, 23))))], Work()),
            lambda: remove(made.uri, [PairDataset(made.uri, "train")[0]["key"][:64]]),
        ):
            with pytest.raises(UserError, match=r"pairs: another job writes to it \(process \d+ on "):
                job()
    assert verify(made.uri).rows == 10


class TestReceipts:
    """What a worker does at the end of its shard, asked for by hand."""

    @pytest.fixture
    def planned(self, made, faces, monkeypatch) -> list:
        """What the run's second shard is made of."""
        seen = []
        monkeypatch.setattr(shards, "spread", lambda function, items, *_: seen.extend(items) or [])
        made.remove("manifest.json")
        made.remove(f"shards/{sorted(made.names('shards'))[1]}")
        with pytest.raises(KeyError):
            synthesize(config(faces, made.uri))
        return seen

    def job(self, store: Store, faces, token: str) -> shards.Job:
        return shards.Job(store, config(faces, store.uri).spec(read_recipe()), [Source(uri=str(faces))], Work(), token)

    def test_of_an_orphan_that_comes_late_loses(self, made, planned, faces):
        job = self.job(made, faces, "a token of a job that is gone")
        with lease.hold(made):
            result = shards.make_shard(planned[0], job)
            assert "another job has taken this output over; this one stops without writing to it" in result["fault"]
        assert len(made.names("shards")) == 2

    def test_is_made_once_and_a_second_maker_takes_the_first_s(self, made, planned, faces):
        with lease.hold(made) as token:
            job = self.job(made, faces, token)
            first = shards.make_shard(planned[0], job)
            stamp = made.fs.info(made.path(shards.receipt_name(1)))["ETag"]
            again = shards.make_shard(planned[0], job)
        assert first == again
        assert first["fault"] == ""
        assert made.fs.info(made.path(shards.receipt_name(1)))["ETag"] == stamp

    def test_of_a_lost_shard_is_replaced_only_by_the_holder(self, made, planned, faces):
        """Its receipt tells of a shard that is gone."""
        with lease.hold(made) as token:
            job = self.job(made, faces, token)
            assert shards.make_shard(planned[0], job)["fault"] == ""
            assert len(made.names("shards")) == 3


def read_recipe():
    from degradations.recipe import load

    return load("dual_sequential")
