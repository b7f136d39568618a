"""The kinds of prompts: what each sees, keeps and trains, and that a bundle of every kind loads wherever bundles do."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from osdface import bundle, folding, lean, presets, profile
from osdface.autoencoder import VQAutoencoder
from osdface.base import new_base, save_base
from osdface.config import Strict, parse
from osdface.errors import UsageError, UserError
from osdface.export import export
from osdface.generator import OneStepGenerator
from osdface.prompts import KINDS, PromptChoice, clip, new_embedder, read_embedder
from osdface.restorer import Restorer

TINY = presets.preset("tiny")
FILES = {
    "vre": {bundle.VRE, bundle.ADAPTER},
    "vre_cat": {bundle.VRE},
    "learned": {bundle.ADAPTER},
    "empty": set(),
    "clip": {"prompt_text.safetensors"},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A folder with a small text encoder and its tokenizer, of diffusers' layout."""
    folder = tmp_path_factory.mktemp("texts")
    letters = [*"abcdefghijklmnopqrstuvwxyz,"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "fa", "<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\nf a\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def shape_of(kind: presets.PromptKind) -> presets.Preset:
    unet = TINY.unet | ({"cross_attention_dim": 2 * TINY.vre.width} if kind == "vre_cat" else {})
    return TINY.model_copy(update={"prompt": kind, "unet": unet})


def make(kind: presets.PromptKind, texts: Path) -> OneStepGenerator:
    """A generator whose trained parts are not at their start."""
    torch.manual_seed(0)
    shape = shape_of(kind)
    base = new_base(shape)
    choice = PromptChoice(kind=kind, folder=texts if kind == "clip" else None)
    width = base.unet.config.cross_attention_dim
    embedder = read_embedder(choice, shape.vre, width, VQAutoencoder(shape.vre))
    made = OneStepGenerator.from_parts(shape, base, embedder, seed=5).eval()
    for name, parameter in made.named_parameters():
        if "lora_B" in name or name.startswith("adapter"):
            torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, texts) -> OneStepGenerator:
    return make(request.param, texts)


def test_codes_may_be_kept_and_only_the_adapter_is_trained(made):
    lq = torch.rand(2, 3, 64, 64) * 2 - 1
    codes, z = made.codes(lq), made.encode(lq)
    assert not codes.requires_grad
    whole = made(lq)
    assert torch.equal(made(lq, codes=codes, z=z).image, whole.image)
    assert whole.prompt.shape == (2, TINY.vre.prompts, made.unet.config.cross_attention_dim)
    sees = not torch.equal(whole.prompt[0], whole.prompt[1])
    assert sees == (made.embedder.kind in presets.VISUAL_PROMPTS)
    names = {name for name, parameter in made.named_parameters() if parameter.requires_grad and "lora_" not in name}
    learns = {"vre": 4, "learned": 1}
    assert len(names) == learns.get(made.embedder.kind, 0)
    assert all(name.startswith("adapter.") for name in names)
    whole.image.square().mean().backward()
    assert all(made.get_parameter(name).grad.abs().max() > 0 for name in names)
    made.zero_grad()


def test_a_bundle_of_every_kind_loads_everywhere(made, tmp_path):
    """Restorer, folded, lean, diffusers' layout, single tensors; the published layout where it has such prompts."""
    kind = made.embedder.kind
    torch.manual_seed(0)
    save_base(new_base(shape_of(kind)), tmp_path / "base")  # as `make` has it
    bundle.save(made, tmp_path / "model", preset="tiny", seed=5, base=tmp_path / "base", provenance=bundle.Provenance())
    config = bundle.verify(tmp_path / "model")
    assert config.prompt == kind
    assert {name for name in config.files if "/" not in name} == {bundle.LORA} | FILES[kind]
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = made(images * 2 - 1)
        for loaded in (bundle.load(tmp_path / "model")[1], lean.load(tmp_path / "model")):
            torch.testing.assert_close(loaded(images * 2 - 1).image, expected.image, atol=1e-4, rtol=1e-4)
        fresh = bundle.load(tmp_path / "model", trained=False)[1]
        assert torch.equal(fresh.codes(images), made.codes(images)), "what is frozen is there before training too"
        folded = folding.fold(bundle.load(tmp_path / "model")[1])
        torch.testing.assert_close(folded(images * 2 - 1).prompt, expected.prompt)
    restorer = Restorer.load(tmp_path / "model")
    assert restorer.restore(images).shape == images.shape
    note = export(tmp_path / "model", "diffusers", tmp_path / "diffusers")[0]
    export(tmp_path / "model", "safetensors", tmp_path / "tensors")
    if kind in presets.VISUAL_PROMPTS:
        assert len(restorer.codes(images)) == 2
        export(tmp_path / "model", "official", tmp_path / "official")
        return
    with pytest.raises(UserError, match=f"has no codes: its prompts, of kind '{kind}'"):
        restorer.codes(images)
    with pytest.raises(UserError, match=f"prompts of kind '{kind}', which the published program cannot make"):
        export(tmp_path / "model", "official", tmp_path / "official")
    if kind == "empty":
        assert note.endswith("prompt_embeds are zeros")
        assert not expected.prompt.any()
        return
    (rows,) = load_file(tmp_path / "diffusers" / note.split()[-1]).values()
    assert torch.equal(rows, expected.prompt[0])


def test_every_kind_is_counted():
    for kind in KINDS:
        counted = profile.count(shape_of(kind))
        trained = {"vre": 64 * 64 + 64 + 64 * 64 + 64, "learned": 24 * 64}
        assert counted["parameters"]["adapter"] == trained.get(kind, 0)


def test_a_learned_prompt_starts_small_and_from_the_seed():
    shape = shape_of("learned")
    one, same, other = (
        OneStepGenerator.from_parts(shape, new_base(shape), seed=seed).adapter.tokens for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_text_is_transformers_own(texts):
    tokenizer = CLIPTokenizer.from_pretrained(texts / "tokenizer")
    tokens = tokenizer(clip.SENTENCE, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    ids = tokens.input_ids[0]
    assert ids[0] == tokenizer.bos_token_id
    assert len(set(ids.tolist())) > 5
    encoder = CLIPTextModel.from_pretrained(texts / "text_encoder").eval()
    expected = encoder(tokens.input_ids).last_hidden_state[0]
    torch.testing.assert_close(clip.read(texts, TINY.vre, 64).features, expected)


def test_a_text_encoder_that_is_not_there_or_not_whole_or_not_the_bases_is_refused(texts, tmp_path):
    def refused(folder: Path, match: str, width: int = 64) -> None:
        with pytest.raises(UserError, match=match) as caught:
            clip.read(folder, TINY.vre, width)
        assert "\n" not in str(caught.value)

    refused(tmp_path, "has no text_encoder/config.json and no tokenizer")
    refused(texts, "features are 64 wide, the base's UNet takes 1024", width=1024)
    other = tmp_path / "other"
    for file in (path for path in texts.rglob("*") if path.is_file()):
        (other / file.relative_to(texts)).parent.mkdir(parents=True, exist_ok=True)
        (other / file.relative_to(texts)).write_bytes(file.read_bytes())
    weights = other / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in sorted(tensors) if "layers.1" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    refused(other, f"cannot be used: .*{lost} is missing")
    weights.write_bytes(b"no tensors")
    refused(other, "its text encoder cannot be used")
    weights.unlink()
    refused(other, "its text encoder cannot be used")


def test_a_tokenizer_of_another_encoder_is_refused(texts, tmp_path):
    (tmp_path / "text_encoder").symlink_to(texts / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match=r"cannot be used: it knows \d+ tokens, its tokenizer \d"):
        clip.read(tmp_path, TINY.vre, 64)


def test_without_transformers_a_text_is_refused(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        clip.read(texts, TINY.vre, 64)


def test_a_frozen_part_of_another_kind_or_none_where_one_is_needed_is_refused():
    base = new_base(TINY)
    with pytest.raises(UserError, match="need a trained VRE"):
        read_embedder(PromptChoice(), TINY.vre, 64)
    for kind in ("vre", "clip"):
        with pytest.raises(UserError, match=f"kind '{kind}' need a trained embedder; none is given"):
            OneStepGenerator.from_parts(shape_of(kind), base)
    with pytest.raises(UserError, match="for prompts of kind 'learned', not 'vre'"):
        OneStepGenerator.from_parts(TINY, base, new_embedder("learned", TINY.vre, 64))


class Training(Strict):
    prompt: PromptChoice = PromptChoice()


@pytest.mark.parametrize("given", [{"kind": "clip"}, {"kind": "learned", "folder": "texts"}, {"folder": "texts"}])
def test_a_folder_belongs_to_a_text_and_to_nothing_else(given):
    assert parse(Training, {"prompt": {"kind": "clip", "folder": "texts"}}, "x").prompt.folder == Path("texts")
    with pytest.raises(UsageError, match="x: prompt: folder is for kind 'clip'"):
        parse(Training, {"prompt": given}, "x")


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UsageError, match="x: prompt.kind: Input should be 'vre', .* or 'clip'"):
        parse(Training, {"prompt": {"kind": "dape"}}, "x")
