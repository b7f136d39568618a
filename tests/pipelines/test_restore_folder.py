"""`osdface restore` of folders and archives, and of files as people have them."""

import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from jobs import console
from jobs.cli import app
from osdface import faces, files, picturefile
from osdface.errors import UserError
from osdface.imagefile import read_image
from osdface.modes import Wishes
from osdface.restorer import Restorer
from pipelines import photographs, restore_folder, restoring
from tests import hostile


def png(image) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def noise(seed=0, height=60, width=80):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def t1():
    return faces.photographs()["t1"]


@pytest.fixture(scope="module")
def astronaut():
    """The face, with some of its surroundings."""
    return np.ascontiguousarray(faces.photographs()["astronaut"][:300, 60:400])


@pytest.fixture
def source(tmp_path, astronaut):
    """A folder: two with a face, one without, one that is no picture."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(astronaut))
    (folder / "sub" / "b.png").write_bytes(png(np.ascontiguousarray(astronaut[:, ::-1])))
    (folder / "plain.png").write_bytes(png(noise()))
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture
def run(capsys, bundle_folder):
    """A command line; returns exit code, what was said, and the JSON object."""

    def command(*arguments, model=bundle_folder):
        capsys.readouterr()
        code = console.run(app, ["restore", *map(str, arguments), "--model", str(model), "--json"])
        out, err = capsys.readouterr()
        return code, err, json.loads(out)

    return command


SMALL = {"one-pixel.png", "one-pixel.jpeg", "one-pixel.webp", "fifteen-rows.png"}  # too small only to learn from


def by_name(report):
    return {row["input"]: row for row in report["pictures"]}


def test_a_folder_is_restored_and_told_of(run, source, astronaut, tmp_path):
    out = tmp_path / "out"
    code, said, told = run(source, "--out", out)
    assert code == 0, said
    rows = by_name(told)
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "restored", "sub/b.png": "restored", "plain.png": "copied", "text.png": "failed"
    }  # fmt: skip
    assert (told["restored"], told["copied"], told["failed"], told["faces"]) == (2, 1, 1, 2)
    assert rows["text.png"]["reason"].startswith("is not a picture this program reads")
    assert rows["plain.png"]["reason"] == "no face was found"
    (found,) = rows["a.png"]["faces"]
    assert found["number"] == 1
    assert found["restored"]
    left, top, right, bottom = found["box"]
    restored = read_image((out / "a.png").read_bytes())
    assert (restored != astronaut)[top:bottom, left:right].any(-1).mean() > 0.9
    assert (out / "plain.png").read_bytes() == (source / "plain.png").read_bytes()
    assert json.loads((out / "report.json").read_text())["pictures"] == told["pictures"]
    with (out / "report.csv").open() as file:
        assert [row["input"] for row in csv.DictReader(file)] == sorted(rows)
    assert {path.name for path in out.rglob("*") if path.is_file()} == {
        "a.png", "b.png", "plain.png", "report.json", "report.csv", ".restored.jsonl"
    }  # fmt: skip


def test_a_zip_gives_the_same_as_its_folder(run, source, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "in"), "zip", source)
    run(source, "--out", tmp_path / "one")
    code, _, told = run(archive, "--out", tmp_path / "two")
    assert code == 0
    assert told["restored"] == 2
    for name in ("a.png", "sub/b.png", "plain.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_finished_is_not_done_again(run, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(source, "--out", out)
    passes, restore = [], Restorer.restore
    monkeypatch.setattr(Restorer, "restore", lambda self, x, *more: passes.append(len(x)) or restore(self, x, *more))
    _, _, told = run(source, "--out", out)
    assert (told["resumed"], told["restored"], passes) == (3, 2, [])
    shutil.copy(source / "a.png", source / "plain.png")  # other bytes under a known name
    (out / "sub" / "b.png").unlink()
    _, _, told = run(source, "--out", out)
    assert (told["resumed"], told["restored"], passes) == (1, 3, [2])
    _, _, told = run(source, "--out", out, "--strength", "0.5")  # another order
    assert told["resumed"] == 0


def test_a_result_that_was_moved_is_made_again_where_it_belongs(run, source, tmp_path):
    run(source, "--out", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    _, _, told = run(source, "--out", tmp_path / "moved")
    assert told["resumed"] == 0
    assert by_name(told)["a.png"]["output"] == str(tmp_path / "moved" / "a.png")


def test_another_model_does_all_again(run, source, tmp_path, with_provenance):
    run(source, "--out", tmp_path / "out")
    _, _, told = run(source, "--out", tmp_path / "out", model=with_provenance(dataset_digest="other"))
    assert told["resumed"] == 0


def test_a_run_that_was_cut_off_goes_on(run, source, tmp_path, monkeypatch):
    """The journal's last line is half written, one picture is finished."""
    out = tmp_path / "out"
    run(source, "--out", out)
    journal = out / ".restored.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text(lines[0] + "\n" + lines[1][:40])
    code, _, told = run(source, "--out", out)
    assert (code, told["resumed"], told["restored"]) == (0, 1, 2)
    assert len(journal.read_text().splitlines()) >= 3
    _, _, told = run(source, "--out", out)
    assert told["resumed"] == 3


def test_strict_fails_after_all_is_done(run, source, tmp_path):
    code, _, told = run(source, "--out", tmp_path / "out", "--strict")
    assert code == 1
    assert "1 of 4 pictures failed" in told["error"]
    assert (tmp_path / "out" / "a.png").is_file()


def test_pictures_without_a_face_can_be_skipped(run, source, tmp_path):
    _, _, told = run(source, "--out", tmp_path / "out", "--no-face", "skip")
    assert by_name(told)["plain.png"]["status"] == "skipped"
    assert not (tmp_path / "out" / "plain.png").exists()
    assert run(source, "--out", tmp_path / "out", "--no-face", "skip")[2]["resumed"] == 3


def test_faces_of_several_pictures_share_a_batch(source, bundle_folder, tmp_path, monkeypatch):
    passes, restore = [], Restorer.restore
    monkeypatch.setattr(Restorer, "restore", lambda self, x, *more: passes.append(len(x)) or restore(self, x, *more))
    (source / "plain.png").unlink()
    restore_folder.folder(source, tmp_path / "out", restoring.order(str(bundle_folder), Wishes()))
    assert passes == [2]


def test_a_page_with_a_slider_that_needs_nothing_else(run, source, tmp_path):
    _, _, told = run(source, "--out", tmp_path / "out", "--compare", tmp_path / "both")
    page = (tmp_path / "both" / "index.html").read_text()
    assert told["compare"] == str(tmp_path / "both" / "index.html")
    assert page.count('type="range"') == 2
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page
    assert read_image((tmp_path / "both" / "a.png.png").read_bytes()).shape[1] > 2 * 340


def test_what_is_too_large_to_compare_is_named_on_the_page(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.comparing.MAX_PIXELS", 340 * 300)
    code, _, _ = run(source, "--out", tmp_path / "out", "--compare", tmp_path / "both", "--upscale", "2")
    assert code == 0
    page = (tmp_path / "both" / "index.html").read_text()
    assert page.count('type="range"') == 0
    assert "not compared: a.png (680x600 is more than 102000 pixels), sub/b.png" in page


def test_one_picture_into_a_folder_with_a_page(run, source, tmp_path):
    code, _, told = run(source / "a.png", "--out", tmp_path / "new", "--compare", tmp_path / "both")
    assert code == 0
    assert told["out"] == str(tmp_path / "new" / "a.png")
    assert (tmp_path / "both" / "index.html").read_text().count('type="range"') == 1


def test_the_six_faces_and_only_those_chosen(run, t1, tmp_path):
    (tmp_path / "t1.png").write_bytes(png(t1))
    _, _, told = run(tmp_path / "t1.png", "--out", tmp_path / "o.png", "--face", "2", "--face", "5")
    (row,) = told["pictures"]
    assert (len(row["faces"]), row["detector"]) == (6, "dlib")
    assert [face["number"] for face in row["faces"] if face["restored"]] == [2, 5]
    changed = (read_image((tmp_path / "o.png").read_bytes()) != t1).any(-1)
    for face in row["faces"]:
        left, top, right, bottom = face["box"]
        share = changed[top:bottom, left:right].mean()
        assert share > 0.9 if face["restored"] else share < 0.5


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_formats_by_suffix_with_what_the_file_had(run, astronaut, tmp_path, suffix):
    """EXIF's orientation is applied, its other words stay."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation], block[ExifTags.Base.Artist] = 6, "NASA"
    Image.fromarray(np.rot90(astronaut)).save(tmp_path / "in.jpg", quality=98, exif=block)
    out = tmp_path / f"out.{suffix}"
    code, _, told = run(tmp_path / "in.jpg", "--out", out)
    assert (code, told["pictures"][0]["status"]) == (0, "restored")
    with Image.open(out) as image:
        assert image.format.lower() == {"jpg": "jpeg"}.get(suffix, suffix)
        assert image.size == (astronaut.shape[1], astronaut.shape[0])
        assert image.getexif()[ExifTags.Base.Artist] == "NASA"
        assert ExifTags.Base.Orientation not in image.getexif()


def test_sixteen_bits_and_alpha_come_back(run, astronaut, tmp_path):
    deep = astronaut.astype(np.uint16) * 257 + 3
    deep = np.minimum(deep, 65535).astype(np.uint16)
    alpha = np.full(deep.shape[:2], 40_000, np.uint16)
    files.write(tmp_path / "in.png", cv2.imencode(".png", np.dstack([deep[..., ::-1], alpha]))[1].tobytes())
    code, _, told = run(tmp_path / "in.png", "--out", tmp_path / "out.png")
    assert (code, told["pictures"][0]["status"]) == (0, "restored")
    made = picturefile.read((tmp_path / "out.png").read_bytes())
    assert made.colours.dtype == np.uint16
    np.testing.assert_array_equal(made.alpha, alpha)
    same = (made.colours == deep).all(-1)
    assert 0.2 < same.mean() < 0.9
    assert (made.colours[~same] % 257 != made.colours[~same][0, 0] % 257).any()  # no 8 bits spread over 16


def test_a_grey_photograph_stays_grey(run, astronaut, tmp_path):
    Image.fromarray(astronaut).convert("L").save(tmp_path / "in.png")
    run(tmp_path / "in.png", "--out", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as made, Image.open(tmp_path / "in.png") as given:
        assert made.mode == "L"
        assert 0.2 < (np.asarray(made) == np.asarray(given)).mean() < 0.9


def test_upscaled_twice(run, astronaut, tmp_path):
    Image.fromarray(astronaut).save(tmp_path / "in.png")
    run(tmp_path / "in.png", "--out", tmp_path / "out.png", "--upscale", "2")
    made = read_image((tmp_path / "out.png").read_bytes())
    assert made.shape == (600, 680, 3)
    expected = cv2.resize(astronaut, (680, 600), interpolation=cv2.INTER_LANCZOS4)
    np.testing.assert_array_equal(made[-40:], expected[-40:])


def test_a_seed_decides_where_the_latent_is_drawn(run, source, tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.png"
        run(source / "a.png", "--out", out, "--latent", "sample", "--seed", seed)
        made.append(read_image(out.read_bytes()))
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_other_executions_give_the_same_picture_nearly(run, source, tmp_path):
    made = []
    for execution in ("plain", "folded", "lean"):
        run(source / "a.png", "--out", tmp_path / f"{execution}.png", "--execution", execution)
        made.append(read_image((tmp_path / f"{execution}.png").read_bytes()).astype(int))
    assert max(abs(made[0] - other).max() for other in made[1:]) <= 1


def test_a_folder_of_the_worlds_worst(tmp_path, bundle_folder):
    """Each file has its row, none ends the run, and only pictures are written."""
    outcomes = hostile.write_hostile(tmp_path / "in")
    order = restoring.order(str(bundle_folder), Wishes(), max_pixels=hostile.MAX_PIXELS)
    report = restore_folder.folder(tmp_path / "in", tmp_path / "out", order)
    rows = by_name(report)
    assert set(rows) == set(outcomes)
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {
        name for name, outcome in outcomes.items() if outcome == "reject" and name not in SMALL
    }
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows.values() if row["status"] == "failed")
    assert all(Path(row["output"]).is_file() for row in rows.values() if row["output"])


def test_names_that_lead_out_or_meet(tmp_path, bundle_folder):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("../evil.png", "report.csv", "/abs.png", "fine.bmp", "fine.bmp.png"):
            archive.writestr(name, png(noise()))
    order = restoring.order(str(bundle_folder), Wishes())
    rows = by_name(restore_folder.folder(tmp_path / "in.zip", tmp_path / "deep" / "out", order))
    failed = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert failed == {
        "../evil.png": "has a name that cannot be used below --out",
        "/abs.png": "has a name that cannot be used below --out",
        "fine.bmp.png": "has the name of another",
    }
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {
        "fine.bmp.png", "report.csv.png", "report.csv", "report.json", ".restored.jsonl"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["in", ".", "file"])
def test_an_out_that_would_cost_pictures_is_refused(run, source, tmp_path, name):
    (tmp_path / "file").write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, told = run(source, "--out", tmp_path / name)
    assert code == 1
    assert "give another --out" in told["error"] or "is a file" in told["error"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_out_within_the_folder_is_not_restored_itself(run, source):
    first = run(source, "--out", source / "out")[2]
    second = run(source, "--out", source / "out")[2]
    assert by_name(first).keys() == by_name(second).keys()


def test_a_folder_that_cannot_be_listed_is_one_sentence(run, source, tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("pipelines.sources.places.os.scandir", refuse)
    code, _, told = run(source, "--out", tmp_path / "out")
    assert (code, told["error"]) == (1, f"{source}: cannot be read (Permission denied)")


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(source, tmp_path, bundle_folder, monkeypatch):
    order, write = restoring.order(str(bundle_folder), Wishes()), files.write

    def full(path, data):
        if path.name == "b.png":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(photographs.files, "write", full)
    with pytest.raises(UserError, match=r"b\.png: cannot be written .No space left on device"):
        restore_folder.folder(source, tmp_path / "out", order)
    monkeypatch.undo()
    assert restore_folder.folder(source, tmp_path / "out", order)["resumed"] >= 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"P6 0 0 255\n", "is"),
        (b"GIF89a" + bytes(7), "is"),
        (b"%PDF-1.7", "is not a picture this program reads"),
        (png(noise())[:3000], "is damaged"),
        (b"P6 100000 100000 255\n", "exceeds limit"),
    ],
)
def test_a_picture_that_is_none_is_one_sentence(run, tmp_path, data, words):
    (tmp_path / "in.png").write_bytes(data)
    code, said, told = run(tmp_path / "in.png", "--out", tmp_path / "out.png")
    assert code == 1
    assert told["error"].startswith(f"{tmp_path / 'in.png'}: ")
    assert words in told["error"]
    assert "Traceback" not in said
    assert not (tmp_path / "out.png").exists()


def test_a_picture_that_one_pass_cannot_take_is_refused(run, tmp_path):
    Image.new("RGB", (4000, 2001)).save(tmp_path / "in.png")
    code, _, told = run(tmp_path / "in.png", "--out", tmp_path / "out.png", "--faces", "whole")
    assert code == 1
    assert "in.png: 4000x2001 is more than one pass takes, 8000000 pixels" in told["error"]


MEASURED = """
import re, sys
from pathlib import Path
from jobs import console
from jobs.cli import app
code = console.run(app, sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


@pytest.mark.full
@pytest.mark.parametrize(("width", "height"), [(45_000, 2_240), (11_648, 8_736)])
def test_a_hundred_megapixels_in_bounded_memory(width, height, t1, bundle_folder, environment, tmp_path):
    """All faces at both ends, in what the libraries, four copies of the picture and a search take."""
    panorama = np.full((height, width, 3), 128, np.uint8)
    for left in (100, width - t1.shape[1] - 100):
        panorama[100 : 100 + t1.shape[0], left : left + t1.shape[1]] = t1
    Image.fromarray(panorama).save(tmp_path / "in.jpg", quality=92)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "restore", tmp_path / "in.jpg", "--out", tmp_path / "out.jpg", "--json",
         "--model", bundle_folder],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, peak = done.stdout.splitlines()
    assert len(json.loads(told)["pictures"][0]["faces"]) == 12
    assert int(peak) * 1024 < 1.5 * 2**30 + 4 * panorama.nbytes
    with Image.open(tmp_path / "out.jpg") as made:
        assert made.size == (width, height)


def test_a_cluster_is_used_wholly_and_a_cpu_left_for_reading():
    from pipelines.restore_cluster import Shape

    assert Shape.of([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}]) == (6, 1, 1)
    assert Shape.of([{"CPU": 8.0}, {"CPU": 16.0}, {"CPU": 0.0}, {}]) == (2, 7, 0)
    assert Shape.of([{"CPU": 1.0}]) == (1, 1, 0)


def test_over_ray_data_the_same(ray_session, source, bundle_folder, tmp_path):
    from pipelines import restore_cluster

    order = restoring.order(str(bundle_folder), Wishes())
    here = restore_folder.folder(source, tmp_path / "here", order)
    there = restore_folder.folder(source, tmp_path / "there", order, restore_cluster.on("auto"))
    for name in ("restored", "copied", "failed", "faces"):
        assert there[name] == here[name]
    for name in ("a.png", "sub/b.png", "plain.png"):
        one, other = (read_image((tmp_path / where / name).read_bytes()) for where in ("here", "there"))
        assert np.abs(one.astype(int) - other).max() <= 1
