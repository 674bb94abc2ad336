"""The upstreams of ``--upstreams``: built-in names, conf/upstreams, paths, S3PRL."""

import re
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.checkpoints import base_path
from espnet2_lamer.recipe.options import Options

CONFIGS = Path("conf/upstreams")
# What each built-in name is, as the tables describe it.
BUILT_IN = {
    "random": "the base's network with random weights",
    "base": "the base before continual pretraining",
    "lamer": "after continual pretraining with LoRA experts",
}
# Of an ESPnet experiment or a Hugging Face directory.
_FILES = (
    "config.yaml",
    "valid.loss_m.best.pth",
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
)
_KEYS = {"source", "experiment", "description", "asr_layer", "lid_layer"}


@dataclass(frozen=True)
class UpstreamSpec:
    """One upstream of the evaluation.

    Attributes:
        name: As ``--upstreams`` gives it.
        system: Its name in tables and directories.
        source: What ``espnet2_lamer.load_model`` reads.
        description: What it is, for the tables.
        asr_layer: State that ASR reads, or None: ``--asr_layer``.
        lid_layer: State that LID reads, or None: ``--lid_layer``.
    """

    name: str
    system: str
    source: str
    description: str
    asr_layer: int | None = None
    lid_layer: int | None = None


def upstream_specs(options: Options) -> dict[str, UpstreamSpec]:
    """Find every upstream of ``--upstreams``.

    A name is, in this order: ``random``, ``base`` or ``lamer``; a file
    ``conf/upstreams/NAME.yaml``; ``s3prl:NAME``; a path; a Hugging Face id.

    Raises:
        RecipeError: Nothing of the kind, a config with other keys, or two upstreams
            that would share their directories.
    """
    specs: dict[str, UpstreamSpec] = {}
    for name in options.upstreams:
        spec = _spec(name, options)
        same = [s.name for s in specs.values() if s.system == spec.system]
        if same:
            raise RecipeError(
                f"--upstreams: {same[0]!r} and {name!r} are both called "
                f"{spec.system!r} in tables and directories; name one of them by a "
                f"file in {CONFIGS}"
            )
        specs[name] = spec
    return specs


def weight_files(source: str) -> list[Path]:
    """Return what is there of a local upstream's files: heads follow their content."""
    path = Path(source)
    if path.is_file():
        return [path]
    return [path / name for name in _FILES if (path / name).is_file()]


def _spec(name: str, options: Options) -> UpstreamSpec:
    if name in BUILT_IN:
        return _built_in(name, options)
    config = CONFIGS / f"{name}.yaml"
    if config.is_file():
        return _from_config(name, config, options)
    known = ", ".join([*BUILT_IN, *sorted(p.stem for p in CONFIGS.glob("*.yaml"))])
    looks_like_a_source = "/" in name or ":" in name or Path(name).exists()
    if not looks_like_a_source:
        raise RecipeError(
            f"--upstreams: found {name!r}, expected some of {known}, s3prl:NAME, a "
            "path or a Hugging Face id"
        )
    system = re.sub(r"[^\w.-]+", "-", Path(name).name.removesuffix(".zip")).strip("-")
    return UpstreamSpec(name, system, name, name)


def _built_in(name: str, options: Options) -> UpstreamSpec:
    if name == "random":
        return UpstreamSpec(
            name, name, str(options.random_upstream), BUILT_IN["random"]
        )
    if name == "base":
        # Stage 0 says where the base is; before it, only its option is known.
        recorded = options.checkpoints.is_file()
        source = base_path(options) if recorded else options.base
        return UpstreamSpec(name, name, source, BUILT_IN["base"])
    description = BUILT_IN["lamer"]
    if options.variant:
        description = (
            f"after continual pretraining with {options.ssl_config}, experts per layer "
            f"{options.allocation or 'none: the whole model trains'}"
        )
    source = str(options.ssl_experiment)
    return UpstreamSpec(name, options.ssl_tag, source, description)


def _from_config(name: str, path: Path, options: Options) -> UpstreamSpec:
    values = read_yaml(path)
    unknown = sorted(set(values) - _KEYS)
    if unknown or ("source" in values) == ("experiment" in values):
        raise RecipeError(
            f"{path}: found keys {', '.join(sorted(values)) or 'none'}; expected "
            "either source (what bin.extract takes) or experiment (a directory in "
            "--expdir), and of description, asr_layer, lid_layer"
        )
    source = values.get("source") or str(options.expdir / values["experiment"])
    return UpstreamSpec(
        name=name,
        system=name,
        source=str(source),
        description=values.get("description", str(source)),
        asr_layer=values.get("asr_layer"),
        lid_layer=values.get("lid_layer"),
    )
