"""The field's test sets, a YAML file each: where users get them, and what is checked of the folder they have."""

from pathlib import Path

from pydantic import Field

from osdface import config
from osdface.config import Strict
from osdface.errors import UsageError, UserError
from pipelines.evaluation.pictures import REFERENCE, Matched

FOLDER = Path(__file__).parent


class TestSet(Strict):
    """get: where its files are handed out. lq, hq: folders in the set's root, hq None without references.

    files: how many pictures a folder has, each number that is known of. size: pixels of a side. notes: what is not
    known, among others.
    """

    __test__ = False  # for pytest

    title: str
    about: str
    get: list[str] = Field(min_length=1)
    lq: str
    hq: str | None
    files: list[int] = Field(min_length=1)
    size: int
    notes: list[str] = []

    def pictures(self, root: str, restored: str | None = None) -> Matched:
        """Its pictures in `root`, beside those that a method restored; all there, or a UserError that says what not."""
        folders = {"lq": self._under(root, self.lq)}
        folders |= {"restored": restored} if restored else {}
        folders |= {REFERENCE: self._under(root, self.hq)} if self.hq else {}
        found = Matched(folders)
        for what, folder in folders.items():
            count = len(found) + len(found.unmatched[what])
            if what != "restored" and count not in self.files:
                expected = " or ".join(map(str, self.files))
                raise UserError(f"{folder}: has {count} pictures, but {self.title} has {expected}; get {self.get[0]}")
        if (sizes := found.sizes("lq")) != {(self.size, self.size)}:
            width, height = min(sizes - {(self.size, self.size)})
            raise UserError(
                f"{folders['lq']}: has a picture of {width}x{height}, but {self.title} has {self.size} pixels"
            )
        return found

    def _under(self, root: str, folder: str) -> str:
        return root if folder == "." else f"{root.rstrip('/')}/{folder}"


def names() -> list[str]:
    """Of all test sets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> TestSet:
    """A test set by name. Raises UsageError for one that there is not."""
    if name not in names():
        raise UsageError(f"--set {name}: there is no such test set; known: {', '.join(names())}")
    return config.load(TestSet, FOLDER / f"{name}.yaml")
