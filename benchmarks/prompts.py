"""Whether a bundle's prompts matter to it, and whether the codes that they are made of could: on held-out faces.

What another picture's prompt costs, or the mean of all, or zeros; how much of the hidden states is what the UNet's
cross-attention adds, and how much the picture's own part of that; and how much of what the bundle leaves wrong a linear
map from the set of a picture's codes could take away, also with the codes of the HQ picture, which no restorer has.

    python -m benchmarks.prompts --model tiny --data pairs --test held_out
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import baseline, quality, record
from benchmarks.baseline import BATCH, psnrs
from osdface.errors import UserError
from osdface.generator import OneStepGenerator
from pipelines.pairs.reading import as_tensor
from pipelines.report import to_uint8

SHOWN = 64  # pictures whose hidden states are looked at
RIDGE = (1.0, 10.0, 100.0, 1e3, 1e4)
FITTED = 5 / 6  # of the pictures to learn from; the others choose the ridge
OTHER = "another picture's"
WRONG = {
    OTHER: lambda right: right.roll(1, 0),
    "the mean of all": lambda right: right.mean(0, keepdim=True).expand_as(right),
    "zeros": torch.zeros_like,
}


def tensor(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) in [-1, 1]."""
    return torch.stack([as_tensor(picture) for picture in pictures])


@torch.inference_mode()
def codes_of(generator: OneStepGenerator, images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, n, d)."""
    return torch.cat([generator.codes(batch) for batch in images.split(BATCH)])


@torch.inference_mode()
def costs(
    generator: OneStepGenerator, images: Tensor, references: np.ndarray, wrong: Sequence[str] = tuple(WRONG)
) -> dict[str, float]:
    """PSNR in dB that wrong prompts cost, mean over pictures, by their names in WRONG."""
    latents = torch.cat([generator.encode(batch) for batch in images.split(BATCH)])
    right = torch.cat([generator.prompt(codes) for codes in codes_of(generator, images).split(BATCH)])

    def restored(prompts: Tensor) -> np.ndarray:
        pairs = zip(latents.split(BATCH), prompts.split(BATCH), strict=True)
        made = (generator.decode(generator.denoise(z, prompt)) for z, prompt in pairs)
        return psnrs(np.concatenate([to_uint8(picture) for picture in made]), references)

    own = restored(right)
    return {name: float((own - restored(WRONG[name](right))).mean()) for name in wrong}


@torch.inference_mode()
def shares(generator: OneStepGenerator, images: Tensor) -> dict[str, tuple[float, float]]:
    """Cross-attention -> deviation of what it adds, and of the picture's own part of that, over its hidden states'.

    The own part is the difference from what another picture's prompt adds to the same states, over the root of two.
    """
    modules = dict(generator.unet.named_modules())
    hidden: dict[str, Tensor] = {}
    asked: dict[str, Tensor] = {}

    def keep(where: dict[str, Tensor], name: str) -> Any:
        return lambda module, given: where.__setitem__(name, given[0])

    names = [name for name in modules if name.endswith(".attn2")]
    hooks = [modules[name].register_forward_pre_hook(keep(asked, name)) for name in names]
    hooks += [modules[f"{name[:-5]}norm2"].register_forward_pre_hook(keep(hidden, name)) for name in names]
    prompt = generator.prompt(generator.codes(images))
    generator.denoise(generator.encode(images), prompt)
    for hook in hooks:
        hook.remove()
    found = {}
    for name in names:
        own, other = (modules[name](asked[name], encoder_hidden_states=p) for p in (prompt, prompt.roll(1, 0)))
        scale = hidden[name].std()
        found[name] = (float(own.std() / scale), float((own - other).std() / 2**0.5 / scale))
    return found


def sets(codes: Tensor, items: Tensor) -> Tensor:
    """(N, n, d) of a dictionary's items (K, d) -> which of them a picture has, (N, K) of zeros and ones.

    What fills a short prompt is zero, and no item.
    """
    nearest = torch.cdist(codes, items[None].expand(len(codes), -1, -1)).argmin(-1)
    real = codes.any(-1).float()
    return torch.zeros(len(codes), len(items)).scatter_add_(1, nearest, real).clamp(max=1)


def removed(known: Tensor, error: Tensor, new: Tensor, new_error: Tensor) -> float:
    """Share of the squared error (N, P) of new pictures that a ridge regression from features (N, F) takes away."""
    known, new = (torch.cat([features, torch.ones(len(features), 1)], 1) for features in (known, new))
    count = round(FITTED * len(known))
    gram, cross = known[:count].T @ known[:count], known[:count].T @ error[:count]
    maps = [torch.linalg.solve(gram + ridge * torch.eye(len(gram)), cross) for ridge in RIDGE]
    best = min(maps, key=lambda one: float((error[count:] - known[count:] @ one).square().mean()))
    return float(1 - (new_error - new @ best).square().mean() / new_error.square().mean())


@torch.inference_mode()
def probe(generator: OneStepGenerator, learn: baseline.Pairs, test: baseline.Pairs) -> dict[str, Any]:
    """`removed` by the sets of codes of LQ, of HQ, and by a constant; and how the sets are made up."""
    items = generator.embedder.quantize.embedding.weight
    parts = []
    for pairs in (learn, test):
        lq, hq = tensor(pairs.lq), tensor(pairs.hq)
        made = torch.cat([generator(batch).image.clamp(-1, 1) for batch in lq.split(BATCH)])
        parts.append(((hq - made).flatten(1), *(sets(codes_of(generator, images), items) for images in (lq, hq))))
    (error, lq_sets, hq_sets), (new_error, new_lq, new_hq) = parts
    return {
        "codes": int(new_lq.any(0).sum()),
        "dictionary": len(items),
        "of a picture": float(new_lq.sum(1).mean()),
        "also in HQ": float((new_lq * new_hq).sum() / new_lq.sum()),
        "removed": {
            "a constant": removed(lq_sets[:, :0], error, new_lq[:, :0], new_error),
            "the LQ picture's codes": removed(lq_sets, error, new_lq, new_error),
            "the HQ picture's codes": removed(hq_sets, error, new_hq, new_error),
        },
    }


def report(result: dict[str, Any]) -> str:
    probed = result["probe"]
    shown = [(name, f"{adds:.1%}", f"{own:.1%}") for name, (adds, own) in result["shares"].items()]
    added = [dict(zip(("cross-attention", "adds", "own"), row, strict=True)) for row in shown]
    return "\n\n".join(
        [
            f"# What prompts do in the bundle `{result['model']}`",
            f"{result['date']}; {result['cpu']}. {result['pictures']} held-out faces.",
            f"Codes in use: {probed['codes']} of {probed['dictionary']}; {probed['of a picture']:.1f} in each picture, "
            f"{probed['also in HQ']:.0%} of them also found in its HQ picture by the same embedder.",
            "## What a wrong prompt costs",
            record.table([{"prompt": name, "PSNR, dB": f"{cost:+.4f}"} for name, cost in result["costs"].items()]),
            f"## What the cross-attention adds, {SHOWN} faces",
            "Deviations, as shares of the hidden states'; own: what is the picture's own part of it.",
            record.table(added),
            "## What the codes could tell",
            f"Share of the squared error of the restored faces that a linear map takes away, learnt from "
            f"{result['learned from']} faces of the training.",
            record.table([{"from": name, "removed": f"{share:.2%}"} for name, share in probed["removed"].items()]),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a bundle's folder, or the name of one that ships")
    parser.add_argument("--data", required=True, help="the pair dataset that it was trained on")
    parser.add_argument("--test", help="a dataset whose split test has the held-out faces; else that of --data")
    parser.add_argument("--count", type=int, default=256, help="held-out faces")
    parser.add_argument("--learn", type=int, default=6000, help="pairs of the training that the linear maps learn from")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of prompts.json and prompts.md")
    options = parser.parse_args()
    try:
        result = measure(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    record.write("prompts", result, report(result), options.out)
    print(report(result))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from osdface.restorer import Restorer

    generator = Restorer.load(options.model).generator
    if generator.embedder.kind != "vre":
        raise UserError(
            f"{options.model}: has prompts of kind '{generator.embedder.kind}', and this looks at the VRE's"
        )
    test = quality.held_out(options.test or options.data, options.data, options.count)
    learn = baseline.read(options.data, "train")
    rows = np.random.default_rng(0).permutation(len(learn.keys))[: options.learn]
    learn = baseline.Pairs([learn.keys[row] for row in rows], learn.lq[rows], learn.hq[rows])
    images = tensor(test.lq)
    return {
        **record.machine(["torch", "diffusers", "numpy"]),
        "model": Path(options.model).name,
        "pictures": len(test.keys),
        "learned from": len(rows),
        "costs": costs(generator, images, test.hq),
        "shares": shares(generator, images[:SHOWN]),
        "probe": probe(generator, learn, test),
    }


if __name__ == "__main__":
    sys.exit(main())
