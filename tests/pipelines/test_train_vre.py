"""Stage 1: eq. 7 to 11 as a step takes them, ranks, the dictionary's health, what it starts from and writes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from osdface import presets
from osdface.config import parse
from osdface.errors import UsageError, UserError
from osdface.losses.association import association_loss
from pipelines.dictionary import CodeUse
from pipelines.train_vre import VREConfig, VREStage, load_vre, replace_rows
from tests.vre_ranks import CPU, STEPS, Plain, configuration, on_two_ranks, steps, trained


def phase_named(stage: VREStage, name: str):
    return next(phase for phase in stage.phases() if phase.name == name)


# A step


def plain_association_step(stage: VREStage, batch: dict, lr: float) -> None:
    """Eq. 8 and 11 with VQGAN's adaptive weight, then eq. 7's discriminator, written out with "log" and "codebook"."""
    total, images, made = 0, {}, {}
    for name, autoencoder in stage.autoencoders.items():
        judge, x = stage.discriminators[name], F.interpolate(batch[name], (32, 32), mode="area")
        z = autoencoder.quant_conv(autoencoder.encoder(x))
        codes = autoencoder.quantize(z).indices
        e = autoencoder.quantize.embedding(codes).transpose(1, 2).reshape_as(z)
        image = autoencoder.decoder(autoencoder.post_quant_conv(z + (e - z).detach()))[0]
        l1, gan = (image - x).abs().mean(), -F.logsigmoid(judge(image)).mean()
        last = autoencoder.decoder.conv_out.weight
        by_l1, by_gan = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (l1, gan))
        vq = ((z - e.detach()) ** 2).mean() + 0.5 * ((z.detach() - e) ** 2).mean()
        total = total + l1 + 0.8 * (by_l1 / (by_gan + 1e-4)).detach() * gan + vq
        images[name], made[name] = (x, image.detach()), z
    total = total + 0.3 * association_loss(made["hq"], made["lq"], "batch", 2.0)
    trained_there = [p for p in stage.autoencoders.parameters() if p.requires_grad]
    for parameter, gradient in zip(trained_there, torch.autograd.grad(total, trained_there), strict=True):
        parameter.data -= lr * gradient
    for name, (real, fake) in images.items():
        judge = stage.discriminators[name]
        loss = -F.logsigmoid(judge(real)).mean() - F.logsigmoid(-judge(fake)).mean()
        for parameter, gradient in zip(
            judge.parameters(), torch.autograd.grad(loss, list(judge.parameters())), strict=True
        ):
            parameter.data -= lr * gradient


def test_an_association_step_is_eq_8_and_11_with_the_options_it_was_given():
    losses = {
        "patch_loss": "log", "beta": 0.5, "beta_on": "codebook", "association": 0.3, "association_over": "batch",
        "association_scale": 2.0,
    }  # fmt: skip
    config = configuration(losses=losses)
    stage, plain = (VREStage(config, CPU, {}) for _ in range(2))
    before = {name: tensor.detach().clone() for name, tensor in stage.state().items()}
    phase = phase_named(stage, "association")
    step = next(steps())
    step.engines = {name: Plain(module, how) for name, (module, how) in phase.engines.items()}
    metrics = phase.step(step)
    plain_association_step(plain, step.batch, config.optimizer.lr)
    expected = plain.state()
    for name, tensor in stage.state().items():
        if not name.startswith("use."):
            assert (tensor - expected[name]).abs().max() < 1e-6, name
    moved = [name for name, tensor in stage.state().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.9 * len([name for name in before if "norm2" not in name])
    assert {"hq_accuracy_real", "lq_accuracy_fake", "hq_adaptive_weight", "association_hits"} <= set(metrics)


def test_the_feature_term_moves_the_picture_towards_it():
    """dlib's network: the gradient at the picture has both terms of the reconstruction."""
    stage = VREStage(configuration(losses={"perceptual": 0.5, "features": "dlib"}), CPU, {})
    target = torch.rand(1, 3, 32, 32) * 2 - 1
    out = stage.autoencoders["hq"](target)
    gradient, metrics = stage._picture_gradient(out, target, None)
    image = out.image.detach().requires_grad_()
    (F.l1_loss(image, target) + 0.5 * stage.perceptual(image, target)).backward()
    torch.testing.assert_close(gradient, image.grad)
    assert set(metrics) == {"l1", "perceptual"}


def test_the_discriminator_starts_at_each_phases_own_step():
    starts = {"hq": 2, "lq": 0, "association": STEPS}
    for phase, start in starts.items():
        _, metrics = trained(configuration(losses={"adversarial_start": starts}), phase)
        assert ["discriminator" in step for step in metrics] == [index >= start for index in range(STEPS)]
    assert configuration(losses={"adversarial_start": 7}).losses.adversarial_start.lq == 7


def test_association_may_train_lq_alone():
    config = configuration(association_trains="lq")
    before = {name: tensor.detach().clone() for name, tensor in VREStage(config, CPU, {}).state().items()}
    stage, metrics = trained(config)
    changed = {name for name, tensor in stage.state().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed} == {"lq"}
    assert float(metrics[0]["association"]) > 0
    assert any(name.startswith("autoencoders.lq.encoder") for name in changed)


def test_codes_may_be_associated_instead_of_features():
    by = {
        of: trained(configuration(losses={"association_of": of}))[1][0]["association"] for of in ("features", "codes")
    }
    assert by["features"] != by["codes"]


def test_what_depends_on_the_sharing_of_a_batch_is_named():
    assert configuration(losses={"adaptive": "none"}).undivided() == []
    config = configuration(
        patch_norm="sync_batch", dictionary={"restart": True}, losses={"association_over": "all", "adaptive": "rank"}
    )
    assert config.undivided() == ["losses.adaptive", "patch_norm", "losses.association_over", "dictionary.restart"]
    assert configuration(patch_norm="batch", losses={"adversarial": 0}).undivided() == []


def test_two_ranks_train_what_one_does_where_all_is_taken_over_ranks(tmp_path):
    over_all = {"losses": {"adaptive": "all", "association_over": "all"}, "dictionary": {"window": 1, "restart": True}}
    exact = configuration(patch_norm="sync_batch", **over_all)
    own = configuration(patch_norm="batch", losses={"adaptive": "rank", "association_over": "batch"})
    (states, metrics), (others, _) = on_two_ranks(tmp_path, [exact, own])
    for state, other in zip(states, others, strict=True):
        weights = [name for name in state if "running" not in name]  # each rank's own, and never read
        assert all(torch.equal(state[name], other[name]) for name in weights)
    alone, measured = trained(exact)
    for name, tensor in alone.state().items():
        torch.testing.assert_close(states[0][name], tensor.detach(), rtol=5e-6, atol=5e-6, msg=name)
    for two, one in zip(metrics[0], measured, strict=True):
        for name in ("hq_perplexity", "lq_codes_used", "hq_dead_codes", "hq_adaptive_weight", "association"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4), name
    assert float(measured[0]["hq_dead_codes"]) > 10  # restarted before the second step
    apart, _ = trained(own)
    assert max(float((states[1][name] - tensor).abs().max()) for name, tensor in apart.state().items()) > 1e-5


# The dictionary


def test_a_code_is_dead_after_a_window_without_use():
    use = CodeUse(4)
    for index, used in enumerate(([1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0])):
        use.observe(torch.tensor(used), new_step=True)
        use.observe(torch.tensor([0, 0, 0, 0]), new_step=False)
        assert use.dead(window=2).tolist() == [[], [2, 3], [0, 3]][index]


def test_dead_codes_become_features_of_the_steps_pictures():
    config = configuration(dictionary={"window": 2, "restart": True})
    stage = VREStage(config, CPU, {})
    phase, seen = phase_named(stage, "hq"), []
    engines = {name: Plain(module, how) for name, (module, how) in phase.engines.items()}
    for step in steps(count=3):
        before = stage.autoencoders["hq"].quantize.embedding.weight.detach().clone()
        dead = stage.use["hq"].dead(2)
        with torch.no_grad():
            features = stage.autoencoders["hq"].features(stage._images(step.batch, "hq"))
        seen.append((before, dead, features.flatten(2).transpose(1, 2).flatten(0, 1)))
        step.engines = engines if step.index < 2 else {"autoencoder": engines["autoencoder"]}
        if step.index < 2:
            phase.step(step)
        else:
            stage._restart(step, {"hq": stage._images(step.batch, "hq")})
    before, dead, features = seen[-1]
    assert 10 < len(dead) < 128
    weight = stage.autoencoders["hq"].quantize.embedding.weight.detach()
    matches = (weight[dead][:, None] == features[None]).all(-1)
    assert (matches.sum(1) == 1).all()
    assert matches.any(0).sum() == len(dead)  # different ones
    alive = torch.ones(len(weight), dtype=torch.bool)
    alive[dead] = False
    assert torch.equal(weight[alive], before[alive])
    assert not len(stage.use["hq"].dead(2))


def test_restart_is_refused_where_codes_are_partitioned():
    with pytest.raises(UsageError, match="dictionary.restart cannot change codes that zero_stage 3"):
        parse(VREConfig, configuration().model_dump() | {"dictionary": {"restart": True}, "zero_stage": 3}, "vre.yaml")


# Pictures and figures


@pytest.fixture(scope="module")
def looked_at() -> tuple[VREStage, dict]:
    stage = VREStage(configuration(), CPU, {})
    return stage, next(steps()).batch


def test_validation_measures_both_branches(looked_at):
    stage, batch = looked_at
    metrics = stage.validate(batch)
    measures = {f"{branch}_{name}" for branch in ("hq", "lq") for name in ("l1", "psnr", "perplexity")}
    assert set(metrics) == measures | {"association_hits"}
    with torch.no_grad():
        target = F.interpolate(batch["lq"], (32, 32), mode="area")
        image = stage.autoencoders["lq"](target).image.clamp(-1, 1)
    of_each = [10 * np.log10(4 / float(((a - b) ** 2).mean())) for a, b in zip(image, target, strict=True)]
    assert float(metrics["lq_psnr"]) == pytest.approx(np.mean(of_each), rel=1e-5)
    assert 0 <= float(metrics["association_hits"]) <= 1


def test_drawings_show_pictures_dictionary_association_and_attention(looked_at):
    stage, batch = looked_at
    drawn = stage.drawings(batch)
    assert set(drawn) == {"sheet", "dictionary", "association", "attention"}
    for name, image in drawn.items():
        assert image.dtype == np.uint8, name
        assert image.ndim == 3, name
        assert image.std() > 10, name
    same = {"hq": batch["hq"], "lq": batch["hq"]}
    assert not np.array_equal(stage.drawings(same)["association"], drawn["association"])


# What it starts from and writes


def test_an_output_is_read_back_with_its_input(tmp_path):
    stage = VREStage(configuration(input="twice"), CPU, {})
    stage.save(tmp_path / "vre")
    read = load_vre(tmp_path / "vre", presets.preset("tiny"))
    assert read.shape.input == "twice"
    kept = stage.autoencoders["lq"].state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in read.state_dict().items())
    again = VREStage(configuration(init=tmp_path / "vre", lq_from="hq", seed=1), CPU, {})
    assert again.shape.input == "twice"
    phases = again.phases()
    next(phases), next(phases)
    for branch in ("hq", "lq"):
        tensors = again.autoencoders[branch].state_dict()
        assert all(torch.equal(tensors[name], t) for name, t in stage.autoencoders[branch].state_dict().items())


def test_a_bundle_gives_the_lq_encoder_and_dictionary(bundle_folder):
    fresh = VREStage(configuration(), CPU, {}).autoencoders
    stage = VREStage(configuration(init=bundle_folder), CPU, {})
    given = load_file(bundle_folder / "vre.safetensors")
    lq = stage.autoencoders["lq"].state_dict()
    assert all(torch.equal(lq[name], tensor) for name, tensor in given.items())
    others = set(lq) - set(given)
    assert {name.split(".")[0] for name in others} == {"decoder", "post_quant_conv"}
    assert all(torch.equal(lq[name], fresh["lq"].state_dict()[name]) for name in others)
    assert all(torch.equal(t, fresh["hq"].state_dict()[n]) for n, t in stage.autoencoders["hq"].state_dict().items())


def test_what_cannot_be_started_from_is_named(tmp_path):
    with pytest.raises(UserError, match="empty: nothing that stage 1 can start from"):
        VREStage(configuration(init=tmp_path / "empty"), CPU, {})
    VREStage(configuration(), CPU, {}).save(tmp_path / "vre")
    with pytest.raises(UsageError, match=r"input 'twice': .*vre was trained with 'once'"):
        VREStage(configuration(init=tmp_path / "vre", input="twice"), CPU, {})
    with pytest.raises(UserError, match=r"lq.safetensors does not fit preset 'sd21'"):
        load_vre(tmp_path / "vre", presets.preset("sd21"))
    note = tmp_path / "vre" / "config.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"format_version": 2}))
    with pytest.raises(UserError, match=r"config.json: .* this program reads, format 1"):
        load_vre(tmp_path / "vre", presets.preset("tiny"))
    note.write_text(json.dumps({"preset": "tiny"}))  # the first outputs
    assert load_vre(tmp_path / "vre", presets.preset("tiny")).shape.input == "once"


def test_replaced_rows_are_the_weights_of_a_plain_engine():
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    replace_rows(weight, torch.tensor([1, 3]), torch.ones(2, 2))
    assert weight.detach().sum(1).tolist() == [0, 2, 0, 2]
