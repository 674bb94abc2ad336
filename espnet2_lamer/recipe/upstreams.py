"""The models of a run: base and teacher of stage 0, and those of ``--upstreams``."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.declaration import refused
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.stage import with_those_there

CONFIGS = Path("conf/upstreams")
#: Where the recipe's own checkpoints lie: here, and in ESPnet's tree.
MINI = (Path("mini"), Path("downloads/mini"))
BUILT_IN = ("random", "base", "lamer")
# Of an ESPnet experiment or a Hugging Face directory.
_FILES = (
    "config.yaml",
    "valid.loss_m.best.pth",
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
)
_KEYS = {"source", "experiment", "description", "asr_layer", "lid_layer"}


def read_checkpoints(options: Options) -> dict[str, dict[str, Any]]:
    """Return stage 0's record: ``{"base": {"path": ...}, "teacher": ...}``."""
    return json.loads(options.checkpoints.read_text(encoding="utf-8"))


def is_mini(source: str) -> bool:
    """Whether this is one of the recipe's own small checkpoints.

    They lie in ``mini``, in ESPnet's tree in ``downloads/mini``.
    """
    return Path(source).parent in MINI


def mini_sums(options: Options) -> list[Path]:
    """Checksums that stage 0 compares the mini checkpoints with."""
    named = [Path(s) for s in (options.base, options.teacher) if s and is_mini(s)]
    return with_those_there([], [path.with_name("SHA256SUMS") for path in named])


def base_path(options: Options) -> str:
    """The base: local directory or file, or name of a torchaudio bundle."""
    return read_checkpoints(options)["base"]["path"]


def teacher_path(options: Options) -> str:
    """The teacher, or a name that needs no checkpoint; before stage 0, the option.

    Of the second round it is the first round's model.
    """
    if options.recluster:
        return str(options.first_round.ssl_experiment)
    if not options.checkpoints.is_file():
        return options.teacher
    return read_checkpoints(options)["teacher"]["path"]


@dataclass(frozen=True)
class UpstreamSpec:
    """One upstream of the evaluation.

    Attributes:
        system: Its name in tables and directories.
        source: What ``espnet2_lamer.load_model`` reads.
        description: What it is, for the tables.
        asr_layer: State that ASR reads, or None: ``--asr_layer``.
        lid_layer: State that LID reads, or None: ``--lid_layer``.
    """

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
        same = [other for other, s in specs.items() if s.system == spec.system]
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
    if name == "random":
        description = "the base's network with random weights"
        return UpstreamSpec(name, str(options.random_upstream), description)
    if name == "base":
        # Stage 0 says where the base is; before it, only its option is known.
        recorded = options.checkpoints.is_file()
        source = base_path(options) if recorded else options.base
        return UpstreamSpec(name, source, "the base before continual pretraining")
    if name == "lamer":
        description = "after continual pretraining with LoRA experts"
        if options.variant:
            description = (
                f"after continual pretraining with {options.ssl_config}, experts per "
                f"layer {options.allocation or 'none: the whole model trains'}"
            )
        if options.recluster:
            layer = options.recluster
            description += f"; then more of it on units of that model's layer {layer}"
        return UpstreamSpec(options.ssl_tag, str(options.ssl_experiment), description)
    config = CONFIGS / f"{name}.yaml"
    if config.is_file():
        return _from_config(name, config, options)
    if not ("/" in name or ":" in name or Path(name).exists()):
        known = ", ".join([*BUILT_IN, *sorted(p.stem for p in CONFIGS.glob("*.yaml"))])
        known = f"some of {known}, s3prl:NAME, a path or a Hugging Face id"
        raise refused("upstreams", repr(name), known)
    system = re.sub(r"[^\w.-]+", "-", Path(name).name.removesuffix(".zip")).strip("-")
    return UpstreamSpec(system, name, name)


def _from_config(name: str, path: Path, options: Options) -> UpstreamSpec:
    values = read_yaml(path)
    if not _KEYS.issuperset(values) or ("source" in values) == ("experiment" in values):
        raise RecipeError(
            f"{path}: found keys {', '.join(sorted(values)) or 'none'}; expected "
            "either source (what bin.extract takes) or experiment (a directory in "
            "--expdir), and of description, asr_layer, lid_layer"
        )
    experiment = values.pop("experiment", None)
    source = str(values.pop("source", None) or options.expdir / experiment)
    return UpstreamSpec(name, source, **{"description": source} | values)
