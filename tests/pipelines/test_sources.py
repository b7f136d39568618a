"""The same pictures come out of every kind of source; what is bad is a reject or one plain sentence."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from osdface.errors import UserError
from osdface.imagefile import ImageError
from pipelines.sources import Source, files, read
from pipelines.sources.places import Place

LIMIT = 10**6


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {f"{folder}{number}.png": png(number) for number, folder in enumerate(("", "", "a/", "a/b/", "c d/"))}
ALIKE = sorted(hashlib.sha256(data).hexdigest() for data in PICTURES.values())


def rows(uri: object, **options) -> dict[str, dict]:
    """The source's rows by name."""
    found = list(files(Source(uri=str(uri), **options), 7))
    assert len({row["source_uri"] for row in found}) == len(found)
    return {row["source_uri"]: row for row in found}


def content(found: dict[str, dict]) -> dict[str, bytes]:
    return {name: read(row["at"], LIMIT) for name, row in found.items()}


def reasons(found: dict[str, dict]) -> dict[str, str]:
    return {name: row["reason"] for name, row in found.items() if row["reason"]}


def refused(uri: object, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(files(Source(uri=str(uri), **options), 0))
    assert str(uri).split("/")[-1].split("{")[0].split("*")[0] in str(caught.value)


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, contents: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, contents: dict[str, bytes], **options) -> Path:
    """As Hugging Face's datasets does."""
    pictures = [{"bytes": data, "path": name} for name, data in contents.items()]
    pq.write_table(pa.table({"image": pictures, "label": [3] * len(pictures)}), path, **options)
    return path


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(2):
        samples = {}
        for number, data in enumerate(PICTURES.values()):
            if number % 2 == shard:
                described = json.dumps({"group": f"person {number}"}).encode()
                samples |= {f"{number}.txt": b"words", f"{number}.png": data, f"{number}.json": described}
        write_tar(folder / f"x-{shard:03d}.tar", samples)
    return folder


def memory(path: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/{path}", data)
    return f"memory://{path}"


@pytest.fixture
def clean_memory():
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def sources(tmp_path, clean_memory) -> dict[str, str]:
    """The same pictures, in every kind."""
    folder = write_folder(tmp_path / "folder", PICTURES)
    shards = write_shards(tmp_path / "shards")
    listed = [*PICTURES][:3] + [str(folder / name) for name in [*PICTURES][3:]]
    (folder / "list.txt").write_text("\n".join(listed))
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "list.jsonl").write_text("".join(json.dumps({"path": str(folder / name)}) + "\n" for name in PICTURES))
    hugging = tmp_path / "hugging"
    (hugging / "data").mkdir(parents=True)
    halves = [dict([*PICTURES.items()][:2]), dict([*PICTURES.items()][2:])]
    for number, half in enumerate(halves):
        write_parquet(hugging / "data" / f"train-0000{number}-of-00002.parquet", half, row_group_size=2)
    (hugging / "README.md").write_text("card")
    for name, data in PICTURES.items():
        memory(f"bucket/{name}", data)
    for path in shards.iterdir():
        memory(f"shards/{path.name}", path.read_bytes())
    zipped = write_zip(tmp_path / "z.zip", PICTURES)
    parquet = write_parquet(tmp_path / "p.parquet", PICTURES)
    tar = write_tar(tmp_path / "t.tar", PICTURES)
    return {
        "list": str(folder / "list.txt"),
        "json list": str(lone / "list.jsonl"),
        "zip": str(zipped),
        "tar": str(tar),
        "parquet": str(parquet),
        "parquet folder": str(hugging),
        "parquet pattern": f"{hugging}/data/*.parquet",
        "webdataset folder": str(shards),
        "webdataset braces": f"{shards}/x-{{000..001}}.tar",
        "webdataset pattern": f"{shards}/x-*.tar",
        "file url": f"file://{tar}",
        "memory": "memory://bucket",
        "memory zip": memory("z.zip", zipped.read_bytes()),
        "memory tar": memory("t.tar", tar.read_bytes()),
        "memory parquet": memory("p.parquet", parquet.read_bytes()),
        "memory shards": "memory://shards",
        "memory braces": "memory://shards/x-{000,001}.tar",
        "memory pattern": "memory://shards/x-*.tar",
        "chained": f"zip::file://{zipped}",
        "chained memory": "zip::memory://z.zip",
    }


def test_every_kind_gives_the_same_bytes(sources, tmp_path):
    (tmp_path / "folder" / "list.txt").rename(tmp_path / "folder" / "list.csv")  # no file of the folder as a source
    sources["list"] = str(tmp_path / "folder" / "list.csv")
    for kind, uri in sources.items():
        found = rows(uri)
        assert sorted(hashlib.sha256(data).hexdigest() for data in content(found).values()) == ALIKE, kind
        for row in found.values():
            assert row["source"] == 7
            assert json.loads(json.dumps(row)) == row
            assert {type(value) for value in row.values()} == {int, str}
            with pytest.raises(ImageError, match="bytes are more than 100") as caught:
                read(row["at"], 100)
            assert caught.value.fault == "too_large"


def test_names_are_the_same_in_folder_zip_and_tar(sources, tmp_path):
    shutil.rmtree(tmp_path / "lone")
    (tmp_path / "folder" / "list.txt").unlink()
    uris = [tmp_path / "folder", *(sources[kind] for kind in ("zip", "tar", "memory", "memory zip", "chained"))]
    for uri in uris:
        assert content(rows(uri)) == PICTURES, uri
    assert content(rows(sources["parquet"])) == PICTURES


def test_names_in_shards_begin_with_the_shard(sources):
    expected = {f"x-{k % 2:03d}.tar/{k}.png" for k in range(5)}
    for kind in ("webdataset folder", "webdataset braces", "webdataset pattern", "memory shards", "memory braces"):
        assert set(rows(sources[kind])) == expected, kind
    assert "data/train-00000-of-00002.parquet/0.png" in rows(sources["parquet folder"])
    assert "train-00001-of-00002.parquet/a/b/3.png" in rows(sources["parquet pattern"])


def test_a_tar_made_of_the_folder_itself(tmp_path):
    write_folder(tmp_path / "folder", PICTURES)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "folder", ".")
    assert content(rows(tmp_path / "t.tar")) == PICTURES


class TestFolder:
    def test_every_file_counts_but_those_of_operating_systems(self, tmp_path):
        kept = {".hidden.png": b"1", "notes.txt": b"2", "a/no extension": b"3", "a/metadata.jsonl": b"4"}
        dropped = (".DS_Store", "a/Thumbs.db", "desktop.ini", "a/._x.png", "__MACOSX/a/x.png")
        write_folder(tmp_path, kept | dict.fromkeys(dropped, b"x"))
        assert content(rows(tmp_path)) == kept
        assert content(rows(write_zip(tmp_path / "z.zip", kept | dict.fromkeys(dropped, b"x")))) == kept

    def test_any_order_of_listing(self, tmp_path, monkeypatch):
        write_folder(tmp_path, PICTURES)
        expected, scan = rows(tmp_path), os.scandir

        class Shuffled(list):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        def shuffled(path):
            found = Shuffled(scan(path))
            random.Random(1).shuffle(found)
            return found

        monkeypatch.setattr(os, "scandir", shuffled)
        assert rows(tmp_path) == expected

    def test_names_that_are_no_text(self, tmp_path):
        name = os.fsdecode(b"\xff\xfe.png")
        write_folder(tmp_path, {name: b"1"})
        assert content(rows(tmp_path)) == {"\\xff\\xfe.png": b"1"}

    def test_what_cannot_be_read_is_named(self, tmp_path):
        write_folder(tmp_path / "f", {"a/x.png": b"1"})
        write_folder(tmp_path / "elsewhere", {"y.png": b"2"})
        (tmp_path / "f/broken.png").symlink_to("nowhere")
        (tmp_path / "f/round.png").symlink_to("round.png")
        (tmp_path / "f/a/up").symlink_to(tmp_path / "f")
        (tmp_path / "f/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "f/linked.png").symlink_to(tmp_path / "elsewhere/y.png")
        os.mkfifo(tmp_path / "f/pipe.png")
        found = rows(tmp_path / "f")
        assert reasons(found) == {
            "broken.png": "is a broken link",
            "round.png": "cannot be read (Too many levels of symbolic links)",
            "a/up": "is a link to a folder that it lies in",
            "pipe.png": "is no regular file",
        }
        good = {name: row for name, row in found.items() if not row["reason"]}
        assert content(good) == {"a/x.png": b"1", "linked/y.png": b"2", "linked.png": b"2"}

    def test_a_locked_folder_and_a_locked_file(self):
        with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
            folder = write_folder(Path(name), {"locked/x.png": b"1", "y.png": b"2"})
            (folder / "locked").chmod(0)
            (folder / "y.png").chmod(0)
            folder.chmod(0o755)
            user = os.geteuid()
            try:
                if user == 0:
                    os.seteuid(65534)
                found = rows(folder)
                assert reasons(found) == {"locked": "cannot be listed (Permission denied)"}
                with pytest.raises(PermissionError, match="Permission denied"):
                    read(found["y.png"]["at"], LIMIT)
            finally:
                os.seteuid(user)
                (folder / "locked").chmod(0o755)

    def test_the_output_within_is_passed_over(self, tmp_path):
        write_folder(tmp_path, {"x.png": b"1", "out/y.png": b"2"})
        assert [row["source_uri"] for row in files(Source(uri=str(tmp_path)), 0, str(tmp_path / "out"))] == ["x.png"]

    @pytest.mark.parametrize(("said", "told"), [(None, 2**40), (10, LIMIT + 1), (-1, LIMIT + 1)])
    def test_more_bytes_than_allowed_are_not_read(self, tmp_path, monkeypatch, said, told):
        """Even where the size is not said, or wrong."""
        with open(tmp_path / "x.png", "wb") as stream:
            stream.truncate(2**40)
        if said is not None:
            monkeypatch.setattr(Place, "size", lambda self: said)
        with pytest.raises(ImageError, match=f"^picture: {told} bytes are more than {LIMIT}$"):
            read(rows(tmp_path)["x.png"]["at"], LIMIT)

    def test_a_file_that_went_away(self, tmp_path):
        write_folder(tmp_path, {"x.png": b"1"})
        found = rows(tmp_path)
        (tmp_path / "x.png").unlink()
        with pytest.raises(FileNotFoundError, match="No such file"):
            read(found["x.png"]["at"], LIMIT)
        uri = memory("gone/x.png", b"1")
        found = rows("memory://gone")
        fsspec.filesystem("memory").rm(uri)
        with pytest.raises(FileNotFoundError, match="No such file"):
            read(found["x.png"]["at"], LIMIT)


class TestSidecar:
    SIDECAR = {"metadata.jsonl": b'{"file_name": "0.png", "group": 5}\n\n{"file_name": "1.png", "text": "-"}\n'}

    @pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
    def test_gives_groups_and_is_no_picture(self, tmp_path, write):
        found = rows(write(tmp_path / f"s.{write.__name__[6:]}", PICTURES | self.SIDECAR), kind=write.__name__[6:])
        assert {name: row["group"] for name, row in found.items()} == dict.fromkeys(PICTURES, "") | {"0.png": "5"}

    @pytest.mark.parametrize("broken", [b"no json", b"[1]", b'{"group": 3}', b"\xff"])
    def test_broken(self, tmp_path, broken):
        write_folder(tmp_path, PICTURES | {"metadata.jsonl": broken})
        with pytest.raises(UserError, match=r"metadata\.jsonl: not lines of JSON"):
            rows(tmp_path)


class TestMissing:
    @pytest.mark.parametrize(
        "name",
        ["nothing", "nothing.zip", "nothing.tar", "nothing.parquet", "nothing.txt", "no-*.tar", "no-*.parquet"],
    )
    def test_a_source_that_is_not_there(self, tmp_path, name):
        refused(tmp_path / name, "nothing is there; give a folder")

    @pytest.mark.parametrize("kind", ["folder", "zip", "tar", "webdataset", "parquet", "list", "ffhq"])
    def test_whatever_kind_is_said(self, tmp_path, kind):
        refused(tmp_path / "nothing", "nothing is there", kind=kind)
        refused("memory://nothing", "nothing is there", kind=kind)

    def test_a_shard_that_is_not_there(self, sources, tmp_path):
        refused(f"{tmp_path}/shards/x-{{000..002}}.tar", r"x-002\.tar: no such shard")

    def test_empty_ones(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "list.txt").write_text("\n \n")
        for uri in (
            tmp_path / "folder",
            tmp_path / "list.txt",
            write_zip(tmp_path / "z.zip", {}),
            write_tar(tmp_path / "t.tar", {}),
            write_parquet(tmp_path / "p.parquet", dict(list(PICTURES.items())[:1])),
        ):
            if uri.suffix == ".parquet":
                pq.write_table(pq.read_table(uri).slice(0, 0), uri)
            refused(uri, "is empty; put pictures in it")

    def test_what_no_kind_fits(self, tmp_path):
        refused(write_folder(tmp_path, {"x.rar": b"Rar!"}) / "x.rar", r"no folder, \.zip.*give the source's `kind`")

    @pytest.mark.parametrize("uri", ["nowhere://bucket", "zip::nowhere://x.zip"])
    def test_a_url_that_nobody_opens(self, uri):
        refused(uri, r"cannot be opened \(Protocol not known: nowhere\)")

    @pytest.mark.parametrize("wrong", [{"uri": ""}, {"uri": "x", "weight": 0}, {"uri": "x", "kind": "rar"}])
    def test_a_source_that_makes_no_sense(self, wrong):
        with pytest.raises(ValidationError):
            Source(**wrong)


class TestZip:
    def test_links_and_encrypted_members(self, tmp_path):
        path = write_zip(tmp_path / "z.zip", {"a.png": b"1" * 50, "b.png": b"2" * 60})
        with zipfile.ZipFile(path, "a") as archive:
            link = zipfile.ZipInfo("link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "a.png")
        data = bytearray(path.read_bytes())
        central = data.index(b"PK\x01\x02")
        data[central + 8] |= 1
        path.write_bytes(data)
        found = rows(path)
        assert reasons(found) == {"a.png": "is encrypted in its archive", "link.png": "is a link in its archive"}
        assert read(found["b.png"]["at"], LIMIT) == b"2" * 60

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
    def test_torn(self, tmp_path, share):
        path = write_zip(tmp_path / "z.zip", PICTURES)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        refused(path, "cannot be read as a zip")

    def test_a_damaged_member(self, tmp_path):
        path = write_zip(tmp_path / "z.zip", PICTURES)
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x03\x04") + 200] ^= 0xFF
        path.write_bytes(data)
        found = rows(path)
        with pytest.raises(ImageError, match="is damaged in its archive") as caught:
            read(found["0.png"]["at"], LIMIT)
        assert caught.value.fault == "unreadable"
        assert read(found["1.png"]["at"], LIMIT) == PICTURES["1.png"]

    def test_a_member_that_lies_about_its_size(self, tmp_path):
        path = write_zip(tmp_path / "z.zip", {"bomb.png": bytes(50_000_000)})
        with pytest.raises(ImageError, match="50000000 bytes are more than 1000000"):
            read(rows(path)["bomb.png"]["at"], LIMIT)
        data = bytearray(path.read_bytes())
        central = data.index(b"PK\x01\x02")
        data[central + 24 : central + 28] = struct.pack("<I", 1000)
        path.write_bytes(data)
        with pytest.raises(ImageError, match="is damaged in its archive"):
            read(rows(path)["bomb.png"]["at"], LIMIT)

    def test_an_archive_that_is_replaced_between_two_reads(self, tmp_path):
        path = write_zip(tmp_path / "z.zip", {"x.png": b"old", "y.png": b"more"})
        at = {name: row["at"] for name, row in rows(path).items()}
        assert read(at["x.png"], LIMIT) == b"old"
        write_zip(path, {"x.png": b"new one"})
        assert read(at["x.png"], LIMIT) == b"new one"
        with pytest.raises(UserError, match="changed since it was listed"):
            read(at["y.png"], LIMIT)
        assert list(rows(path)) == ["x.png"]


class TestTar:
    def test_what_is_no_plain_file(self, tmp_path):
        path = tmp_path / "t.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for name, kind in (
                ("soft.png", tarfile.SYMTYPE),
                ("hard.png", tarfile.LNKTYPE),
                ("pipe.png", tarfile.FIFOTYPE),
                ("folder", tarfile.DIRTYPE),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "x.png"
                archive.addfile(info)
            info = tarfile.TarInfo("x.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"123"))
        found = rows(path)
        link = "is a link in its archive"
        assert reasons(found) == {"soft.png": link, "hard.png": link, "pipe.png": "is no regular file"}
        assert read(found["x.png"]["at"], LIMIT) == b"123"

    def test_holes(self, tmp_path):
        with open(tmp_path / "holes.png", "wb") as stream:
            stream.truncate(10**6)
            stream.seek(0, io.SEEK_END)
            stream.write(b"end")
        subprocess.run(["tar", "--sparse", "-cf", "t.tar", "holes.png"], cwd=tmp_path, check=True)
        assert reasons(rows(tmp_path / "t.tar")) == {"holes.png": "is stored with holes in its archive"}

    @pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_and_odd_names(self, tmp_path, format):
        long = "/".join(["l" * 60] * (3 if format == tarfile.USTAR_FORMAT else 9))
        path = write_tar(tmp_path / "t.tar", {long: b"1", os.fsdecode(b"\xff.png"): b"2"}, format=format)
        assert content(rows(path)) == {long: b"1", "\\xff.png": b"2"}

    def test_torn_anywhere(self, tmp_path):
        path = write_tar(tmp_path / "t.tar", PICTURES, format=tarfile.USTAR_FORMAT)
        whole = path.read_bytes()
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
        for cut in (0, 100, 512, 700, 1500, end // 2, 2048, 2048 + 77, end - 600, end):
            path.write_bytes(whole[:cut])
            refused(path, "(cannot be read as a tar|is cut off or damaged)")
        path.write_bytes(whole[:2048] + b"x" * 512 + whole[2560:])  # the second header
        refused(path, "is cut off or damaged at byte 2048")

    def test_compressed(self, tmp_path):
        packed = tmp_path / "t.tar.gz"
        packed.write_bytes(gzip.compress(write_tar(tmp_path / "t.tar", PICTURES).read_bytes()))
        refused(packed, "a compressed tar gives no access to single files; decompress or unpack it")
        refused(packed.rename(tmp_path / "u.tar"), "a compressed tar")


class TestWebDataset:
    def test_groups_and_companions(self, tmp_path):
        members = {
            "s/1.jpg": b"a", "s/1.json": b'{"group": "x"}', "s/1.cls": b"3", "s/1.seg.png": b"b",
            "s/2.json": b'{"other": 1}', "s/2.png": b"c", "s/2.txt": b"words", "s/2.npy": b"d",
            "s/3.png": b"e", "s/3.json": b"[no json", "s/4.png": b"f",
        }  # fmt: skip
        found = rows(write_tar(tmp_path / "t.tar", members), kind="webdataset")
        assert {name: row["group"] for name, row in found.items()} == {
            "s/1.jpg": "x", "s/1.seg.png": "x", "s/2.png": "", "s/2.npy": "", "s/3.png": "", "s/4.png": ""
        }  # fmt: skip
        assert reasons(found) == {"s/3.png": "the json of its sample cannot be read"}

    def test_a_json_that_would_fill_the_memory(self, tmp_path):
        path = write_tar(tmp_path / "t.tar", {"1.png": b"a", "1.json": b"[" * 2_000_000})
        assert reasons(rows(path, kind="webdataset")) == {"1.png": "the json of its sample cannot be read"}
        path = write_tar(tmp_path / "t.tar", {"1.png": b"a", "1.json": b"[" * 900_000})
        assert reasons(rows(path, kind="webdataset")) == {"1.png": "the json of its sample cannot be read"}

    def test_what_lies_beside_the_shards(self, sources, tmp_path):
        write_folder(tmp_path / "shards", {"x-000_stats.json": b"{}", "x-000.parquet": b"", "stray.mp3": b"1"})
        assert reasons(rows(tmp_path / "shards", kind="webdataset")) == {"stray.mp3": "is no shard (.tar)"}


class TestParquet:
    def test_rows_in_any_order(self, tmp_path):
        found = rows(write_parquet(tmp_path / "p.parquet", PICTURES, row_group_size=3))
        for seed in range(5):
            names = list(PICTURES)
            random.Random(seed).shuffle(names)
            for name in names:
                assert read(found[name]["at"], LIMIT) == PICTURES[name]

    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
    def test_a_plain_column_is_named_by_its_rows(self, tmp_path, kind):
        table = pa.table({"png": pa.array(PICTURES.values(), kind), "group": [1, 2, None, 1, 2]})
        pq.write_table(table, tmp_path / "p.parquet", row_group_size=2)
        found = rows(tmp_path / "p.parquet")
        assert list(content(found).items()) == [(str(k), data) for k, data in enumerate(PICTURES.values())]
        assert [row["group"] for row in found.values()] == ["1", "2", "", "1", "2"]

    def test_which_column(self, tmp_path):
        data = list(PICTURES.values())
        pq.write_table(pa.table({"hq": data, "lq": data[::-1]}), tmp_path / "p.parquet")
        refused(tmp_path / "p.parquet", "has pictures in hq, lq; name the column")
        assert list(content(rows(tmp_path / "p.parquet", column="lq")).values()) == data[::-1]
        pq.write_table(pa.table({"image": data, "mask": data[::-1]}), tmp_path / "q.parquet")
        assert list(content(rows(tmp_path / "q.parquet")).values()) == data
        refused(tmp_path / "q.parquet", "has pictures in image, mask", column="label")
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "r.parquet")
        refused(tmp_path / "r.parquet", "has only text")

    def test_rows_without_bytes(self, tmp_path):
        pictures = [{"bytes": None, "path": "elsewhere.png"}, None, {"bytes": b"x", "path": None}]
        pq.write_table(pa.table({"image": pictures}), tmp_path / "p.parquet")
        found = rows(tmp_path / "p.parquet")
        assert list(found) == ["elsewhere.png", "1", "2"]
        for name in ("elsewhere.png", "1"):
            with pytest.raises(ImageError, match="has no bytes in its row") as caught:
                read(found[name]["at"], LIMIT)
            assert caught.value.fault == "empty"
        assert read(found["2"]["at"], LIMIT) == b"x"

    @pytest.mark.parametrize("cut", [0, 4, 100, -1, -20])
    def test_a_torn_file(self, tmp_path, cut):
        path = write_parquet(tmp_path / "p.parquet", PICTURES)
        path.write_bytes(path.read_bytes()[:cut])
        refused(path, "cannot be read as Parquet")
        refused(memory("torn.parquet", path.read_bytes()), "cannot be read as Parquet")

    def test_a_damaged_page(self, tmp_path):
        path = write_parquet(tmp_path / "p.parquet", PICTURES, compression="gzip", use_dictionary=False)
        at = [row["at"] for row in rows(path).values()]
        data = bytearray(path.read_bytes())
        data[4000:6000] = bytes(2000)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"p\.parquet: cannot be read as Parquet"):
            read(at[0], LIMIT)

    def test_what_is_no_parquet_in_the_folder(self, sources, tmp_path):
        write_folder(tmp_path / "hugging", {"stray.mp3": b"1", "dataset_infos.json": b"{}", "data/_SUCCESS": b""})
        assert reasons(rows(tmp_path / "hugging")) == {"stray.mp3": "is no shard (.parquet)"}

    def test_memory_holds_a_page_not_a_row_group(self, tmp_path):
        code = f"""
import os, resource, sys
import pyarrow as pa, pyarrow.parquet as pq
from pipelines.sources import Source, files, read
from pipelines.sources.places import Place
schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
kind = dict(compression="none", use_dictionary=False, write_batch_size=4)
if sys.argv[1] == "write":
    rows = [{{"bytes": os.urandom(10**6), "path": str(k)}} for k in range(120)]
    pq.write_table(pa.table({{"image": rows}}, schema), {str(tmp_path / "p.parquet")!r}, **kind)
else:
    at = [row["at"] for row in files(Source(uri={str(tmp_path / "p.parquet")!r}), 0)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [len(read(each, 10**7)) for each in at[::7]] == [10**6] * 18
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
        for step in ("write", "read"):
            done = subprocess.run([sys.executable, "-c", code, step], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 40


class TestList:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("l.txt", "a/x.png\r\ny z.png\n\n"),
            ("l.txt", "\ufeffa/x.png\ny z.png"),
            ("l.csv", "a/x.png,1\ny z.png,2\n"),
            ("l.csv", 'label,file_name\n1,a/x.png\n2,"y z.png"\n'),
            ("l.jsonl", '"a/x.png"\n"y z.png"\n'),
            ("l.jsonl", '{"path": "a/x.png"}\n{"url": "y z.png", "more": 1}\n'),
        ],
    )
    def test_forms(self, tmp_path, name, text):
        write_folder(tmp_path, {"a/x.png": b"1", "y z.png": b"2", name: text.encode()})
        assert content(rows(tmp_path / name)) == {"a/x.png": b"1", "y z.png": b"2"}

    def test_groups(self, tmp_path):
        write_folder(tmp_path, {"x.png": b"1", "y.png": b"2"})
        (tmp_path / "l.csv").write_text("group,path\nann,x.png\n,y.png\n")
        assert [row["group"] for row in rows(tmp_path / "l.csv").values()] == ["ann", ""]

    def test_urls_keep_no_secrets_in_their_names(self, tmp_path, clean_memory):
        memory("m/x.png", b"1")
        (tmp_path / "l.txt").write_text("memory://m/x.png\nhttps://me:secret@host/a/x.png?signature=secret\n")
        found = rows(tmp_path / "l.txt")
        assert list(found) == ["memory://m/x.png", "https://host/a/x.png"]
        assert read(found["memory://m/x.png"]["at"], LIMIT) == b"1"

    def test_lines_that_lead_nowhere(self, tmp_path):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        lines = ["gone.png", "folder", "pipe", "/gone/too.png", "nul\0byte.png", "nowhere://x", "l" * 5000]
        (tmp_path / "l.txt").write_text("\n".join(lines))
        found = reasons(rows(tmp_path / "l.txt"))
        assert list(found) == lines
        assert "Protocol not known" in found.pop("nowhere://x")
        assert set(found.values()) == {"is not there, or no file"}

    def test_names_that_are_no_text(self, tmp_path):
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"1")
        (tmp_path / "l.txt").write_bytes(b"\xff.png\n")
        assert content(rows(tmp_path / "l.txt")) == {"\\xff.png": b"1"}
        (tmp_path / "l.jsonl").write_text('"\\ud800.png"\n')
        found = reasons(rows(tmp_path / "l.jsonl"))
        assert list(found) == ["\\ud800.png"]
        assert "cannot be a name" in found["\\ud800.png"]

    @pytest.mark.parametrize("text", ["{no json", '{"label": 1}', "[" * 100_000])
    def test_lines_of_another_form(self, tmp_path, text):
        (tmp_path / "l.jsonl").write_text(text)
        refused(tmp_path / "l.jsonl", "not a list of pictures, one a line")


class TestFFHQ:
    @staticmethod
    def write(folder: Path, *layouts: str) -> Path:
        described = {}
        for number, category in enumerate(("training", "training", "validation")):
            points = [[k + number, 2 * k] for k in range(68)]
            described[str(number)] = {"category": category, "in_the_wild": {"face_landmarks": points}, "a": {"b": '"}'}}
            for layout in layouts:
                write_folder(folder, {f"{layout}/00000/{number:05d}.png": png(number)})
        write_folder(folder, {"thumbnails128x128/00000.png": b"x", "LICENSE.txt": b"x"})
        (folder / "ffhq-dataset-v2.json").write_text(json.dumps(described))
        return folder

    def test_aligned_pictures_come_with_their_split(self, tmp_path):
        found = rows(self.write(tmp_path, "images1024x1024", "in-the-wild-images"))
        assert {name: (row["split"], row["landmarks"]) for name, row in found.items()} == {
            "images1024x1024/00000/00000.png": ("train", ""),
            "images1024x1024/00000/00001.png": ("train", ""),
            "images1024x1024/00000/00002.png": ("val", ""),
        }
        assert [read(row["at"], LIMIT) for _, row in sorted(found.items())] == [png(k) for k in range(3)]

    def test_those_in_the_wild_come_with_their_landmarks(self, tmp_path):
        found = rows(self.write(tmp_path, "in-the-wild-images"))
        row = found["in-the-wild-images/00000/00002.png"]
        assert row["split"] == "val"
        assert json.loads(row["landmarks"]) == [[k + 2, 2 * k] for k in range(68)]

    def test_a_picture_that_the_json_does_not_know(self, tmp_path):
        write_folder(self.write(tmp_path, "images1024x1024"), {"images1024x1024/00000/00009.png": b"1"})
        assert rows(tmp_path)["images1024x1024/00000/00009.png"]["split"] == ""

    def test_what_is_missing_or_damaged(self, tmp_path):
        refused(self.write(tmp_path / "a"), "has neither images1024x1024/ nor in-the-wild-images/")
        self.write(tmp_path / "b", "in-the-wild-images")
        described = tmp_path / "b" / "ffhq-dataset-v2.json"
        for text in (described.read_text()[:300], '{"0": {}}', "", "[]"):
            described.write_text(text)
            refused(tmp_path / "b", r"ffhq-dataset-v2\.json: is damaged")
        described.unlink()
        refused(tmp_path / "b", r"ffhq-dataset-v2\.json: is missing", kind="ffhq")

    def test_its_retouched_twin_is_found_by_number(self, tmp_path):
        self.write(tmp_path / "f", "images1024x1024")
        write_folder(tmp_path / "r", {"r/0.png": b"zero", "00000/00002.jpg": b"two"})
        found = rows(tmp_path / "f", target=str(tmp_path / "r"))
        targets = {row["source_uri"][-5:-4]: row["target_uri"] for row in found.values()}
        assert targets == {"0": "r/0.png", "1": "", "2": "00000/00002.jpg"}
        assert reasons(found) == {"images1024x1024/00000/00001.png": "has no target"}


def test_targets_go_by_name_then_by_name_without_extension(tmp_path):
    write_folder(
        tmp_path / "s", {f"a/{name}": b"s" for name in ("same.png", "other.jpg", "none.png", "two.bmp", "x.y.png")}
    )
    (tmp_path / "t").mkdir()
    twin = {
        "a/same.png": b"1", "a/same.jpg": b"-", "a/other.png": b"2", "a/two.png": b"-", "a/two.jpg": b"-",
        "a/x.y.webp": b"3", "none.png": b"-",
    }  # fmt: skip
    for uri in (write_folder(tmp_path / "t", twin), write_zip(tmp_path / "t.zip", twin)):
        found = rows(tmp_path / "s", target=str(uri))
        assert reasons(found) == {"a/none.png": "has no target", "a/two.bmp": "has several targets"}
        targets = {row["target_uri"]: read(row["target_at"], LIMIT) for row in found.values() if row["target_at"]}
        assert targets == {"a/same.png": b"1", "a/other.png": b"2", "a/x.y.webp": b"3"}
    (tmp_path / "t/a/none.png").symlink_to("nowhere")
    assert reasons(rows(tmp_path / "s", target=str(tmp_path / "t")))["a/none.png"] == "its target is a broken link"
    refused(tmp_path / "s", "nothing is there", target=str(tmp_path / "s-gone"))
