"""Section ``padding``: what batching pads and throws away, on one list of lengths."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.options import option
from benchmarks.report import Table

TITLE = "padding and cut audio, stock batching against ours"
DEVICES = ("cpu",)
RATE = 16000


@dataclass(frozen=True)
class Options:
    """The list and the batch size; the defaults are conf/train_ssl_lamer.yaml's."""

    list: str = option("", "utt2num_samples of your data (default: made-up lengths)")
    utterances: int = option(20000, "made-up utterances")
    shortest: float = option(2.0, "seconds of the shortest made-up utterance")
    longest: float = option(30.0, "seconds of the longest made-up utterance")
    median: float = option(5.5, "their median (log-normal, sigma 0.5)")
    bins: float = option(56.25, "seconds of audio per batch (batch_bins)")


QUICK = Options(utterances=200)


@dataclass(frozen=True)
class Batching:
    """Samples of an epoch's batches.

    Attributes:
        given: Of the utterances in the batches, as they are on disk.
        used: Of them that reach the model.
        computed: Reached the model, padding included.
        batches: Number of batches.
        shapes: Number of distinct batch shapes.
    """

    given: int
    used: int
    computed: int
    batches: int
    shapes: int


def make_lengths(options: Options) -> dict[str, int]:
    """Read or make up samples per utterance, in three languages of unequal size."""
    if options.list:
        lines = Path(options.list).read_text(encoding="utf-8").splitlines()
        return {utt: int(samples) for utt, samples in map(str.split, lines)}
    generator = np.random.default_rng(0)
    seconds = generator.lognormal(np.log(options.median), 0.5, options.utterances)
    seconds = seconds.clip(options.shortest, options.longest)
    languages = generator.choice(
        ["cmn", "eng", "yue"], options.utterances, p=[0.5, 0.3, 0.2]
    )
    return {
        f"{language}_{number:06d}": int(s * RATE)
        for number, (language, s) in enumerate(zip(languages, seconds, strict=True))
    }


def stock_batches(lengths: dict[str, int], bins: int, kind: str) -> list[Sequence[str]]:
    """Batches of one epoch of an ESPnet sampler.

    Args:
        lengths: Samples per utterance; the part of a name before ``_`` is its language.
        bins: Samples per batch.
        kind: ESPnet's ``batch_type``: ``numel`` (its HuBERT recipes), or ``catpow``
            (batches of mixed languages, which replay by language needs).
    """
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    with tempfile.TemporaryDirectory() as name:
        shapes = Path(name) / "speech_shape"
        shapes.write_text("".join(f"{utt} {n}\n" for utt, n in lengths.items()))
        if kind == "numel":
            sampler = build_batch_sampler(
                type="numel",
                batch_size=0,
                batch_bins=bins,
                shape_files=[str(shapes)],
                sort_in_batch="descending",
                sort_batch="descending",
            )
            return list(sampler)
        from espnet2.samplers.category_power_sampler import CategoryPowerSampler

        languages: dict[str, list[str]] = {}
        for utt in lengths:
            languages.setdefault(utt.partition("_")[0], []).append(utt)
        category2utt = Path(name) / "category2utt"
        category2utt.write_text(
            "".join(f"{lang} {' '.join(utts)}\n" for lang, utts in languages.items())
        )
        return list(
            CategoryPowerSampler(
                batch_bins=bins,
                shape_files=[str(shapes)],
                category2utt_file=str(category2utt),
                upsampling_factor=0.5,
            )
        )


def measure_stock(
    lengths: dict[str, int], batches: list[Sequence[str]], pad: bool
) -> Batching:
    """Count what ``HuBERTCollateFn`` makes of batches.

    Args:
        lengths: Samples per utterance.
        batches: Their utterances.
        pad: Pad to the longest of a batch; else (ESPnet's default) all are cut to the
            shortest.
    """
    given = used = computed = 0
    shapes = set()
    for batch in batches:
        samples = [lengths[utt] for utt in batch]
        width = max(samples) if pad else min(samples)
        given += sum(samples)
        used += sum(min(n, width) for n in samples)
        computed += len(batch) * width
        shapes.add((len(batch), width))
    return Batching(given, used, computed, len(batches), len(shapes))


def measure_ours(
    lengths: dict[str, int], bins: int, crop: int, bucket: int
) -> Batching:
    """Count what ours makes of the same list, in one pass over it."""
    from espnet2_lamer.train.batching import make_batches, rounded_length

    generator = np.random.default_rng(0)
    batches = make_batches(lengths, bins, crop, bucket, generator, shuffle=True)
    used = computed = 0
    shapes = set()
    for batch in batches:
        samples = [min(lengths[utt], crop) for utt in batch]
        width = rounded_length(max(samples), crop, bucket)
        used += sum(samples)
        computed += len(batch) * width
        shapes.add((len(batch), width))
    return Batching(sum(lengths.values()), used, computed, len(batches), len(shapes))


def measure(options: Options) -> dict[str, Batching]:
    """Count every way of batching."""
    from espnet2_lamer.train.batching import CollateOptions

    lengths = make_lengths(options)
    bins = int(options.bins * RATE)
    crop, bucket = CollateOptions().max_sample_size, CollateOptions().bucket_samples
    found = {}
    for kind in ("numel", "catpow"):
        batches = stock_batches(lengths, bins, kind)
        for pad in (False, True):
            name = f"stock `{kind}`, {'padded' if pad else 'cut to the shortest'}"
            found[name] = measure_stock(lengths, batches, pad)
    found[f"ours: buckets of {bucket / RATE:g} s, crop {crop / RATE:g} s"] = (
        measure_ours(lengths, bins, crop, bucket)
    )
    found["ours, buckets of 1 s"] = measure_ours(lengths, bins, crop, RATE)
    found["ours without buckets"] = measure_ours(lengths, bins, crop, 1)
    whole = -(-max(lengths.values()) // bucket) * bucket
    found["ours without crop"] = measure_ours(lengths, bins, whole, bucket)
    return found


def run(options: Options, device: str) -> list[str | Table]:
    """Tabulate every way of batching."""
    found = measure(options)
    lengths = make_lengths(options)
    table = Table(
        f"{len(lengths)} utterances, {sum(lengths.values()) / RATE / 3600:.1f} h, "
        f"{options.bins:g} s per batch",
        [
            "batching",
            "audio lost (%)",
            "padding (% of what is computed)",
            "batches",
            "audio s used per batch",
            "distinct shapes",
        ],
    )
    for name, batching in found.items():
        lost = 1 - batching.used / batching.given
        padding = 1 - batching.used / batching.computed
        table.rows.append(
            [
                name,
                f"{100 * lost:.2f}",
                f"{100 * padding:.2f}",
                str(batching.batches),
                f"{batching.used / batching.batches / RATE:.1f}",
                str(batching.shapes),
            ]
        )
    source = f"`{Path(options.list).name}`" if options.list else "made-up lengths"
    explanation = (
        f"One epoch over {source}. Stock: ESPnet's samplers and `HuBERTCollateFn`, "
        "which has no crop length. `numel` is that of its HuBERT recipes, `catpow` "
        "(`upsampling_factor` 0.5) mixes languages in a batch and with them lengths, "
        "drawing with repetition. Its batches go above the size by one utterance, ours "
        "stay below. Audio beyond our crop is not lost for good: crops are drawn anew "
        "each epoch, and so are our batches; those of `numel` are the same in every "
        "epoch. Few shapes let kernels and plans be reused, most of all on a CPU."
    )
    return [explanation, table]
