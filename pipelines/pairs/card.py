"""A dataset's card: README.md in the form that dataset hubs show, and read for the files' layout."""

import yaml

from pipelines.pairs.manifest import Manifest
from pipelines.pairs.schema import PICTURES, SCHEMA

CARD = "README.md"
COLUMNS = {
    "key": "source hash and variant; unique",
    "source_uri, source_sha256": "the source picture: its name in its source, and its bytes' hash",
    "variant": "which degradation of this picture",
    "split": "train, val or test; by hash of the picture or of its group",
    "hq, lq": "the pair, as encoded pictures",
    "target, target_uri, target_sha256": "a twin of the HQ picture to aim at; null where there is none",
    "trace": "JSON: every operator with every parameter drawn; LQ replays from HQ by it",
}


def card(manifest: Manifest) -> str:
    """Markdown with the header of a Hugging Face dataset card. The same for the same dataset, whenever it is made."""
    spec, counts = manifest.spec, manifest.counts
    head = {
        "license": "other" if manifest.licences else "unknown",
        "license_name": ", ".join(manifest.licences) or None,
        "task_categories": ["image-to-image"],
        "tags": ["face-restoration", "osdface"],
        "dataset_info": {"features": _features()},
        "configs": [{"config_name": "default", "data_files": "shards/*.parquet"}],
    }
    header = yaml.safe_dump({name: value for name, value in head.items() if value}, sort_keys=False)
    lines = [
        f"# Degraded face pairs: {spec.recipe.name}",
        f"{counts.rows} (LQ, HQ) pairs of {counts.sources} pictures, {spec.size} x {spec.size} pixels; "
        f"{', '.join(f'{name} {rows}' for name, rows in counts.splits.items())}. {counts.rejects} files were no "
        "pictures to use (`rejects.parquet`).",
        f"Digest `{manifest.digest}`"
        + (f", made by {manifest.made_by} from `{manifest.parent}`." if manifest.parent else "."),
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in _facts(manifest).items()),
        "| column | |\n|---|---|\n" + "\n".join(f"| {name} | {what} |" for name, what in COLUMNS.items()),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(lines) + "\n"


def _features() -> list[dict[str, str]]:
    """What Hugging Face `datasets` needs to know to decode the pictures."""
    return [{"name": field.name, "dtype": "image" if field.name in PICTURES else str(field.type)} for field in SCHEMA]


def _facts(manifest: Manifest) -> dict[str, str]:
    spec = manifest.spec
    return {
        "recipe": f"{spec.recipe.name}, `{spec.recipe.digest}`",
        "seed, variants": f"{spec.seed}, {spec.variants}",
        "formats": f"HQ {spec.hq_format}, LQ {spec.lq_format}; stored: {spec.store}",
        "not square or too small": spec.fit + ("; faces aligned by detector" if spec.crop == "face" else ""),
        "licences of the sources": ", ".join(manifest.licences) or "not stated",
    }
