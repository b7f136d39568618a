"""A restorer on disk: what training writes, the registry stores and the endpoint loads.

BUNDLE/
  config.json                        preset, base, provenance, and the sha256 of every other file; written last
  pytorch_lora_weights.safetensors   diffusers' LoRA format: loads in any diffusers pipeline
  vre.safetensors                    LQ encoder and dictionary
  prompt_adapter.safetensors         code vectors -> UNet prompt; none where prompts are paired codes
  base/                              the base model, where it is small enough to travel
"""

# What handles torch is imported where it is used: naming and verifying a bundle takes no seconds of diffusers.
import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from osdface import presets, tensors
from osdface.config import Strict
from osdface.errors import UserError
from osdface.files import aside, replace_folder, sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from osdface.generator import OneStepGenerator

FORMAT_VERSION = 1
LORA, VRE, ADAPTER = "pytorch_lora_weights.safetensors", "vre.safetensors", "prompt_adapter.safetensors"
EMBED_BASE_BELOW = 64 * 2**20  # bytes


class BaseReference(Strict):
    """Where the base model is (`base` = inside the bundle) and its digest."""

    path: str
    sha256: str


class Provenance(Strict):
    """What made the weights: MLflow run ids by stage, the pair dataset's digest, the code's git revision.

    imported: sha256 of the published checkpoints, by file name, where the weights come from those.
    """

    runs: dict[str, str] = {}
    dataset_digest: str | None = None
    git_revision: str | None = None
    imported: dict[str, str] = {}


class BundleConfig(Strict):
    """config.json of a bundle. vre_input, prompts, lora: where absent (older bundles), the preset's."""

    format_version: int = FORMAT_VERSION
    preset: str
    seed: int
    base: BaseReference
    provenance: Provenance = Provenance()
    vre_input: presets.VREInput | None = None
    prompts: presets.PromptKind | None = None
    lora: presets.LoRAShape | None = None
    files: dict[str, str] = {}

    def architecture(self) -> presets.Preset:
        """The preset with what this bundle has otherwise."""
        preset = presets.preset(self.preset)
        vre = {"input": self.vre_input or preset.vre.input, "kind": self.prompts or preset.vre.kind}
        return preset.model_copy(update={"vre": preset.vre.model_copy(update=vre), "lora": self.lora or preset.lora})

    def weights(self) -> set[str]:
        """The files of weights that the bundle must have."""
        return {LORA, VRE} if self.prompts == "paired" else {LORA, VRE, ADAPTER}


class Parts(NamedTuple):
    """The weights of a bundle, by name: peft's LoRA tensors of the UNet, the embedder's, the adapter's (or none)."""

    lora: "dict[str, Tensor]"
    vre: "dict[str, Tensor]"
    adapter: "dict[str, Tensor]"


def save(
    generator: "OneStepGenerator", folder: Path, *, preset: str, seed: int, base: Path, provenance: Provenance
) -> BundleConfig:
    """Write a generator as a bundle; `base` is the folder that it started from."""
    from peft.utils import get_peft_model_state_dict

    peft = generator.unet.peft_config["default"]
    config = BundleConfig(
        preset=preset,
        seed=seed,
        base=reference(base),
        provenance=provenance,
        vre_input=generator.embedder.shape.input,
        prompts=generator.embedder.shape.kind,
        lora=presets.LoRAShape(rank=peft.r, alpha=peft.lora_alpha, targets=sorted(peft.target_modules)),
    )
    lora = get_peft_model_state_dict(generator.unet)
    return write(Parts(lora, generator.embedder.state_dict(), generator.adapter.state_dict()), folder, config, base)


def write(parts: Parts, folder: Path, config: BundleConfig, base: Path) -> BundleConfig:
    """Write a bundle aside and rename it to `folder`; the configuration gets its list of files, and is returned."""
    from safetensors.torch import save_file

    temporary = aside(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_lora(parts.lora, temporary, config.architecture().lora)
    save_file(_contiguous(parts.vre), temporary / VRE)
    if parts.adapter:
        save_file(_contiguous(parts.adapter), temporary / ADAPTER)
    if config.base.path == "base":
        shutil.copytree(base, temporary / "base")
    files = {str(path.relative_to(temporary)): sha256(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
    config = config.model_copy(update={"files": files})
    (temporary / "config.json").write_text(config.model_dump_json(indent=2))
    replace_folder(temporary, folder)
    return config


def write_lora(lora: "dict[str, Tensor]", folder: Path, shape: presets.LoRAShape) -> None:
    """Write a UNet's LoRA, by peft's names, as diffusers does: `folder`/pytorch_lora_weights.safetensors."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    from osdface.generator import lora_config

    metadata = lora_config(shape).to_dict() | {"target_modules": sorted(shape.targets)}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, _contiguous(lora), unet_lora_adapter_metadata=metadata)


def read_lora(path: Path) -> "dict[str, Tensor]":
    """The tensors of such a file, by peft's names."""
    return {name.removeprefix("unet."): tensor for name, tensor in tensors.read_safetensors(path).items()}


def reference(base: Path) -> BaseReference:
    """A small base travels inside the bundle, a large one stays where it is."""
    from osdface.base import base_digest

    small = sum(path.stat().st_size for path in base.rglob("*.safetensors")) < EMBED_BASE_BELOW
    return BaseReference(path="base" if small else str(base.absolute()), sha256=base_digest(base))


def _contiguous(parts: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}


def resolve(ref: str | Path) -> Path:
    """The bundle folder that a model reference names: a folder, or what an `osdface.resolvers` entry point knows.

    Raises UserError saying what was looked for.
    """
    if Path(ref).is_dir():
        return Path(ref)
    for entry in entry_points(group="osdface.resolvers"):
        try:
            found = entry.load()(str(ref))
        except ModuleNotFoundError:
            continue  # this resolver's extra is not installed
        if found is not None:
            return Path(found)
    raise UserError(
        f"model '{ref}' not found: give a bundle folder, models:/NAME/VERSION, models:/NAME@ALIAS or an alias "
        "(registry references need `pip install osdface[train]`)"
    )


def read_config(folder: Path) -> BundleConfig:
    """config.json of a bundle. Raises UserError if there is none, or it is of another format version."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a model bundle (no config.json); give a folder made by `osdface train osd`")
    try:
        data = json.loads(path.read_text())
        if data.get("format_version") != FORMAT_VERSION:
            version = data.get("format_version")
            raise UserError(f"{path}: bundle format {version}; this program reads format {FORMAT_VERSION}")
        return BundleConfig.model_validate(data)
    except (json.JSONDecodeError, AttributeError, ValidationError) as error:
        raise UserError(f"{path}: not a bundle's configuration ({str(error).splitlines()[0]})") from None


def verify(folder: Path) -> BundleConfig:
    """Check every file of a bundle against its sha256. Raises UserError naming the first that is missing or differs."""
    config = read_config(folder)
    if missing := config.weights() - set(config.files):
        raise UserError(f"{folder}: config.json lists no {', '.join(sorted(missing))}; the bundle is incomplete")
    for name, expected in config.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the bundle; fetch or export it again")
        if sha256(path) != expected:
            raise UserError(f"{path}: differs from what the bundle's config.json lists; fetch or export it again")
    return config


def digest(folder: Path) -> str:
    """The bundle's digest: sha256 of config.json, which lists the sha256 of all its files."""
    read_config(folder)
    return sha256(Path(folder) / "config.json")


def base_folder(folder: Path, config: BundleConfig) -> Path:
    """The base model of a bundle. Raises UserError if it lies outside the bundle and is gone."""
    inside = config.base.path == "base"
    path = Path(folder) / "base" if inside else Path(config.base.path)
    if not path.is_dir():
        raise UserError(f"{folder}: its base model (sha256 {config.base.sha256}) is not at {path}; put it back there")
    return path


def checked(folder: Path, check: bool = True) -> tuple[BundleConfig, Path]:
    """The configuration and the base folder of a bundle, with all their digests compared unless `check=False`.

    Raises UserError for a missing or changed file, or a base of another digest.
    """
    from osdface.base import base_digest

    config = verify(folder) if check else read_config(folder)
    base = base_folder(folder, config)
    if check and base_digest(base) != config.base.sha256:
        raise UserError(f"{base}: not the base model this bundle was trained on (sha256 {config.base.sha256} expected)")
    return config, base


def load(folder: Path, *, trained: bool = True, check: bool = True) -> tuple[BundleConfig, "OneStepGenerator"]:
    """Read a bundle; with `trained=False`, the same generator as it was before its first training step.

    Raises UserError for a missing or changed file (`check=False` skips the digests), or a base of another digest.
    """
    from osdface.base import load_base
    from osdface.generator import OneStepGenerator
    from osdface.vre import VisualEmbedder

    folder = Path(folder)
    config, base = checked(folder, check)
    shape = config.architecture()
    embedder = VisualEmbedder(shape.vre)
    _fill(embedder, folder / VRE)
    generator = OneStepGenerator.from_parts(shape, load_base(base), embedder, config.seed)
    if trained:
        if ADAPTER in config.weights():
            _fill(generator.adapter, folder / ADAPTER)
        _load_lora(generator, folder / LORA)
    return config, generator.eval().requires_grad_(False)


def _fill(module: "nn.Module", path: Path) -> None:
    found = tensors.read_safetensors(path)
    tensors.check(path, tensors.shapes(module.state_dict()), found)
    module.load_state_dict(found)


def _load_lora(generator: "OneStepGenerator", path: Path) -> None:
    """Fill the UNet's adapters, every one of them: a tensor left out would silently be no adapter."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    found = read_lora(path)
    tensors.check(path, tensors.shapes(get_peft_model_state_dict(generator.unet)), found)
    set_peft_model_state_dict(generator.unet, found)
