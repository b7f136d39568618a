"""Tables 4 and 5: every row differs from the setup below it in its own line and in nothing else."""

import pytest

from jobs import configs
from osdface.config import read

ROWS = {
    ("learned", "osd"): {"prompt.kind": "learned"},
    ("without_association", "vre"): {"losses.association": 0},
    ("without_identity", "osd"): {"losses.identity": 0},
    ("without_perceptual", "osd"): {"losses.perceptual": 0},
    ("ea_lpips", "osd"): {"perceptual.kind": "ea_lpips"},
    ("without_gan", "osd"): {"losses.adversarial": 0},
}


def flat(data: dict, above: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found = {}
    for key, value in data.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def difference(config: str, base: str, kind: str) -> dict:
    ours, theirs = (flat(read(configs.find(ref, kind))) for ref in (config, base))
    assert theirs.keys() <= ours.keys()
    return {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_row_changes_its_own_line_on_paper_and_on_tiny(name, kind):
    row = ROWS[name, kind]
    assert difference(f"ablations/{name}", "paper", kind) == row
    assert difference(f"tiny,ablations/{name}", "tiny", kind).items() <= row.items()


def test_every_row_is_here():
    folder = configs.FOLDER / "ablations"
    assert {(path.parent.name, path.stem) for path in folder.rglob("*.yaml")} == ROWS.keys()
    assert all(f"`{name}`" in (folder / "README.md").read_text() for name, _ in ROWS)
