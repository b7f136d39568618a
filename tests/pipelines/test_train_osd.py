"""Stage 2: every loss on with real weights, its options, what it trains, what it starts from, what it refuses."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osdface import bundle, presets
from osdface.base import new_base, save_base
from osdface.errors import MissingWeights, UsageError, UserError
from osdface.prompts import PromptChoice
from pipelines.train_osd import OSDConfig, OSDStage
from pipelines.train_vre import VREConfig, VREStage
from pipelines.training import Step

CPU = torch.device("cpu")
NAMES = {"mse", "ea_dists.dlib", "identity.dlib", "adversarial", "discriminator", "accuracy_real", "accuracy_fake"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Path, Path]:
    """A base and a stage-1 output, untrained."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    save_base(new_base(presets.preset("tiny")), folder / "base")
    nothing = {"steps": 0}
    settings = {"preset": "tiny", "data": folder, "out": folder, "batch_size": 2, "optimizer": {"lr": 1e-3}}
    phases = {"hq": nothing, "lq": nothing, "association": nothing, "losses": {"perceptual": 0}}
    VREStage(VREConfig.model_validate(settings | phases), CPU, {}).save(folder / "vre")
    return folder / "base", folder / "vre"


def config(parts: tuple[Path, Path], **changes) -> OSDConfig:
    adam = {"name": "adamw", "lr": 1e-3}
    settings = {
        "preset": "tiny", "data": "pairs", "out": "out", "base": parts[0], "vre": parts[1], "batch_size": 2,
        "duration": {"steps": 3}, "generator": adam, "discriminator": adam, "perceptual": {"features": "dlib"},
        "identity_network": "dlib",
    }  # fmt: skip
    return OSDConfig.model_validate({k: v for k, v in (settings | changes).items() if v is not None})


class Plain:
    """What a step needs of an engine, in plain PyTorch."""

    def __init__(self, module: nn.Module, how):
        self.module = module
        self.optimizer = how.build(module)

    def __call__(self, *inputs, **named):
        return self.module(*inputs, **named)

    def backward(self, loss):
        self.optimizer.zero_grad()
        loss.backward()

    def step(self):
        self.optimizer.step()


def test_lora_plus_gives_b_and_biases_a_rate_of_their_own(parts):
    made = OSDStage(config(parts, generator={"name": "adamw", "lr": 1e-3, "lora_ratio": 16}), CPU, {})
    optimizer = made.config.generator.build(made.generator)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in made.generator.named_parameters() if p.requires_grad}
    assert rates.keys() == {id(p) for p in named.values()}
    fast = {name for name, p in named.items() if rates[id(p)] == pytest.approx(16e-3)}
    assert fast == {name for name in named if "lora_B" in name or name.endswith("bias")}
    assert {rates[id(named[name])] for name in named.keys() - fast} == {1e-3}


def pictures(seed: int = 0) -> dict:
    noise = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(2, 3, 8, 8, generator=noise), (64, 64), mode="bicubic").clamp(0, 1) * 2 - 1
    return {"key": ["a", "b"], "hq": smooth, "lq": F.avg_pool2d(smooth, 5, 1, 2)}


def trained(stage: OSDStage, steps: int = 1, batch: dict | None = None) -> list[dict[str, float]]:
    (phase,) = stage.phases()
    engines = {name: Plain(module, how) for name, (module, how) in phase.engines.items()}
    made = []
    for index in range(steps):
        step = Step(index, batch or pictures(index), engines, torch.Generator().manual_seed(index))
        made.append({name: float(value) for name, value in phase.step(step).items()})
    return made


def test_every_loss_is_on_with_real_weights_and_says_whose(parts):
    (metrics,) = trained(OSDStage(config(parts), CPU, {}))
    assert set(metrics) == NAMES
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["ea_dists.dlib"] > 0
    assert metrics["identity.dlib"] > 0


def test_only_lora_adapter_and_head_change_and_every_one_of_them(parts):
    stage = OSDStage(config(parts), CPU, {})
    modules = nn.ModuleDict({"generator": stage.generator, "discriminator": stage.discriminator})
    before = copy.deepcopy(modules.state_dict())
    trained(stage, 2)  # LoRA's A has no gradient while B is zero
    changed = {name for name, tensor in modules.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all("lora_" in name or "adapter." in name or "discriminator.head" in name for name in changed)
    still = set(stage.state()) - changed
    # Of prompts: an untrained dictionary is nearly zero, and so are the keys and values made of it.
    assert all("attn2" in name or "adapter" in name for name in still), sorted(still)[:4]


@pytest.mark.parametrize("kind", ["vre", "vre_cat", "learned", "empty"])
def test_every_kind_of_prompts_trains_and_comes_back_from_its_bundle(parts, tmp_path, kind):
    visual = kind.startswith("vre")
    if kind == "vre_cat" and 2 * presets.preset("tiny").vre.width != 64:
        with pytest.raises(UserError, match=r"128 wide, the base's UNet takes 64"):
            OSDStage(config(parts, prompt={"kind": kind}), CPU, {})
        return
    stage = OSDStage(config(parts, prompt={"kind": kind}, vre=parts[1] if visual else None), CPU, {})
    trained(stage, 2)
    stage.save(tmp_path / "model")
    _, loaded = bundle.load(tmp_path / "model")
    lq = pictures()["lq"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(lq).image, stage.generator.eval()(lq).image, atol=1e-5, rtol=0)


def test_without_an_adversary_there_is_no_discriminator_to_train(parts):
    stage = OSDStage(config(parts, losses={"perceptual": 0, "identity": 0, "adversarial": 0}), CPU, {})
    (metrics,) = trained(stage)
    assert set(metrics) == {"mse"}


def test_the_discriminator_begins_when_it_is_told(parts):
    stage = OSDStage(config(parts, losses={"perceptual": 0, "identity": 0, "adversarial_start": 2}), CPU, {})
    before = copy.deepcopy(stage.discriminator.state_dict())
    (phase,) = stage.phases()
    engines = {name: Plain(module, how) for name, (module, how) in phase.engines.items()}
    seen = []
    for index in range(3):
        names = set(phase.step(Step(index, pictures(index), engines, torch.Generator().manual_seed(index))))
        same = all(torch.equal(tensor, before[name]) for name, tensor in stage.discriminator.state_dict().items())
        seen.append(("adversarial" in names, "discriminator" in names, same))
    assert seen == [(False, False, True), (False, False, True), (True, True, False)]


def test_other_losses_may_look_at_a_share_of_the_pictures(parts):
    stage, seen = OSDStage(config(parts, losses={"share": 0.1}), CPU, {}), []
    stage.discriminator.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    stage.perceptual.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    batch = pictures()
    with torch.no_grad():
        mse = F.mse_loss(stage.generator(batch["lq"]).image, batch["hq"])
    (metrics,) = trained(OSDStage(config(parts, losses={"share": 0.1}, latent="mode"), CPU, {}), batch=batch)
    assert metrics["mse"] == pytest.approx(float(mse), rel=1e-4)
    trained(stage, batch=batch)
    assert seen == [1, 1, 2]  # perceptual, adversarial, and the discriminator's real and fake ones


def test_options_change_what_is_trained(parts):
    plain = trained(OSDStage(config(parts), CPU, {}), 2)[-1]
    for changes in (
        {"adversarial": {"loss": "hinge"}},
        {"losses": {"share": 0.5}},
        {"adversarial": {"pooling": "global"}},
        {"adversarial": {"context": "none"}},
        {"adversarial": {"timesteps": [0, 20]}},
        {"perceptual": {"kind": "dists", "features": "dlib"}},
        {"perceptual": {"kind": "ea_lpips", "features": "dlib"}},
        {"perceptual": {"grey": "luma", "features": "dlib"}},
        {"latent": "mode"},
    ):
        other = trained(OSDStage(config(parts, **changes), CPU, {}), 2)[-1]
        assert other != pytest.approx(plain, rel=1e-6), changes


def test_recomputed_activations_give_the_same_weights(parts):
    states = []
    for again in (False, True):
        stage = OSDStage(config(parts, activation_checkpointing=again), CPU, {})
        trained(stage, 2)
        states.append(stage.state())
    for name, tensor in states[0].items():
        assert (tensor - states[1][name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("latent", ["mode", "sample"])
def test_latents_and_codes_that_are_known_change_nothing(parts, latent):
    stage = OSDStage(config(parts, latent=latent), CPU, {})
    batch = pictures()
    with torch.no_grad():
        posterior = stage.generator.vae.encode(batch["lq"]).latent_dist
        scale = stage.generator.vae.config.scaling_factor
        known = {
            "lq_mean": posterior.mean * scale,
            "lq_std": posterior.std * scale,
            "hq_latent": stage.generator.encode(batch["hq"]),
            "codes": stage.generator.codes(batch["lq"]),
        }
    computed = trained(stage, 1, batch)
    assert trained(OSDStage(config(parts, latent=latent), CPU, {}), 1, batch | known) == [
        pytest.approx(metrics, abs=1e-6) for metrics in computed
    ]


def test_it_goes_on_from_a_bundle(parts, tmp_path):
    first = OSDStage(config(parts), CPU, {})
    trained(first, 2)
    first.save(tmp_path / "first")
    start = {"base": None, "vre": None, "init": tmp_path / "first"}
    second = OSDStage(config(parts, **start), CPU, {})
    for name, tensor in first.generator.state_dict().items():
        assert torch.equal(tensor, second.generator.state_dict()[name]), name
    config(parts, **start).check()
    trained(second, 1)
    second.save(tmp_path / "second")
    assert bundle.load(tmp_path / "second")[0].seed == bundle.read_config(tmp_path / "first").seed
    with pytest.raises(UserError, match=r"prompts of kind 'vre'; set\s+preset and prompt.kind"):
        OSDStage(config(parts, **start, prompt={"kind": "learned"}), CPU, {})


def test_validation_and_drawings(parts):
    stage = OSDStage(config(parts), CPU, {})
    measured = stage.validate(pictures())
    assert set(measured) == {"mse", "ea_dists.dlib", "identity.dlib", "psnr"}
    assert stage.drawings(pictures())["sheet"].dtype.name == "uint8"


# What is refused, before any worker starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "give --base"),
        ({"vre": None}, "need a trained VRE: give --vre"),
        ({"prompt": {"kind": "learned"}}, "look at no picture: leave out --vre"),
        ({"init": "bundle"}, "leave out --base and --vre"),
    ],
)
def test_it_must_start_from_one_thing(parts, changes, message):
    with pytest.raises(UsageError, match=message):
        config(parts, **changes).check()


def test_what_it_reads_is_looked_at_first(parts, tmp_path, monkeypatch):
    config(parts).check()
    with pytest.raises(UserError, match="not a base model"):
        config(parts, base=tmp_path).check()
    with pytest.raises(UserError, match=r"no lq\.safetensors"):
        config(parts, vre=tmp_path).check()
    with pytest.raises(UserError, match=r"config\.json"):
        config(parts, base=None, vre=None, init=tmp_path).check()
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    with pytest.raises(MissingWeights, match="vgg16"):
        config(parts, perceptual={"features": "vgg16"}).check()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dlib_face_recognition_resnet_model_v1.dat").write_bytes(b"another network")
    with pytest.raises(UserError, match="not dlib's face recognition network"):
        config(parts).check()


def test_auto_is_settled_by_what_is_here(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path))
    settled = config(parts, perceptual={}, identity_network="auto").settled()
    assert (settled.perceptual.features, settled.identity_network) == ("dlib", "dlib")
    assert json.loads(settled.model_dump_json())["perceptual"]["kind"] == "ea_dists"
    assert PromptChoice().kind == "vre"


def test_a_training_from_a_cache_ends_with_the_same_weights(parts, pairs, home):
    from safetensors.torch import load_file

    from pipelines.launch import launch

    tensors, sgd = [], {"name": "sgd", "lr": 0.1}  # Adam divides by gradients that are nearly nothing
    for cache in ("none", "latents"):
        settings = config(
            parts, data=pairs, out=home / cache, cache=cache, workers=0, seed=3, batch_size=4, latent="sample",
            losses={"perceptual": 0, "identity": 0}, generator=sgd, discriminator=sgd,
        )  # fmt: skip
        out = launch("osd", settings, {}, resume="never").out
        tensors.append(load_file(out / bundle.LORA) | load_file(out / bundle.ADAPTER))
    assert any((home / "latents").iterdir())
    for name, tensor in tensors[0].items():
        assert (tensor - tensors[1][name]).abs().max() < 1e-6, name
