"""Language models of a finished recogniser, trained on its own text and on more."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet2_lamer.convert.packed import TRAINING_KEYS
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.decoding_weights import choose_on_dev
from espnet2_lamer.evaluation.lm_search import read_decoding
from espnet2_lamer.evaluation.recogniser_files import (
    LM_CONFIG,
    LM_WEIGHTS,
    NGRAM,
    read_record,
    write_record,
)
from espnet2_lamer.evaluation.text_settings import TextSettings
from espnet2_lamer.evaluation.text_units import NoUnitsError, to_units
from espnet2_lamer.evaluation.tokens import BPE_MODEL, Vocabulary
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.checksum import checked_file, remove_file
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import check_weights, read_yaml
from espnet2_lamer.fileio.hashing import sha256_file, sha256_value
from espnet2_lamer.fileio.locks import exclusive
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.metrics.ngram import perplexity, train_ngram, write_arpa
from espnet2_lamer.train.checkpoint import LATEST
from espnet2_lamer.train.console import run_espnet

_NO_TOKENS = ("<blank>", "<sos/eos>")


@dataclass(frozen=True)
class LmOptions:
    """Which language models a recogniser gets, and how they are weighted.

    Attributes:
        ngram_num: Order of the n-gram model of tokens; 0: none.
        lm_config: YAML of ESPnet's LM task; None: no transformer LM.
        texts: Language and file of sentences, one a line, beside the training
            transcripts.
        unit: Of the recogniser's text.
        decoding: Keys of ``conf/decode_asr_finetune.yaml``; a list is chosen from on
            dev.
    """

    ngram_num: int = 0
    lm_config: Path | None = None
    texts: Sequence[tuple[str, Path]] = ()
    unit: str = "char"
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    ngpu: int = 0


def add_language_models(experiment: Path, options: LmOptions) -> dict[str, Any]:
    """Train language models of a recogniser's tokens and put them beside its weights.

    Into ``<experiment>/final`` go the files of ``evaluation.recogniser_files``; its
    record tells what they were made from, how many sentences and tokens, and their
    perplexity per token on the dev transcripts. Those made from the same are kept;
    those that are not asked for any more are removed.

    Returns:
        The part ``language_models`` of the record.

    Raises:
        RecipeError: A text is missing or has no sentence, or training failed.
    """
    final = experiment / "final"
    grid = read_decoding(options.decoding, "decoding", lists=True)
    with exclusive(experiment):
        record = read_record(final)
        if not (options.ngram_num or options.lm_config):
            if "language_models" in record:
                _remove(final)
                gone = ("language_models", "decoding")
                write_record(final, {k: v for k, v in record.items() if k not in gone})
            return {}
        made_from = sha256_value(
            {
                "model": sha256_file(final / "config.yaml"),
                "train": sha256_file(experiment / "data/train/text"),
                "texts": [[lang, sha256_file(path)] for lang, path in options.texts],
                "ngram_num": options.ngram_num,
                "lm_config": options.lm_config and sha256_file(options.lm_config),
                "seed": options.seed,
                "decoding": grid,
            }
        )
        found = record.get("language_models") or {}
        if found.get("made_from") == made_from:
            logging.info("%s: language models are there", final)
            return found
        # A folder per text and config: another one's training is not gone on with.
        place = experiment / f"lm_{made_from[:8]}"
        found, decoding = _train(experiment, place, options), grid
        if any(isinstance(value, list) for value in grid.values()):
            decoding, found["chosen_on_dev"] = choose_on_dev(experiment, grid)
        found["made_from"] = made_from
        write_record(final, record | {"language_models": found, "decoding": decoding})
    return found


def _train(experiment: Path, place: Path, options: LmOptions) -> dict[str, Any]:
    final = experiment / "final"
    _remove(final)
    config = read_yaml(final / "config.yaml")
    vocabulary = _vocabulary(experiment, config)
    tokenizer = vocabulary.tokenizer()
    settings = TextSettings.read(config.get("text_conf"), final / "config.yaml")
    texts = [*read_table(experiment / "data/train/text").values()]
    own = len(texts)
    for lang, path in options.texts:
        texts += _sentences(path, lang, settings, options.unit)
    dev = [*read_table(experiment / "data/dev/text").values()]
    known = set(vocabulary.tokens)
    train, held_out = (
        [[t if t in known else "<unk>" for t in tokenizer.text2tokens(x)] for x in part]
        for part in (texts, dev)
    )
    tokens = sum(map(len, train))
    size = f"{own} training transcripts and {len(texts) - own} other sentences"
    logging.info("%s: language models of %s, %d tokens", final, size, tokens)
    found: dict[str, Any] = {"sentences": len(texts), "tokens": tokens}
    if options.ngram_num:
        names = [token for token in vocabulary.tokens if token not in _NO_TOKENS]
        model = train_ngram(train, options.ngram_num, names)
        write_arpa(model, final / NGRAM)
        found["ngram"] = {
            "order": options.ngram_num,
            "ngrams": len(model.probs),
            "dev_perplexity": round(perplexity(model, held_out), 3),
        }
        logging.info("%s: %s", final / NGRAM, found["ngram"])
    if options.lm_config:
        found["lm"] = _train_lm(final, place, vocabulary, texts, dev, options)
        logging.info("%s: %s", final / LM_WEIGHTS, found["lm"])
    return found


def _remove(final: Path) -> None:
    for name in (NGRAM, LM_CONFIG, LM_WEIGHTS):
        remove_file(final / name)


def _vocabulary(experiment: Path, config: Mapping[str, Any]) -> Vocabulary:
    pieces = experiment / "final" / BPE_MODEL
    symbols = experiment / "data/nlsyms.txt"
    return Vocabulary(
        config["token_type"],
        tuple(config["token_list"]),
        pieces if pieces.is_file() else None,
        symbols if symbols.is_file() else None,
    )


def _sentences(
    path: Path, lang: str, settings: TextSettings, unit: str
) -> Iterator[str]:
    """Yield the sentences of a text file as the recogniser would write them."""
    if not path.is_file():
        raise RecipeError(f"{path}: file not found; expected sentences, one a line")
    kept = dropped = 0
    for _, line in text_lines(path):
        try:
            yield to_units(line, unit, lang, normalize=settings.apply)
            kept += 1
        except NoUnitsError:
            dropped += 1
    if not kept:
        raise RecipeError(f"{path}: found no sentence in unit {unit}, expected some")
    if dropped:
        logging.warning("%s: %d lines have no text and are left out", path, dropped)


def _train_lm(
    final: Path,
    output: Path,
    vocabulary: Vocabulary,
    train: Sequence[str],
    dev: Sequence[str],
    options: LmOptions,
) -> dict[str, Any]:
    from espnet2_lamer.tasks.lm import LamerLMTask

    data = output / "data"
    command = ["--config", str(options.lm_config), "--output_dir", str(output)]
    command += ["--resume", "true", "--seed", str(options.seed)]
    command += ["--ngpu", str(options.ngpu)]
    command += vocabulary.options(final.with_name("data"))
    tokenizer = vocabulary.tokenizer()
    for name, part, texts in (("train", "train", train), ("valid", "dev", dev)):
        table = {f"{part}_{n:09d}": text for n, text in enumerate(texts)}
        lengths = {u: f"{len(tokenizer.text2tokens(t))}" for u, t in table.items()}
        write_table(data / part / "text", table)
        write_table(data / part / "text_shape", lengths)
        option = f"--{name}_data_path_and_name_and_type"
        command += [option, f"{data / part / 'text'},text,text"]
        command += [f"--{name}_shape_file", str(data / part / "text_shape")]
    run_espnet(LamerLMTask, "lm_train", command, output / "train.log")
    averaged = output / "valid.loss.ave.pth"
    if not averaged.is_file():
        raise RecipeError(f"{output}: training wrote no {averaged.name}; see its log")
    config = read_yaml(output / "config.yaml")
    config = {k: v for k, v in config.items() if k not in TRAINING_KEYS}
    if vocabulary.bpe_model is not None:
        config["bpemodel"] = str(final / BPE_MODEL)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_text(final / LM_CONFIG, text)
    with checked_file(final / LM_WEIGHTS) as stream:
        torch.save(read_state(averaged), stream)
    stats = check_weights(output / LATEST, "cpu")["reporter"]["stats"]
    epoch = min(stats, key=lambda e: stats[e]["valid"]["loss"])
    loss = float(stats[epoch]["valid"]["loss"])
    report = {"epochs": len(stats), "best_epoch": epoch}
    return report | {"dev_perplexity": round(float(torch.tensor(loss).exp()), 3)}
