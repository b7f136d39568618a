"""A restorer on disk: what training writes, the registry stores and the endpoint loads.

BUNDLE/
  config.json                        preset, base, provenance, and the sha256 of every other file; written last
  pytorch_lora_weights.safetensors   diffusers' LoRA format: loads in any diffusers pipeline
  vre.safetensors                    LQ encoder and dictionary, where prompts look at the picture
  prompt_text.safetensors            a text's features, where prompts are those
  prompt_adapter.safetensors         what is trained of the prompts: code vectors -> UNet prompt, or the prompt itself
  base/                              the base model, where it is small enough to travel
"""

# What handles torch is imported where it is used: naming and verifying a bundle takes no seconds of diffusers.
import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import ValidationError

from osdface import presets, tensors
from osdface.config import Strict
from osdface.errors import UserError
from osdface.files import aside, replace_folder, sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from osdface.base import Base
    from osdface.generator import OneStepGenerator

FORMAT_VERSION: Final = 2
LORA, VRE, ADAPTER = "pytorch_lora_weights.safetensors", "vre.safetensors", "prompt_adapter.safetensors"
EMBEDDER: dict[presets.PromptKind, str] = {"vre": VRE, "vre_cat": VRE, "clip": "prompt_text.safetensors"}
ADAPTED: tuple[presets.PromptKind, ...] = ("vre", "learned")  # the kinds of prompts of which something is trained
SHIPPED = Path(__file__).parent / "bundles"
EMBED_BASE_BELOW = 64 * 2**20  # bytes


class BaseReference(Strict):
    """Where the base model is (a folder, a URL, or `base` = inside the bundle), and its digest."""

    path: str
    sha256: str


class Provenance(Strict):
    """What made the weights: MLflow run ids by stage, the pair dataset's digest, the code's git revision.

    imported: sha256 of the published checkpoints, by file name, where the weights come from those. init: digest of the
    bundle that training started from, where it did not start afresh.
    """

    runs: dict[str, str] = {}
    dataset_digest: str | None = None
    git_revision: str | None = None
    imported: dict[str, str] = {}
    init: str | None = None


class BundleConfig(Strict):
    """config.json of a bundle. vre_input, lora: where absent (older bundles), the preset's; timestep: every preset's
    when older bundles were made."""

    format_version: Literal[2] = FORMAT_VERSION
    preset: str
    seed: int
    base: BaseReference
    provenance: Provenance = Provenance()
    vre_input: presets.VREInput | None = None
    prompt: presets.PromptKind = "vre"
    timestep: int = 399
    lora: presets.LoRAShape | None = None
    files: dict[str, str] = {}

    def architecture(self) -> presets.Preset:
        """The preset with what this bundle has otherwise."""
        preset = presets.preset(self.preset)
        vre = preset.vre.model_copy(update={"input": self.vre_input or preset.vre.input})
        own = {"vre": vre, "prompt": self.prompt, "timestep": self.timestep, "lora": self.lora or preset.lora}
        return preset.model_copy(update=own)

    def weights(self) -> set[str]:
        """The files of weights that the bundle must have."""
        embedder = {EMBEDDER[self.prompt]} if self.prompt in EMBEDDER else set()
        return {LORA} | embedder | ({ADAPTER} if self.prompt in ADAPTED else set())


class Parts(NamedTuple):
    """The weights of a bundle, by name: peft's LoRA tensors of the UNet, the embedder's, the adapter's (or none)."""

    lora: "dict[str, Tensor]"
    embedder: "dict[str, Tensor]"
    adapter: "dict[str, Tensor]"


def save(
    generator: "OneStepGenerator",
    folder: Path,
    *,
    preset: str,
    seed: int,
    base: Path,
    base_url: str = "",
    provenance: Provenance,
) -> BundleConfig:
    """Write a generator as a bundle; `base` is the folder that it started from, `base_url` where that was fetched."""
    from peft.utils import get_peft_model_state_dict

    from osdface.prompts.vre import VisualEmbedder

    embedder = generator.embedder
    peft = generator.unet.peft_config["default"]
    config = BundleConfig(
        preset=preset,
        seed=seed,
        base=reference(base, base_url),
        provenance=provenance,
        vre_input=embedder.shape.input if isinstance(embedder, VisualEmbedder) else None,
        prompt=embedder.kind,
        timestep=generator.timestep,
        lora=presets.LoRAShape(rank=peft.r, alpha=peft.lora_alpha, targets=sorted(peft.target_modules)),
    )
    lora = get_peft_model_state_dict(generator.unet)
    return write(Parts(lora, embedder.state_dict(), generator.adapter.state_dict()), folder, config, base)


def write(parts: Parts, folder: Path, config: BundleConfig, base: Path) -> BundleConfig:
    """Write a bundle aside and rename it to `folder`; the configuration gets its list of files, and is returned."""
    from safetensors.torch import save_file

    temporary = aside(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_lora(parts.lora, temporary, config.architecture().lora)
    if parts.embedder:
        save_file(_contiguous(parts.embedder), temporary / EMBEDDER[config.prompt])
    if parts.adapter:
        save_file(_contiguous(parts.adapter), temporary / ADAPTER)
    if config.base.path == "base":
        shutil.copytree(base, temporary / "base")
    config = seal(temporary, config)
    replace_folder(temporary, folder)
    return config


def seal(folder: Path, config: BundleConfig) -> BundleConfig:
    """Write the config.json of a folder that has all of a bundle else: the configuration with its list of files."""
    files = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    config = config.model_copy(update={"files": files})
    (folder / "config.json").write_text(config.model_dump_json(indent=2))
    return config


def write_lora(lora: "dict[str, Tensor]", folder: Path, shape: presets.LoRAShape) -> None:
    """Write a UNet's LoRA, by peft's names, as diffusers does: `folder`/pytorch_lora_weights.safetensors."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    from osdface.lora import lora_config

    metadata = lora_config(shape).to_dict() | {"target_modules": sorted(shape.targets)}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, _contiguous(lora), unet_lora_adapter_metadata=metadata)


def read_lora(path: Path) -> "dict[str, Tensor]":
    """The tensors of such a file, by peft's names."""
    return {name.removeprefix("unet."): tensor for name, tensor in tensors.read_safetensors(path).items()}


def reference(base: Path, url: str = "") -> BaseReference:
    """A small base travels inside the bundle, a large one stays where it is. url: where it was fetched from."""
    from osdface.base import base_digest

    small = sum(path.stat().st_size for path in base.rglob("*.safetensors")) < EMBED_BASE_BELOW
    return BaseReference(path="base" if small else url or str(base.absolute()), sha256=base_digest(base))


def _contiguous(parts: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}


def resolve(ref: str | Path) -> Path:
    """The bundle folder that a model reference names: a folder, a bundle that ships ("tiny"), or what an
    `osdface.resolvers` entry point knows.

    Raises UserError saying what was looked for.
    """
    if Path(ref).is_dir():
        return Path(ref)
    if str(ref) in shipped():
        return SHIPPED / ref
    for entry in entry_points(group="osdface.resolvers"):
        try:
            found = entry.load()(str(ref))
        except ModuleNotFoundError:
            continue  # this resolver's extra is not installed
        if found is not None:
            return Path(found)
    raise UserError(
        f"model '{ref}' not found: give a bundle folder, {' or '.join(shipped())}, models:/NAME/VERSION, "
        "models:/NAME@ALIAS or an alias (registry references need `pip install osdface[train]`)"
    )


def shipped() -> list[str]:
    """The bundles that come with the package, by name."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def read_config(folder: Path) -> BundleConfig:
    """config.json of a bundle, an older one as this program would have written it.

    Raises UserError if there is none, or it is of a format version that this program does not know.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a model bundle (no config.json); give a folder made by `osdface train osd`")
    try:
        data = json.loads(path.read_text())
        if (version := data.get("format_version")) not in (1, FORMAT_VERSION):
            raise UserError(
                f"{path}: bundle format {version}; this program reads formats 1 and {FORMAT_VERSION}: a newer one may "
                "read it"
            )
        return BundleConfig.model_validate(_from_version_1(data) if version == 1 else data)
    except (json.JSONDecodeError, AttributeError, ValidationError) as error:
        raise UserError(f"{path}: not a bundle's configuration ({str(error).splitlines()[0]})") from None


def _from_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had visual prompts alone, `prompts` with other names, and no such key at first."""
    kinds = {"distinct": "vre", "paired": "vre_cat"}
    rest = {key: value for key, value in data.items() if key != "prompts"}
    prompts = data.get("prompts") or "distinct"
    return rest | {"format_version": FORMAT_VERSION, "prompt": kinds.get(prompts, prompts)}


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
    """The base model of a bundle, fetched where that is at a URL. Raises UserError if it isn't there any more."""
    if "://" in config.base.path:
        return resolve(config.base.path)
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
    """Read a bundle to run it; with `trained=False`, the same generator as it was before any training.

    Raises UserError for a missing or changed file (`check=False` skips the digests), or a base of another digest.
    """
    config, generator = _read(folder, None, trained, check)
    return config, generator.eval().requires_grad_(False)


def load_trainable(folder: Path, base: "Base | None" = None) -> tuple[BundleConfig, "OneStepGenerator"]:
    """Read a bundle to train it further: LoRA and adapter are trainable and start where the bundle's training ended.

    base: the bundle's base model, where it has been loaded already; the generator takes its modules over. A LoRA keeps
    its bundle's rank, alpha and modules, prompts their kind. Raises UserError as `load` does.
    """
    return _read(folder, base, True, True)


def _read(
    folder: Path, base_model: "Base | None", trained: bool, check: bool
) -> tuple[BundleConfig, "OneStepGenerator"]:
    from osdface.base import load_base
    from osdface.generator import OneStepGenerator
    from osdface.prompts import new_embedder

    folder = Path(folder)
    config, base = checked(folder, check)
    shape = config.architecture()
    base_model = base_model or load_base(base)
    embedder = new_embedder(shape.prompt, shape.vre, base_model.unet.config.cross_attention_dim)
    if config.prompt in EMBEDDER:
        _fill(embedder, folder / EMBEDDER[config.prompt])
    generator = OneStepGenerator.from_parts(shape, base_model, embedder, config.seed)
    if trained:
        if config.prompt in ADAPTED:
            _fill(generator.adapter, folder / ADAPTER)
        _load_lora(generator, folder / LORA)
    return config, generator


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
