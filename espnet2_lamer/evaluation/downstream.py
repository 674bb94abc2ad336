"""Train ML-SUPERB heads on stored features through ESPnet's ASR task."""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_lamer.compat import quiet_nltk
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import (
    FeatureStore,
    store_features,
    upstream_fingerprint,
)
from espnet2_lamer.evaluation.provenance import made_from
from espnet2_lamer.fileio.atomic import atomic_dir, write_json, write_text
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.train.console import espnet_log

# Options that say where a head was trained, not what it is: not in final/config.yaml.
_LOCAL_OPTIONS = {
    "config": None,
    "output_dir": None,
    "train_data_path_and_name_and_type": [],
    "valid_data_path_and_name_and_type": [],
    "train_shape_file": [],
    "valid_shape_file": [],
}


def write_token_list(
    texts: Sequence[str], token_type: str, path: str | Path
) -> list[str]:
    """Write ESPnet's token list: blank, unk, tokens by falling count, sos/eos.

    Args:
        texts: The training transcripts.
        token_type: ``"char"`` (a space becomes ``<space>``) or ``"word"``.
        path: One token per line.

    Returns:
        The list.
    """
    quiet_nltk()
    from espnet2.text.build_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(token_type=token_type)
    counts = Counter(token for text in texts for token in tokenizer.text2tokens(text))
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    tokens = ["<blank>", "<unk>", *ordered, "<sos/eos>"]
    write_text(path, "".join(f"{token}\n" for token in tokens))
    return tokens


def train_head(
    upstream: str | Path | torch.nn.Module,
    train_dir: str | Path | Sequence[str | Path],
    dev_dir: str | Path | Sequence[str | Path],
    store_root: str | Path,
    output_dir: str | Path,
    config: str | Path,
    *,
    layer: int | str = "all",
    target: str = "text",
    token_type: str = "char",
    store_dtype: str = "float32",
    seed: int = 0,
    ngpu: int = 0,
) -> Path:
    """Train a head on a frozen upstream and write it as a waveform-in model.

    Features are stored (or found), the head is trained on them by ESPnet's ASRTask in
    this process, then config and averaged checkpoint are rewritten to ``frontend:
    lamer_upstream`` with the upstream's weights inside: ``final/config.yaml`` and
    ``final/model.pth`` need no other file. A finished head with the same inputs is
    returned as it is; an interrupted one goes on after its last epoch; other inputs
    start anew.

    Args:
        upstream: What ``espnet2_lamer.load_model`` accepts, or its result.
        train_dir: Data directory with ``wav.scp`` and ``text`` (or ``utt2lang``), or
            several that are trained on together.
        dev_dir: Likewise; chooses the checkpoints.
        store_root: Where feature stores live, shared by all heads.
        output_dir: ESPnet experiment directory of this head.
        config: ESPnet ASR config with head and schedule.
        layer: One state index or ``"all"`` for the learned weighted sum.
        target: ``"text"``, or ``"lang"`` to identify languages: the one-word text
            ``[eng]`` made from ``utt2lang``, as ML-SUPERB's LID.
        token_type: ``"char"`` or ``"word"``; ``"lang"`` always uses ``"word"``.
        store_dtype: ``"float32"`` or ``"float16"``.
        seed: Of ESPnet's training.
        ngpu: 0 or 1.

    Returns:
        ``output_dir/final``.

    Raises:
        RecipeError: Input is missing or contradicts itself, or ESPnet stopped before
            it wrote a checkpoint.
    """
    if target not in ("text", "lang"):
        raise RecipeError(f"target: found {target!r}, expected 'text' or 'lang'")
    token_type = "word" if target == "lang" else token_type
    output_dir = Path(output_dir)
    if not isinstance(upstream, torch.nn.Module):
        from espnet2_lamer import load_model

        upstream = load_model(upstream)
    stores: dict[str, list[FeatureStore]] = {}
    texts: dict[str, dict[str, str]] = {}
    for name, dirs in (("train", train_dir), ("dev", dev_dir)):
        dirs = [dirs] if isinstance(dirs, str | Path) else list(dirs)
        stores[name] = [
            store_features(
                upstream,
                layer,
                directory,
                store_root,
                store_dtype,
                "cuda" if ngpu else "cpu",
            )
            for directory in dirs
        ]
        texts[name] = _read_targets(dirs, target)

    inputs = {
        "upstream": upstream_fingerprint(upstream),
        "layer": layer,
        "stores": {k: [s.directory.name for s in v] for k, v in stores.items()},
        "texts": {k: sha256_value(v) for k, v in texts.items()},
        "token_type": token_type,
        "config": sha256_file(config),
        "seed": seed,
    }
    final = output_dir / "final"
    if made_from(final / "inputs.json", inputs):
        logging.info("%s: already trained", output_dir)
        return final
    record = output_dir / "inputs.json"
    if record.is_file() and not made_from(record, inputs):
        logging.info("%s: inputs changed, training anew", output_dir)
        shutil.rmtree(output_dir)
    write_json(record, inputs)

    data = output_dir / "data"
    tokens = write_token_list(
        list(texts["train"].values()), token_type, data / "tokens.txt"
    )
    for name in stores:
        _write_data(data / name, stores[name], texts[name], token_type, len(tokens))
    store = stores["train"][0]
    cmd = _espnet_options(data, output_dir, Path(config), store, token_type, seed, ngpu)
    _run_espnet(cmd, output_dir)
    _write_final(output_dir, upstream, layer, inputs)
    return final


def _read_targets(dirs: Sequence[str | Path], target: str) -> dict[str, str]:
    targets: dict[str, str] = {}
    for directory in map(Path, dirs):
        utterances = read_table(directory / "wav.scp", "stage 9")
        name = "text" if target == "text" else "utt2lang"
        table = read_table(directory / name, "stage 9")
        for utt in utterances:
            if not table.get(utt):
                raise RecipeError(
                    f"{directory / name}: {utt}: no {target}; every utterance of "
                    "wav.scp needs one: drop it or rerun stage 9"
                )
            if utt in targets:
                raise RecipeError(
                    f"{directory}/wav.scp: {utt} is also in another directory of this "
                    "set; utterance ids must be unique"
                )
            targets[utt] = table[utt] if target == "text" else f"[{table[utt]}]"
    return targets


def _write_data(
    directory: Path,
    stores: Sequence[FeatureStore],
    texts: dict[str, str],
    token_type: str,
    vocabulary: int,
) -> None:
    """Write what ESPnet reads: features, texts and the shapes collect_stats gives."""
    from espnet2.text.build_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(token_type=token_type)
    scp: dict[str, str] = {}
    shape: dict[str, str] = {}
    for store in stores:
        scp |= read_table(store.scp)
        shape |= read_table(store.shape)
    write_table(directory / "feats.scp", scp)
    write_table(directory / "speech_shape", shape)
    write_table(directory / "text", texts)
    lengths = {utt: len(tokenizer.text2tokens(text)) for utt, text in texts.items()}
    write_table(
        directory / "text_shape", {u: f"{n},{vocabulary}" for u, n in lengths.items()}
    )


def _espnet_options(
    data: Path,
    output_dir: Path,
    config: Path,
    store: FeatureStore,
    token_type: str,
    seed: int,
    ngpu: int,
) -> list[str]:
    options = [
        *("--config", str(config), "--output_dir", str(output_dir)),
        *("--resume", "true", "--seed", str(seed), "--ngpu", str(ngpu)),
        *("--token_type", token_type, "--token_list", str(data / "tokens.txt")),
        *("--frontend", "stored_features"),
        *("--frontend_conf", f"dim={store.dim}"),
        *("--frontend_conf", f"num_states={store.num_states}"),
        *("--preencoder_conf", f"input_size={store.dim}"),
    ]
    for espnet_name, name in (("train", "train"), ("valid", "dev")):
        for file, key, kind in (
            ("feats.scp", "speech", "kaldi_ark"),
            ("text", "text", "text"),
        ):
            options += [
                f"--{espnet_name}_data_path_and_name_and_type",
                f"{data / name / file},{key},{kind}",
            ]
        for shape in ("speech_shape", "text_shape"):
            options += [f"--{espnet_name}_shape_file", str(data / name / shape)]
    return options


def _run_espnet(cmd: list[str], output_dir: Path) -> None:
    # Checkpoints are data: nothing in them may run when one is resumed.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    from espnet2_lamer.tasks.asr import LamerASRTask

    start = time.monotonic()
    with espnet_log(output_dir / "train.log", output_dir.name):
        try:
            LamerASRTask.main(cmd=cmd)
        except SystemExit as error:
            raise RecipeError(
                f"{output_dir}: ESPnet refused its options; read the message above"
            ) from error
    checkpoint = torch.load(output_dir / "checkpoint.pth", map_location="cpu")
    stats = checkpoint["reporter"]["stats"]
    epoch = min(stats, key=lambda e: stats[e]["valid"]["loss"])
    logging.info(
        "%s: %d epochs in %.1f s; best on dev: epoch %d, loss %.3f, error rate %.1f %%",
        output_dir,
        len(stats),
        time.monotonic() - start,
        epoch,
        stats[epoch]["valid"]["loss"],
        100 * stats[epoch]["valid"].get("cer_ctc", float("nan")),
    )


def _write_final(
    output_dir: Path,
    upstream: torch.nn.Module,
    layer: int | str,
    inputs: dict[str, Any],
) -> None:
    """Rewrite config and averaged checkpoint to ``frontend: lamer_upstream``."""
    averaged = output_dir / "valid.loss.ave.pth"
    if not averaged.is_file():
        raise RecipeError(
            f"{output_dir}: training wrote no {averaged.name}; read "
            f"{output_dir / 'train.log'}"
        )
    head = torch.load(averaged, map_location="cpu", weights_only=True)
    config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    config |= _LOCAL_OPTIONS
    config["frontend"] = "lamer_upstream"
    config["frontend_conf"] = {
        "upstream_conf": upstream.architecture(),
        "layer": layer,
        "fs": 16000,
    }
    weights = {
        f"frontend.upstream.{key}": value.detach().cpu().clone()
        for key, value in upstream.state_dict().items()
    }
    weights |= head
    _check_loads(config, weights, output_dir)
    with atomic_dir(output_dir / "final") as directory:
        (directory / "config.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
        torch.save(weights, directory / "model.pth")
        write_json(directory / "inputs.json", inputs)


def _check_loads(
    config: dict[str, Any], weights: dict[str, torch.Tensor], output_dir: Path
) -> None:
    import argparse
    import copy

    from espnet2_lamer.tasks.asr import LamerASRTask

    model = LamerASRTask.build_model(argparse.Namespace(**copy.deepcopy(config)))
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise RecipeError(
            f"{output_dir}: head and upstream do not make a whole model: missing "
            f"{result.missing_keys[:3]}, unexpected {result.unexpected_keys[:3]}; "
            "remove the directory and train again"
        )
