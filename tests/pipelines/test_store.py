"""Stores on a disk, in memory and on S3: whole files, one winner of a conditional write, plain errors."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osdface.files import sha256
from pipelines import store as stores
from pipelines.store import Store, sha256_of


class TestFiles:
    def test_are_put_and_replaced_whole(self, store):
        store.put("a/b.txt", b"one")
        store.put("a/b.txt", b"two2")
        assert store.read("a/b.txt") == b"two2"
        assert store.names("a") == ["b.txt"]
        assert store.sizes("a") == {"b.txt": 4}

    def test_are_created_once(self, store):
        assert store.create("a/lock", b"first")
        assert not store.create("a/lock", b"second")
        assert store.read("a/lock") == b"first"
        assert store.names("a") == ["lock"]

    def test_a_large_file_is_created_once(self, store):
        """Object stores take these in parts, the condition with the last."""
        assert store.create("large", b"1" * (60 << 20))
        assert not store.create("large", b"2" * (60 << 20))
        assert store.sizes("") == {"large": 60 << 20}
        assert store.read("large")[:1] == b"1"

    def test_go_from_scratch_into_place(self, store):
        with store.scratch("shards/x") as path:
            path.write_bytes(b"written aside")
            assert not store.exists("shards/x")
            store.commit(path, "shards/x")
        assert not path.exists()
        assert store.names("shards") == ["x"]
        assert sha256_of(store, "shards/x")[1] == 13

    def test_what_fails_before_its_commit_leaves_nothing(self, store):
        def fail() -> None:
            nonlocal path
            with store.scratch("shards/x") as path:
                path.write_bytes(b"half")
                raise OSError(28, "no space")

        path = Path()
        with pytest.raises(OSError, match="no space"):
            fail()
        assert store.names("shards") == []
        assert not path.exists()

    def test_are_listed_by_folder_hidden_ones_too(self, store):
        for name in ("top", "a/one", "a/.two", "a/deep/three"):
            store.put(name, name.encode())
        assert store.names() == ["a", "top"]
        assert store.names("a") == [".two", "deep", "one"]
        assert store.sizes("a") == {".two": 6, "one": 5}
        assert (store.names("b"), store.sizes("b")) == ([], {})

    def test_are_seen_at_once_by_another_store_of_the_same_place(self, store):
        other = Store(store.uri)
        assert other.names("a") == []
        store.put("a/x", b"1")
        assert (other.names("a"), other.exists("a/x"), other.read("a/x")) == (["x"], True, b"1")
        store.remove("a/x")
        assert (other.names("a"), other.exists("a/x")) == ([], False)

    def test_removal_takes_a_file_or_a_folder_and_no_neighbour(self, store):
        for name in ("beat-1", "beat-10", "f/a", "f/g/b", "fg"):
            store.put(name, b"x")
        store.remove("beat-1")
        store.remove("f")
        store.remove("never there")
        assert not store.exists("f/a")
        assert not store.exists("f/g/b")
        emptied = {"f"} if store.uri.startswith("s3") else set()  # this server shows emptied folders for a while
        assert set(store.names()) - emptied == {"beat-10", "fg"}

    def test_are_read_at_any_position(self, store):
        store.put("a", bytes(range(200)))
        with store.open("a") as file:
            file.seek(-2, 2)
            assert file.read() == bytes([198, 199])
            file.seek(5)
            assert file.read(1) == bytes([5])

    def test_exist_and_so_do_their_folders(self, store):
        assert not store.exists()
        store.put("a/b", b"")
        assert store.exists()
        assert store.exists("a")
        assert store.exists("a/b")
        assert not store.exists("a/bc")

    def test_sha256_is_of_the_bytes(self, store, tmp_path):
        (tmp_path / "plain").write_bytes(b"some bytes")
        store.put("x", b"some bytes")
        assert sha256_of(store, "x") == (sha256(tmp_path / "plain"), 10)

    def test_a_pickled_store_is_the_same_place(self, store):
        store.put("x", b"1")
        copy = pickle.loads(pickle.dumps(store))  # noqa: S301
        assert (copy.uri, copy.root, copy.read("x")) == (store.uri, store.root, b"1")


class TestManyAtOnce:
    @pytest.fixture(params=["local", "s3"])
    def store(self, request, tmp_path) -> Store:
        return Store(tmp_path / "root" if request.param == "local" else request.getfixturevalue("s3"))

    def test_one_of_many_creates(self, store):
        start = threading.Barrier(12)

        def create(number: int) -> bool:
            start.wait()
            return store.create("lease", str(number).encode())

        with ThreadPoolExecutor(12) as threads:
            won = list(threads.map(create, range(12)))
        assert won.count(True) == 1
        assert store.read("lease") == str(won.index(True)).encode()
        assert store.names() == ["lease"]

    def test_a_reader_never_sees_half_a_file(self, store):
        """Two writers with contents of different lengths; a reader sees one or the other."""
        contents = [b"a" * 3_000_000, b"b" * 2_000_000]
        store.put("x", contents[0])
        over = threading.Event()

        def write(content: bytes) -> None:
            while not over.is_set():
                store.put("x", content)

        with ThreadPoolExecutor(2) as threads:
            writing = [threads.submit(write, content) for content in contents]
            try:
                seen = [store.read("x") for _ in range(30)]
            finally:
                over.set()
            assert [task.result() for task in writing] == [None, None]
        assert [len(data) for data in seen if data not in contents] == []
        assert store.names() == ["x"]


class TestErrors:
    @pytest.mark.parametrize("ask", ["read", "open"])
    def test_a_name_that_is_not_there(self, store, ask):
        with pytest.raises(FileNotFoundError) as caught:
            store.read("nowhere") if ask == "read" else store.open("nowhere").__enter__()
        assert caught.value.strerror

    @pytest.mark.parametrize("ask", ["read", "put", "create", "names", "exists", "remove"])
    def test_a_store_that_refuses_says_so_in_an_oserror(self, s3_server, ask, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
        store = Store(f"s3://osdface/{ask}")
        monkeypatch.setattr(store, "fs", type(store.fs)(skip_instance_cache=True, use_listings_cache=False))
        calls = {"put": (b"",), "create": (b"",)}
        with pytest.raises(OSError, match=".") as caught:
            getattr(store, ask)("x", *calls.get(ask, ()))
        assert caught.value.strerror
        assert not isinstance(caught.value, FileNotFoundError)

    def test_a_server_that_does_not_answer(self, free_port, monkeypatch):
        import s3fs

        store = Store("s3://osdface/x")
        options = {"endpoint_url": f"http://127.0.0.1:{free_port}", "key": "k", "secret": "s", "config_kwargs": {}}
        options["config_kwargs"] = {"retries": {"max_attempts": 0}}
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        store.fs = s3fs.S3FileSystem(skip_instance_cache=True, **options)
        for ask in (store.read, store.names, store.exists):
            with pytest.raises(OSError, match="connect") as caught:
                ask("x")
            assert str(free_port) in caught.value.strerror

    def test_an_error_without_a_word_is_named_by_its_kind(self, store, monkeypatch):
        def silent(*_: object, **__: object) -> None:
            raise ValueError

        monkeypatch.setattr(store.fs, "cat_file", silent)
        with pytest.raises(OSError, match="ValueError"):
            store.read("x")

    def test_a_client_s_own_kind_of_oserror(self, store, monkeypatch):
        from botocore.exceptions import ReadTimeoutError

        def late(*_: object, **__: object) -> None:
            raise ReadTimeoutError(endpoint_url="http://s3")

        monkeypatch.setattr(store.fs, "cat_file", late)
        with pytest.raises(OSError, match='Read timeout on endpoint URL: "http://s3"') as caught:
            store.read("x")
        assert type(caught.value) is OSError

    def test_a_protocol_that_nobody_knows(self):
        with pytest.raises(OSError, match="Protocol not known: nope"):
            Store("nope://x")

    def test_a_fault_of_the_program_stays_what_it_is(self, store, monkeypatch):
        monkeypatch.setattr(store.fs, "exists", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.exists("x")

    def test_a_disk_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        store = Store(tmp_path / "file" / "root")
        for write in (store.put, store.create):
            with pytest.raises(NotADirectoryError):
                write("x", b"")

    def test_a_half_written_local_file_has_another_name(self, tmp_path, monkeypatch):
        store = Store(tmp_path)
        monkeypatch.setattr(stores, "sync", lambda path: 1 / 0)
        for write in (store.put, store.create):
            with pytest.raises(ZeroDivisionError):
                write("x", b"data")
        assert list(tmp_path.iterdir()) == []


class TestNames:
    def test_a_local_store_is_absolute_wherever_it_is_used_later(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = Store("data")
        assert (str(store), store.local) == (f"{tmp_path}/data", tmp_path / "data")
        assert Store(f"file://{tmp_path}/data").uri == store.uri == Store(Path("data")).uri

    def test_labels_are_as_people_write_them(self, s3_server, tmp_path):
        assert Store("s3://osdface/a/").label("b") == "s3://osdface/a/b"
        assert Store(tmp_path).label("b") == f"{tmp_path}/b"
        assert Store("s3://osdface/a").label("") == "s3://osdface/a"

    def test_an_object_that_stands_for_the_folder_is_no_file_in_it(self, s3):
        """As web consoles make them."""
        store = Store(s3)
        store.fs.call_s3("put_object", Bucket="osdface", Key=f"{store.root.removeprefix('osdface/')}/", Body=b"")
        assert (store.names(), store.sizes("")) == ([], {})
