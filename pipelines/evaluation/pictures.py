"""What is evaluated: the pairs of a dataset, or pictures of folders and archives matched by name."""

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image

from osdface import config
from osdface.errors import UserError
from osdface.imagefile import open_header, read_image
from pipelines import sources
from pipelines.pairs.manifest import Manifest, read_manifest
from pipelines.pairs.reading import NEEDED, PairDataset
from pipelines.store import Reference

LARGEST = 2**30  # bytes of a picture file
REFERENCE = "reference"
THREADS = 8  # that look at files before the work


class Sample(NamedTuple):
    """One face. pictures: (H, W, 3) uint8 RGB by what they are: "lq", "restored". trace: of its degradation, JSON."""

    key: str
    pictures: dict[str, np.ndarray]
    reference: np.ndarray | None = None
    trace: str | None = None


class Pictures(Protocol):
    """Faces by number, the same in every process. unmatched: names by folder.

    uri, digest: of what any method is given, and compared with: the same for all methods.
    """

    uri: str
    digest: str
    references: bool
    unmatched: dict[str, list[str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def profile(self) -> dict[str, Any]:
        """What is told of them beside the digest."""
        ...


class Pairs:
    """One split of a pair dataset. Raises UserError where it is empty, or no finished dataset."""

    references = True
    unmatched: dict[str, list[str]] = {}

    def __init__(self, data: Reference, split: str):
        self.manifest: Manifest = read_manifest(data)
        self.rows = PairDataset(data, split, columns=[*NEEDED, "trace"])
        self.uri, self.digest, self.split = self.rows.store.uri, self.manifest.digest, split
        if not len(self.rows):
            there = self.manifest.counts.splits
            raise UserError(f"{data}: its {split} split is empty; it has {there}, choose with --split")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows.row(index)
        made = self.rows.originals.pictures(row)
        return Sample(row["key"], {"lq": made.lq}, made.target, row["trace"] or self._drawn(row, made.hq))

    def _drawn(self, row: dict[str, Any], hq: np.ndarray) -> str:
        """The trace of a virtual row, which stores none."""
        from degradations.degrade import degrade  # here, since Albumentations is slow to import

        spec = self.manifest.spec
        return json.dumps(degrade(hq, spec.recipe, (spec.seed, row["source_sha256"], row["variant"])).trace)

    def profile(self) -> dict[str, Any]:
        """Rows by split, and the recipe."""
        counts = self.manifest.counts
        return {"rows": counts.rows, **counts.splits, "recipe": self.manifest.spec.recipe.name}


class Matched:
    """Pictures of the same name in every folder, the name's suffix aside.

    folders: by what their pictures are ("lq", "restored", "reference"): folders, archives or URLs. Raises UserError
    where nothing matches, for what is no picture, and for a picture of another size than its reference's: all that
    before any work, from the headers.
    """

    def __init__(self, folders: dict[str, str]):
        found = {what: _listed(uri) for what, uri in folders.items()}
        self.keys = sorted(set.intersection(*(set(files) for files in found.values())))
        given = [what for what in folders if what != "restored"] or ["restored"]
        self.uri = folders[given[0]]
        self.references = REFERENCE in folders
        self.unmatched = {
            what: sorted(files[key].name for key in set(files) - set(self.keys)) for what, files in found.items()
        }
        if not self.keys:
            first = ", ".join(
                f"{what} has {min(file.name for file in files.values())}" for what, files in found.items()
            )
            raise UserError(f"{' and '.join(folders.values())}: no picture has the same name in both ({first}, ...)")
        self.files = [{what: files[key] for what, files in found.items()} for key in self.keys]
        with ThreadPoolExecutor(THREADS) as pool:
            self.looks = list(pool.map(_look, self.files))
        hashed = [{what: look.hashed[what] for what in given} for look in self.looks]
        self.digest = config.digest(list(zip(self.keys, hashed, strict=True)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        read = {what: read_image(file.read(), file.label) for what, file in self.files[index].items()}
        return Sample(self.keys[index], read, read.pop(REFERENCE, None))

    def profile(self) -> dict[str, Any]:
        """How many pictures."""
        return {"rows": len(self)}

    def sizes(self, what: str) -> set[tuple[int, int]]:
        """(width, height) of the pictures of one folder."""
        return {look.sizes[what] for look in self.looks}


class _File(NamedTuple):
    """name: in its folder; label: as messages have it."""

    name: str
    label: str
    at: str

    def read(self) -> bytes:
        try:
            return sources.read(self.at, LARGEST)
        except OSError as error:
            raise UserError(f"{self.label}: cannot be read ({error.strerror})") from None


class _Look(NamedTuple):
    """(width, height) and sha256 of each picture of a face."""

    sizes: dict[str, tuple[int, int]]
    hashed: dict[str, str]


def _listed(uri: str) -> dict[str, _File]:
    """Pictures by relative name without suffix. What else lies there, such as a report, is passed over."""
    files: dict[str, _File] = {}
    for found in sources.files(sources.Source(uri=uri), 0):
        name = PurePosixPath(found["source_uri"])
        if name.suffix.lower() not in sources.PICTURES:
            continue
        file = _File(str(name), f"{uri.rstrip('/')}/{name}", found["at"])
        if found["reason"]:
            raise UserError(f"{file.label}: {found['reason']}")
        key = str(name.with_suffix(""))
        if key in files:
            raise UserError(f"{file.label}: {files[key].name} has the same name but for its suffix; keep one of them")
        files[key] = file
    if not files:
        raise UserError(f"{uri}: holds no pictures ({', '.join(sorted(sources.PICTURES))})")
    return files


def _look(files: dict[str, _File]) -> _Look:
    sizes, hashed = {}, {}
    for what, file in files.items():
        data = file.read()
        sizes[what] = _upright(open_header(data, file.label))
        hashed[what] = hashlib.sha256(data).hexdigest()
    wanted = sizes.get(REFERENCE)
    for what, (width, height) in sizes.items():
        if wanted and (width, height) != wanted:
            raise UserError(
                f"{files[what].label}: is {width}x{height}, but its reference {wanted[0]}x{wanted[1]}; "
                "bring both to one size"
            )
    return _Look(sizes, hashed)


def _upright(header: Image.Image) -> tuple[int, int]:
    """Its size as `read_image` gives it, from the header alone: Pillow decodes a PNG to look for a late EXIF block."""
    width, height = header.size
    turned = False
    if "exif" in header.info or header.format == "TIFF":
        with contextlib.suppress(Exception):  # broken metadata spoils no picture
            turned = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)
