"""Files of labels: ``text.km``, its sidecar, the list of units, and their checks."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_text
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.train.labels import parse_units
from espnet2_lamer.train.utterances import Lengths

# Utterances that are looked up together.
_BLOCK = 500


def sidecar_path(text_km: str | Path) -> Path:
    """``text.km.json`` beside ``text.km``."""
    text_km = Path(text_km)
    return text_km.with_name(text_km.name + ".json")


def write_token_list(path: str | Path, n_clusters: int) -> None:
    """Write ``0`` to ``K-1`` in order, ``<unk>``, ``<sos/eos>``: line number = unit."""
    tokens = [*map(str, range(n_clusters)), "<unk>", "<sos/eos>"]
    write_text(path, "".join(token + "\n" for token in tokens))


def check_labels(
    text_km: str | Path,
    n_clusters: int,
    utt2num_samples: str | Path | Mapping[str, int],
    codebook_sha256: str | None = None,
) -> dict[str, Any]:
    """Check that labels fit the audio, the number of classes and their sidecar.

    Only utterances of ``utt2num_samples`` need labels; ``codebook_sha256`` is the
    codebook that they must come from, if given. Returns the sidecar.

    Raises:
        RecipeError: The sidecar is missing or belongs to another file, K or the
            codebook differs, an utterance has no labels, a unit is not in ``0 .. K-1``,
            or the number of labels is not the number of frames.
    """
    text_km = Path(text_km)
    sidecar = read_sidecar(text_km)
    if sidecar["K"] != n_clusters:
        raise RecipeError(
            f"{text_km}: K is {sidecar['K']}, the model has {n_clusters} classes; "
            "set --n_clusters alike or assign units again"
        )
    if codebook_sha256 not in (None, sidecar.get("codebook_sha256")):
        raise RecipeError(
            f"{sidecar_path(text_km)}: codebook_sha256 is "
            f"{sidecar.get('codebook_sha256')}, expected {codebook_sha256}: the labels "
            "come from another codebook, and its units mean something else; assign "
            "units again"
        )
    if isinstance(utt2num_samples, Mapping):
        lengths = Lengths.of(utt2num_samples)
    else:
        lengths = Lengths.read(utt2num_samples)
    there = np.zeros(len(lengths), bool)
    found = iterate_labels(text_km, n_clusters)
    while block := list(islice(found, _BLOCK)):
        numbers = lengths.numbers([utt.encode() for utt, _ in block]).tolist()
        for number, (utt, units) in zip(numbers, block, strict=True):
            if number < 0:
                continue
            there[number] = True
            samples = int(lengths.samples[number])
            if len(units) != num_frames(samples):
                raise RecipeError(
                    f"{text_km}: utterance {utt!r} has {len(units)} labels, expected "
                    f"{num_frames(samples)} for {samples} samples; assign units again"
                )
    if not there.all():
        missing = np.flatnonzero(~there)
        raise RecipeError(
            f"{text_km}: no labels for {len(missing)} of {len(lengths)} utterances, "
            f"first {lengths.name(missing[0])!r}; assign units to the same wav.scp"
        )
    return sidecar


def iterate_labels(
    text_km: str | Path, n_clusters: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each utterance and its units ``[T]``, one line in memory at a time.

    Raises RecipeError where a line breaks what :func:`check_labels` asks of units.
    """
    if not Path(text_km).is_file():
        raise RecipeError(f"{text_km}: file not found; run assign_units")
    digits = np.array([len(str(unit)) for unit in range(n_clusters)])
    last, seen = "", None
    for number, line in text_lines(text_km):
        utt, _, row = line.strip().partition(" ")
        if seen is None and utt <= last:
            # Only a table that is not sorted needs to be remembered.
            lines = islice(text_lines(text_km), number - 1)
            seen = {line.split()[0] for _, line in lines}
        if not row or (seen and utt in seen):
            raise RecipeError(
                f"{text_km}:{number}: utterance {utt!r} "
                f"{'occurs twice' if row else 'has no units'}; assign units again"
            )
        if seen is not None:
            seen.add(utt)
        last = utt
        units = parse_units(row.encode(), n_clusters)
        # Units as we write them: no sign, no zero in front, one space between.
        if units is None or len(row) != len(units) - 1 + digits[units].sum():
            valid = set(map(str, range(n_clusters)))
            wrong = sorted({*row.split(" ")} - valid)[0]
            raise RecipeError(
                f"{text_km}:{number}: utterance {utt!r} has unit {wrong!r}, "
                f"expected 0 to {n_clusters - 1}; assign units again"
            )
        yield utt, units


def read_sidecar(text_km: str | Path) -> dict[str, Any]:
    """Read ``text.km.json``, which must hold the hash of this ``text.km``."""
    text_km = Path(text_km)
    path = sidecar_path(text_km)
    for file in (text_km, path):
        if not file.is_file():
            raise RecipeError(f"{file}: file not found; run assign_units")
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        expected, _ = sidecar["sha256"], sidecar["K"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: not a label sidecar ({error!r}); run assign_units again"
        ) from error
    found = sha256_file(text_km)
    if found != expected:
        raise RecipeError(
            f"{text_km}: sha256 {found}, but {path.name} was written for {expected}; "
            "the labels were changed, run assign_units again"
        )
    return sidecar
