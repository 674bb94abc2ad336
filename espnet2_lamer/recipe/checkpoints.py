"""Stage 0: which base and teacher, verified and recorded by checksum."""

import json
import logging
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.ssl_config import AUTO

MINI = Path("mini")


def read_checkpoints(options: Options) -> dict[str, dict[str, Any]]:
    """Return stage 0's record: ``{"base": {"path": ...}, "teacher": ...}``."""
    return json.loads(options.checkpoints.read_text(encoding="utf-8"))


def base_path(options: Options) -> str:
    """The base: local directory or file, or name of a torchaudio bundle."""
    return read_checkpoints(options)["base"]["path"]


def teacher_path(options: Options) -> str:
    """The teacher: as the base, or a name that needs no checkpoint."""
    return read_checkpoints(options)["teacher"]["path"]


def _record(source: str) -> dict[str, Any]:
    from espnet2_lamer.convert.load import local_source, source_sha256

    if source.startswith("s3prl:") or source == "mfcc":
        return {"source": source, "path": source, "sha256": None}
    path = local_source(source)
    return {"source": source, "path": path, "sha256": source_sha256(path)}


def _verify_mini(records: dict[str, dict[str, Any]]) -> None:
    """Compare the committed checkpoints with ``mini/SHA256SUMS``."""
    lines = (MINI / "SHA256SUMS").read_text().splitlines()
    expected = {name: digest for digest, name in (line.split() for line in lines)}
    for record in records.values():
        path = Path(record["path"])
        if path.parent != MINI:
            continue
        name = f"{path.name}/model.safetensors"
        if expected.get(name) != record["sha256"]:
            raise RecipeError(
                f"{MINI / name}: SHA-256 is {record['sha256']}, expected "
                f"{expected.get(name)}; restore the file with git, or train it anew: "
                "./run.sh --stage 0 --stop_stage 0 --retrain true"
            )


def prepare_checkpoints(options: Options) -> None:
    """Find, verify and record base and teacher; write the random upstream."""
    base, teacher = options.base, options.teacher
    if options.retrain:
        base, teacher = retrain_mini(options)
    records = {"base": _record(base), "teacher": _record(teacher)}
    if (MINI / "SHA256SUMS").is_file():
        _verify_mini(records)
    _check_layers(records["base"]["path"], options)
    _write_random(records["base"]["path"], options)
    for name, record in records.items():
        logging.info("%s: %s (SHA-256 %s)", name, record["path"], record["sha256"])
    write_json(options.checkpoints, records)


def _check_layers(base: str, options: Options) -> None:
    from espnet2_lamer.convert.load import read_architecture
    from espnet2_lamer.layers import parse_allocation

    layers = read_architecture(base)["encoder_num_layers"]
    for name in ("asr_layer", "lid_layer"):
        value = getattr(options, name)
        if value == "all":
            continue
        if not 0 <= value <= layers:
            raise RecipeError(
                f"--{name}: found {value}, expected 0 to {layers}, the layers of {base}"
            )
    if options.allocation in ("", AUTO):
        return
    try:
        parse_allocation(options.allocation, layers)
    except ValueError as error:
        raise RecipeError(f"--allocation: {error}") from error


def _write_random(base: str, options: Options) -> None:
    """Write the base's network with random weights: the upstream that knows nothing."""
    import torch

    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from espnet2_lamer.convert.load import read_architecture

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build_hubert(read_architecture(base))
    save_huggingface(model, options.random_upstream)


def retrain_mini(options: Options) -> tuple[str, str]:
    """Train the mini base (English) and teacher (three languages) from nothing.

    Returns:
        Directories of base and teacher under ``<expdir>/stage0``. To ship them, copy
        them over ``mini/base`` and ``mini/teacher`` and renew ``mini/SHA256SUMS``.
    """
    from espnet2_lamer.data.mini import build_pretraining_corpora
    from espnet2_lamer.recipe.base_training import train_from_nothing

    data = options.dumpdir / "stage0"
    build_pretraining_corpora(data, nj=options.nj, seed=options.seed)
    config = Path("conf/train_ssl_mini_base.yaml")
    if not config.is_file():  # the form of bin.espnet_tree
        config = Path("conf/tuning") / config.name
    results = []
    for name, langs in (("base", ["eng"]), ("teacher", ["eng", "cmn", "yue"])):
        work = options.expdir / "stage0" / name
        output = work / "final"
        if not output.is_dir():
            train_from_nothing(
                [data / f"{name}_train_{lang}" for lang in langs],
                [data / f"{name}_dev_{lang}" for lang in langs],
                config,
                work,
                output,
                seed=options.seed,
                nj=options.nj,
            )
        results.append(str(output))
    return results[0], results[1]


def has_phones(data_dir: Path) -> bool:
    """Whether a data dir knows its phones (synthetic speech does)."""
    return (data_dir / "phones.ctm").is_file() and bool(
        read_table(data_dir / "wav.scp", "stage 1")
    )
