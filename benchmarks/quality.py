"""Whether a model restores faces that it never saw, and better than a plain UNet of its size does that was trained with
L1 alone on the same pairs for the same time at the best of three learning rates.

256 held-out procedural faces, every metric that this machine has, 95 % intervals, and the paired comparison; then faces
of two real photographs, degraded by the same recipe. Exits with 1 where something that is required does not hold.

    python -m benchmarks.quality --model model --data pairs --test held_out

The baseline can be trained elsewhere: `--train-only FOLDER --data pairs --parameters N --seconds S` there, a learning
rate at a time if need be, then `--baseline FOLDER/*.safetensors` here.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import baseline, judging, record
from benchmarks.baseline import Pairs
from benchmarks.judging import Judge, Measured
from degradations.degrade import degrade
from degradations.recipe import Recipe
from osdface.errors import UserError
from pipelines import metrics, outputs
from pipelines.metrics.protocol import Suite

DOCS = Path(__file__).parents[1] / "docs"
RATES = (3e-4, 1e-3, 3e-3)
LQ, L1, OURS = "LQ", "L1 UNet", "ours"
GAIN = 3.0  # dB above LQ
# What is held to, by the beginnings of metrics' names; identity against the L1 UNet is told, and no more.
FAMILIES = {
    "identity": ("identity.",),
    "perceptual distance": ("lpips.", "dists"),
    "distribution distance": ("fid.",),
}
ALSO_THE_UNET = ("perceptual distance", "distribution distance")
SHOWN = 8  # rows of the sheet
DRAWS = 8  # degradations of every face of the photographs


def held_out(folder: str | Path, training: str | Path, count: int) -> Pairs:
    """The first `count` faces of a dataset's split "test", a pair of each.

    Raises UserError where there are fewer, or one of them is among the training's.
    """
    pairs = baseline.read(folder, "test")
    faces = [key.rpartition("-")[0] for key in pairs.keys]
    rows = sorted({face: row for row, face in reversed(list(enumerate(faces)))}.values())[:count]
    if len(rows) < count:
        raise UserError(f"{folder}: its test split has {len(rows)} faces, and {count} are wanted: --count {len(rows)}")
    seen = {key.rpartition("-")[0] for key in keys(training, "train")}
    if known := seen & {faces[row] for row in rows}:
        raise UserError(f"{folder}: {len(known)} of its test faces are in the training split of {training}")
    return Pairs([pairs.keys[row] for row in rows], pairs.lq[rows], pairs.hq[rows])


def keys(folder: str | Path, split: str) -> list[str]:
    """Of the pairs of a split, without their pictures."""
    from pipelines.pairs.manifest import SHARDS, open_parquet, read_manifest
    from pipelines.store import Store

    store, found = Store(folder), []
    for shard in read_manifest(store).shards:
        with open_parquet(store, f"{SHARDS}/{shard.name}") as file:
            rows = file.read(columns=["key", "split"]).to_pylist()
        found += [row["key"] for row in rows if row["split"] == split]
    return found


def restore(restorer: Any, lq: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8 -> the same, restored by the model. Raises UserError where it works at another size."""
    if lq.shape[1] != restorer.size:
        raise UserError(f"the model restores {restorer.size} pixels, the pairs have {lq.shape[1]}")
    return (np.stack(restorer.restore_crops(list(lq))) * 255).round().astype(np.uint8)


def photographs(recipe: Recipe, size: int, draws: int) -> Pairs:
    """The faces of two real photographs, aligned, each degraded `draws` times: pairs face by face."""
    from osdface import faces

    keys, lq, hq = [], [], []
    for name, image in faces.photographs().items():
        for number, face in enumerate(faces.DlibFrontal().detect(image), 1):
            crop, _ = faces.align(image, face, size)
            digest = hashlib.sha256(crop.tobytes()).hexdigest()
            for draw in range(draws):
                keys.append(f"{name} {number}-{draw:03d}")
                hq.append(crop)
                lq.append(degrade(crop, recipe, (0, digest, draw)).lq)
    return Pairs(keys, np.stack(lq), np.stack(hq))


def of_faces(measured: Measured, draws: int) -> Measured:
    """Values of pictures as means over each face's degradations: faces, not pictures, are independent."""
    counted = {name: np.ma.masked_invalid(values.reshape(-1, draws)) for name, values in measured.values.items()}
    return Measured({name: values.mean(1).filled(np.nan) for name, values in counted.items()}, {})


def conditions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is required, or told, of a table's rows, and whether it holds: on the mean of these pictures."""
    rows = [row for row in rows if row["reference"] and judging.measured(row)]
    found = [
        _condition("PSNR", row, LQ, True, lambda difference: difference >= GAIN, f"at least {GAIN:g} dB above LQ")
        for row in rows
        if row["metric"] == "psnr"
    ]
    for family, names in FAMILIES.items():
        those = [row for row in rows if row["metric"].startswith(names)]
        for other in (LQ, L1):
            required = other == LQ or family in ALSO_THE_UNET
            for row in those:
                sign = 1 if row["better"] == "higher" else -1
                better = lambda difference, sign=sign: sign * difference > 0  # noqa: E731
                found.append(_condition(family, row, other, required, better, f"better than {other}"))
    measured = {condition["what"] for condition in found}
    missing = [what for what in ("PSNR", *FAMILIES) if what not in measured]
    blank = {"metric": "none on this machine", "than": "measured", "difference": None, "clear": False}
    return found + [{"what": what, **blank, "holds": False, "required": True} for what in missing]


def _condition(what: str, row: dict[str, Any], other: str, required: bool, good: Any, than: str) -> dict[str, Any]:
    """clear: whether it holds at both ends of the difference's interval."""
    difference = row["against"][other]["difference"]
    return {
        "what": what,
        "metric": row["metric"],
        "than": than,
        "difference": difference,
        "holds": bool(good(difference[0])),
        "clear": bool(all(good(end) for end in difference)),
        "required": required,
    }


def good(found: Sequence[dict[str, Any]]) -> bool:
    return all(condition["holds"] for condition in found if condition["required"])


def sheet(path: Path, methods: dict[str, np.ndarray], rows: Sequence[int]) -> None:
    """A row of every method's picture for each of `rows`."""
    from pipelines import report

    cells = [[images[row] for images in methods.values()] for row in rows]
    report.save_png(path, report.sheet(cells, list(methods), 128))


def compare(judge: Judge, methods: dict[str, np.ndarray], draws: int = 1) -> list[dict[str, Any]]:
    """The table of LQ, the UNet and the model."""
    measured = {method: judge(images) for method, images in methods.items()}
    if draws > 1:
        measured = {method: of_faces(one, draws) for method, one in measured.items()}
    return judge.table(measured, OURS)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train the baseline or read it, restore, measure, judge, draw."""
    from osdface import bundle
    from osdface.restorer import Restorer
    from pipelines.pairs.manifest import read_manifest

    test = options.test or options.data
    pairs, manifest = held_out(test, options.data, options.count), read_manifest(test)
    restorer = Restorer.load(options.model, options.device)
    size = baseline.parameters(restorer.generator)
    path = bundle.resolve(options.model)
    networks = options.baseline or train(options, size)
    chosen = baseline.best(networks)
    unet = baseline.load(chosen, options.device)
    suite = metrics.load(options.device)

    def methods(lq: np.ndarray) -> dict[str, np.ndarray]:
        return {LQ: lq, L1: baseline.restore(unet, lq), OURS: restore(restorer, lq)}

    synthetic = methods(pairs.lq)
    rows = compare(Judge(suite, pairs.hq), synthetic)
    sheet(options.pictures / "quality.png", synthetic | {"HQ": pairs.hq}, spread(len(pairs.hq), SHOWN))
    real = photographs(manifest.spec.recipe, restorer.size, options.draws)
    restored = methods(real.lq)
    # Seven faces have no distribution.
    real_rows = compare(Judge(Suite(suite.metrics), real.hq), restored, options.draws)
    first = range(0, len(real.hq), options.draws)
    sheet(options.pictures / "quality_photographs.png", restored | {"HQ": real.hq}, first)
    return {
        **record.machine(["torch", "diffusers", "numpy"]),
        "device": options.device,
        "model": {
            "reference": options.model,
            "digest": bundle.digest(path),
            "dataset": bundle.read_config(path).provenance.dataset_digest,
            "parameters": size,
            "parts": {name: baseline.parameters(part) for name, part in restorer.generator.named_children()},
        },
        "data": {"test": manifest.digest, "faces": len(pairs.keys)},
        "baselines": [baseline.note_of(file) | {"chosen": file == chosen} for file in networks],
        "rows": rows,
        "conditions": conditions(rows),
        "photographs": {"faces": len(first), "draws": options.draws, "rows": real_rows},
        "missing": [{"name": one.name, "file": one.file} for one in suite.missing],
    }


def spread(count: int, wanted: int) -> list[int]:
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()


def train(options: argparse.Namespace, size: int) -> list[Path]:
    out, seconds = options.train_only or options.work, options.seconds or taken(options.model)
    return baseline.trained(options.data, out, size, options.rates, seconds, options.batch, options.device)


def taken(model: str | None) -> float:
    """Seconds that stage 2 took. Raises UserError for another model than a training's own folder."""
    if model and Path(model).is_dir() and (seconds := outputs.receipt(model).get("seconds")):
        return seconds
    raise UserError("--seconds: give how long the baseline may train; only a training's own folder tells that itself")


def _parameters(model: str) -> int:
    from osdface.restorer import Restorer

    return baseline.parameters(Restorer.load(model).generator)


def report(result: dict[str, Any]) -> str:
    model, chosen = result["model"], next(one for one in result["baselines"] if one["chosen"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = " + ".join(f"{name} {count:,}" for name, count in model["parts"].items())
    rates = "; ".join(
        f"{one['rate']:g}: {one['val_psnr']:.2f} dB, {one['steps']} steps in {one['seconds']:.0f} s on {one['device']}"
        for one in result["baselines"]
    )
    photographs, faces = result["photographs"], result["data"]["faces"]
    return "\n\n".join(
        [
            f"# What the model restores, on {faces} procedural faces that no training saw",
            f"{result['date']}; {result['cpu']}; {versions}. Model `{model['digest'][:16]}`, test set "
            f"`{result['data']['test'][:16]}`.",
            f"Parameters at inference: {model['parameters']:,} ({parts}; LoRA merged). The L1 UNet has "
            f"{chosen['parameters']:,}; PSNR on the split val chose its learning rate, {chosen['rate']:g} ({rates}).",
            _same_pairs(model["dataset"], chosen["dataset"]),
            "Mean and 95 % bootstrap interval over pictures; wins: share of pictures on which ours is better, ties "
            "half. Distances of distributions are of whole sets.",
            record.table(judging.shown(result["rows"])),
            "## What is held to",
            record.table([_told(condition) for condition in result["conditions"]]),
            'Every condition is of the mean over these pictures; "clearly" where its interval agrees at both ends.',
            f"## {photographs['faces']} faces of two real photographs",
            f"The model never saw a real face. Each face was degraded {photographs['draws']} times by the test set's "
            "recipe; figures are means over faces, intervals over faces, too few for a distribution. Networks named "
            "procedural never saw a real face either.",
            record.table(judging.shown(photographs["rows"])),
            *_left_out(result),
        ]
    )


def _same_pairs(model: str | None, unet: str) -> str:
    if model == unet:
        return f"Both were trained on the pairs `{unet[:16]}`."
    known = f"the pairs `{model[:16]}`" if model else "pairs that nothing tells of"
    return f"**Not the same pairs**: the model was trained on {known}, the UNet on `{unet[:16]}`."


def _told(condition: dict[str, Any]) -> dict[str, str]:
    difference = condition["difference"]
    answer = "no" if not condition["holds"] else "yes, clearly" if condition["clear"] else "yes"
    return {
        "what": condition["what"],
        "by": condition["metric"],
        "is": condition["than"],
        "difference": judging.interval(difference, "+") if difference else "",
        "holds": answer,
        "required": "yes" if condition["required"] else "told only",
    }


def _left_out(result: dict[str, Any]) -> list[str]:
    """What has no figure, and why."""
    needs: dict[str, list[str]] = {}
    for one in result["missing"]:
        needs.setdefault(one["name"], []).append(one["file"])
    told = ["Left out, since their weights are not on this machine:"] if needs else []
    told += ["\n".join(f"- {name}: needs {' and '.join(files)}" for name, files in needs.items())] if needs else []
    small = ", ".join(row["metric"] for row in result["rows"] if not judging.measured(row))
    return told + ([f"Without a value on pictures of this size: {small}."] if small else [])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the trained model: a bundle or a reference to one")
    parser.add_argument("--data", required=True, help="the pair dataset that it was trained on, and the baseline is")
    parser.add_argument("--test", help="a dataset whose split test has the held-out faces; else that of --data")
    parser.add_argument("--count", type=int, default=256, help="held-out faces")
    parser.add_argument("--seconds", type=float, help="of the baseline's training at each rate; else the model's")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates of the baseline")
    parser.add_argument("--batch", type=int, default=32, help="pictures of a step of the baseline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parameters", type=int, help="of the baseline, with --train-only and without --model")
    parser.add_argument("--train-only", type=Path, metavar="FOLDER", help="train the baseline there, and end")
    parser.add_argument("--baseline", nargs="+", type=Path, metavar="FILE", help="baselines that are trained already")
    parser.add_argument("--draws", type=int, default=DRAWS, help="degradations of each face of the photographs")
    parser.add_argument("--work", type=Path, default=Path("quality"), help="folder of the baselines trained here")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of quality.json and quality.md")
    parser.add_argument("--pictures", type=Path, default=DOCS, help="folder of quality.png and quality_photographs.png")
    options = parser.parse_args()
    try:
        if not options.model and not (options.train_only and options.parameters):
            parser.error("give --model, or --train-only with --parameters")
        if options.train_only:
            train(options, options.parameters or _parameters(options.model))
            return 0
        result = run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    text = report(result)
    record.write("quality", result, text, options.out)
    print(text)
    return 0 if good(result["conditions"]) else 1


if __name__ == "__main__":
    sys.exit(main())
