import ast
from pathlib import Path

import pytest
import torch

from osdface import presets
from osdface.autoencoder import VQAutoencoder
from osdface.prompts.vre import PromptAdapter, VisualEmbedder

DATA = Path(__file__).parents[1] / "data"


def published(name: str) -> dict[str, tuple[int, ...]]:
    lines = (DATA / name).read_text().splitlines()
    return {key: ast.literal_eval(shape) for key, shape in (line.split(" ", 1) for line in lines)}


def test_tensor_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        tensors = VQAutoencoder.from_preset("sd21").state_dict()
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    post = {"post_quant_conv.weight": (512, 512, 1, 1), "post_quant_conv.bias": (512,)}
    assert ours == published("vre_keys.txt") | published("vre_dec_keys.txt") | post


def test_embedder_has_the_published_inference_tensors():
    with torch.device("meta"):
        embedder = VisualEmbedder(presets.preset("sd21").vre)
    assert {k: tuple(v.shape) for k, v in embedder.state_dict().items()} == published("vre_keys.txt")
    assert sum(p.numel() for p in embedder.parameters()) == 29_172_416


def test_adapter_has_the_published_tensors():
    shapes = {name: tuple(t.shape) for name, t in PromptAdapter(512, 256, 1024).state_dict().items()}
    assert shapes == {
        "conv1.weight": (256, 512, 1),
        "conv1.bias": (256,),
        "conv2.weight": (1024, 256, 1),
        "conv2.bias": (1024,),
    }


def test_shapes_from_picture_to_picture():
    autoencoder = VQAutoencoder.from_preset("tiny")
    out = autoencoder(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert out.image.shape == (2, 3, 32, 32)
    assert out.features.shape == (2, 64, 8, 8)
    assert out.indices.shape == (2, 64)


def test_embedder_keeps_the_autoencoders_features():
    autoencoder = VQAutoencoder.from_preset("tiny").eval()
    embedder = VisualEmbedder.from_autoencoder(autoencoder).eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    count = embedder.shape.prompts
    torch.testing.assert_close(embedder(x), autoencoder.quantize.nearest_distinct(autoencoder.features(x), count))


def test_adapter_is_two_convolutions_with_silu_after_each():
    adapter, codes = PromptAdapter(8, 4, 6), torch.randn(2, 5, 8)
    hidden = torch.nn.functional.silu(codes @ adapter.conv1.weight[..., 0].T + adapter.conv1.bias)
    expected = torch.nn.functional.silu(hidden @ adapter.conv2.weight[..., 0].T + adapter.conv2.bias)
    torch.testing.assert_close(adapter(codes), expected)


@pytest.mark.parametrize("name", presets.names())
def test_presets_have_consistent_shapes(name):
    preset = presets.preset(name)
    tokens = (preset.vre.size >> (len(preset.vre.multipliers) - 1)) ** 2
    assert preset.vre.prompts <= min(tokens, preset.vre.codes)
    assert len(preset.unet["down_block_types"]) == len(preset.unet["block_out_channels"])
