"""Latents and codes kept beside a dataset: equal tensors and losses, resumed, refused where they are another's."""

import functools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from osdface import presets
from osdface.base import load_base, new_base, save_base
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from osdface.prompts import new_embedder
from osdface.prompts.vre import VisualEmbedder
from pipelines import latents
from pipelines.pairs.manifest import SHARDS, read_manifest
from pipelines.pairs.reading import PairDataset, ShuffledBatches
from pipelines.store import STORAGE, Store
from pipelines.training import TrainConfig

TINY = presets.preset("tiny")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "base"
    save_base(new_base(TINY), folder)
    return folder


def encoders(base: Path, seed: int = 0, kind: str = "vre") -> latents.Encoders:
    torch.manual_seed(seed)
    embedder = new_embedder(kind, TINY.vre, TINY.unet["cross_attention_dim"])
    return latents.Encoders(load_base(base).vae.eval(), embedder.eval())


def config(data: Path | str, workers: int = 0) -> TrainConfig:
    return TrainConfig(preset="tiny", data=data, out=Path("out"), batch_size=4, workers=workers)


@pytest.fixture(scope="module")
def cache(base, pairs, tmp_path_factory) -> str:
    return latents.make(config(pairs), functools.partial(encoders, base), place=tmp_path_factory.mktemp("l") / "cache")


def test_batches_are_the_datasets_own_and_what_the_encoders_make_of_them(base, pairs, cache):
    frozen = encoders(base)
    for split in ("train", "val"):
        plain, cached = PairDataset(pairs, split), latents.CachedPairs(pairs, split, cache)
        assert len(plain) == len(cached) > 4
        rows = ShuffledBatches(plain, 4, seed=1).order(0)
        assert ShuffledBatches(cached, 4, seed=1).order(0) == rows
        batch, expected = cached.batch(rows), plain.batch(rows)
        assert batch["key"] == expected["key"]
        made = frozen.tensors(expected["hq"], expected["lq"])
        for name, tensor in ({k: v for k, v in expected.items() if k != "key"} | made).items():
            assert batch[name].shape == tensor.shape, name
            assert (batch[name] - tensor).abs().max() < 1e-5, name


@pytest.mark.parametrize("sampled", [False, True])
def test_losses_are_equal_with_and_without(base, pairs, cache, sampled):
    """The generator's step of stage 2, and what its discriminator sees of the HQ picture."""
    generator = OneStepGenerator.from_parts(TINY, load_base(base), encoders(base).embedder, seed=3)
    batch = latents.CachedPairs(pairs, "train", cache).batch(range(4))
    noise = torch.randn(generator.latent_shape(batch["lq"])) if sampled else None

    def loss_and_gradients(**given):
        generator.zero_grad()
        restored = generator(batch["lq"], noise, **given)
        loss = F.mse_loss(restored.image, batch["hq"]) + restored.latent.square().mean()
        loss.backward()
        return loss, [p.grad.clone() for p in generator.parameters() if p.requires_grad]

    loss, gradients = loss_and_gradients()
    with torch.no_grad():
        generator.vae.encoder.conv_in.weight.fill_(torch.nan)  # shows that the encoder is not asked again
    cached, others = loss_and_gradients(**latents.given(batch, noise))
    assert loss > 0.01
    assert abs(loss - cached) < 1e-6
    assert max((a - b).abs().max() for a, b in zip(gradients, others, strict=True)) < 1e-5
    fresh = load_base(base).vae
    expected = fresh.encode(batch["hq"]).latent_dist.mode() * fresh.config.scaling_factor
    assert (batch["hq_latent"] - expected).abs().max() < 1e-5


def test_a_batch_without_a_cache_gives_nothing(pairs):
    assert latents.given(PairDataset(pairs, "train").batch([0]), None) == {}


def test_prompts_without_codes_have_a_cache_too(base, pairs, tmp_path):
    place = latents.make(config(pairs), functools.partial(encoders, base, kind="learned"), place=tmp_path / "cache")
    assert latents.CachedPairs(pairs, "train", place).batch([0, 1])["codes"].shape == (2, 0, 0)


def test_what_was_killed_goes_on_and_what_is_whole_stays(base, pairs, cache, tmp_path, monkeypatch):
    first, *rest = [shard.name for shard in read_manifest(pairs).shards]
    assert rest
    real = latents._write

    def dies(job, made, name, device):
        if name != first:
            raise KeyboardInterrupt
        real(job, made, name, device)

    build, place = functools.partial(encoders, base), tmp_path / "cache"
    monkeypatch.setattr(latents, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        latents.make(config(pairs), build, place=place)
    with pytest.raises(UserError, match="cache: an unfinished cache of latents"):
        latents.CachedPairs(pairs, "train", place)
    written = []
    monkeypatch.setattr(latents, "_write", lambda *job: (written.append(job[2]), real(*job)))
    events = []
    latents.make(config(pairs), build, lambda *event: events.append(event), place=place)
    assert written == rest
    rows = read_manifest(pairs).counts.rows
    assert events[-1] == ("latents", rows, rows, {})
    for name in (first, *rest):
        assert pq.read_table(place / SHARDS / name).equals(pq.read_table(Path(cache) / SHARDS / name))
    latents.make(config(pairs), build, place=place)
    assert written == rest  # nothing is made twice


def test_by_default_a_cache_has_the_place_of_its_digest(base, pairs, home):
    place = latents.make(config(pairs), functools.partial(encoders, base))
    assert Path(place).parent == home / "latents"
    assert latents.make(config(pairs), functools.partial(encoders, base)) == place
    assert latents.make(config(pairs), functools.partial(encoders, base, seed=1)) != place  # another dictionary
    assert len(list((home / "latents").iterdir())) == 2


def test_what_decides_a_tensor_decides_the_key(base, pairs):
    manifest, frozen = read_manifest(pairs), encoders(base)
    key = frozen.key(manifest)
    assert encoders(base).key(manifest) == key
    twice = VisualEmbedder(TINY.vre.model_copy(update={"input": "twice"}))
    twice.load_state_dict(frozen.embedder.state_dict())
    assert latents.Encoders(frozen.vae, twice).key(manifest).prompt != key.prompt
    frozen.vae.register_to_config(scaling_factor=0.5)
    assert frozen.key(manifest).vae != key.vae


def test_another_cache_or_folder_is_refused(base, pairs, cache, tmp_path):
    other = functools.partial(encoders, base, seed=1)
    with pytest.raises(UserError, match="cache: a cache of other data or weights"):
        latents.make(config(pairs), other, place=cache)
    Store(tmp_path / "unfinished").put(
        f"{SHARDS}/part-00000.parquet", Store(cache).read(f"{SHARDS}/part-00000.parquet")
    )
    with pytest.raises(UserError, match=r"part-00000\.parquet: made from other data or weights"):
        latents.make(config(pairs), other, place=tmp_path / "unfinished")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "me.jpg").touch()
    with pytest.raises(UserError, match=r"pictures: holds me\.jpg"):
        latents.make(config(pairs), other, place=tmp_path / "pictures")


def test_a_cache_of_another_dataset_is_refused(pairs, cache, tmp_path):
    key = latents.read_key(Store(cache)).model_copy(update={"dataset": "other"})
    Store(tmp_path).put(latents.NOTE, key.model_dump_json().encode())
    with pytest.raises(UserError, match="made from another dataset"):
        latents.CachedPairs(pairs, "train", tmp_path)


def test_a_damaged_shard_is_named_and_made_again(base, pairs, tmp_path):
    build, place = functools.partial(encoders, base), tmp_path / "cache"
    latents.make(config(pairs), build, place=place)
    shard = place / SHARDS / "part-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part-00000\.parquet: cannot be read"):
        latents.CachedPairs(pairs, "train", place).batch([0])
    latents.make(config(pairs), build, place=place)
    assert latents.CachedPairs(pairs, "train", place).batch([0])["codes"].any()


@pytest.mark.full
def test_actors_make_the_same(base, pairs, cache, tmp_path):
    place = latents.make(config(pairs, workers=2), functools.partial(encoders, base), place=tmp_path / "cache")
    ours, theirs = (latents.CachedPairs(pairs, "train", folder).batch(range(16)) for folder in (place, cache))
    assert ours["key"] == theirs["key"]
    for name in latents.TENSORS:
        assert (ours[name] - theirs[name]).abs().max() < 1e-5


def test_a_cache_may_lie_on_s3(base, pairs, cache, s3):
    place = latents.make(config(pairs), functools.partial(encoders, base), place=f"{s3}/cache")
    ours, theirs = (latents.CachedPairs(pairs, "train", folder).batch([3, 1]) for folder in (place, cache))
    assert all(torch.equal(ours[name], theirs[name]) for name in latents.TENSORS)


def test_a_cache_is_kept_in_the_storage(base, pairs, cache, s3, monkeypatch):
    monkeypatch.setenv(STORAGE, s3)
    build = functools.partial(encoders, base)
    made = latents.make(config(pairs), build)
    assert made.startswith(f"{s3}/latents/")
    here, there = (latents.CachedPairs(pairs, "train", place)[0] for place in (cache, made))
    assert all(torch.equal(here[name], there[name]) for name in latents.TENSORS)
    assert latents.make(config(pairs), build) == made
