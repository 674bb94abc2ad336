"""Features of a trained model in a file: NumPy's npz, or Kaldi's ark with its scp."""

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import kaldiio
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from espnet2_lamer.asr.frontend.states import selected_states
from espnet2_lamer.constants import RECEPTIVE_FIELD
from espnet2_lamer.data.audio_decoding import Unusable, open_audio
from espnet2_lamer.data.usable import usable_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_text

# Stores one utterance: id and float32 array.
Store = Callable[[str, np.ndarray], None]


@contextmanager
def npz_file(output: Path) -> Iterator[Store]:
    """Write an npz, a member per utterance, each written as soon as it is there."""
    with (
        atomic_path(output) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):

        def store(utt: str, array: np.ndarray) -> None:
            with archive.open(f"{utt}.npy", "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, array, allow_pickle=False)

        yield store


@contextmanager
def ark_file(output: Path) -> Iterator[Store]:
    """Write a Kaldi ark of matrices ``[T, D]``, and the scp that says where each is."""
    scp = output.with_suffix(".scp")
    if scp == output:
        raise RecipeError(f"--output {output}: expected the ark; its .scp goes beside")
    lines: list[str] = []
    # An older scp must not point into the new ark.
    scp.unlink(missing_ok=True)
    with atomic_path(output) as temporary, open(temporary, "wb") as handle:

        def store(utt: str, array: np.ndarray) -> None:
            start = handle.tell() + len(f"{utt} ".encode())
            kaldiio.save_ark(handle, {utt: array})
            lines.append(f"{utt} {output.absolute()}:{start}\n")

        yield store
    write_text(scp, "".join(lines))


FORMATS = {"npz": npz_file, "ark": ark_file}


def read_waveform(path: str) -> np.ndarray:
    """Return a file as float32 ``[n]``, 16 kHz mono, if stage 2 would let it pass.

    Raises:
        Unusable: It would not.
    """
    with open_audio(path) as source:
        wave, changes = usable_speech(source)
    if changes["one_channel"]:
        text = (
            "%s: averaged, its channels cancel (opposite phase); the strongest alone "
        )
        text += "is used"
        logging.warning(text, path)
    if changes["rescaled"]:
        logging.warning("%s: floats of an integer's size, scaled down", path)
    return wave


def audio_ids(paths: Iterable[str]) -> dict[str, str]:
    """Name audio files by their stems; two with the same are refused."""
    table: dict[str, str] = {}
    for path in paths:
        utt = Path(path).stem
        if utt in table:
            raise RecipeError(
                f"{path}: {table[utt]} is called {utt!r} too; list them in a wav.scp "
                "with ids of their own"
            )
        table[utt] = path
    return table


def write_features(
    model: nn.Module,
    layer: int | str,
    utterances: Mapping[str, str],
    output: str | Path,
    file_format: str = "npz",
    device: str = "cpu",
) -> None:
    """Write one hidden state (or all) of every utterance.

    One utterance is in memory at a time. ``output`` appears when everything is written.

    Args:
        model: What ``espnet2_lamer.load_model`` returns.
        layer: 0 (transformer input) .. L, or ``"all"``.
        utterances: Id to audio path; any rate, converted to 16 kHz mono.
        output: The file. An ark's scp lies beside it.
        file_format: ``"npz"`` (arrays ``[T, D]``, or ``[L + 1, T, D]`` for ``"all"``)
            or ``"ark"`` (single layers only).
        device: Where the model computes.

    Raises:
        RecipeError: The model has no such layer, the format cannot hold it, or audio
            cannot be used; the utterance is named.
    """
    chosen = selected_states(model.num_layers, layer)
    if file_format == "ark" and layer == "all":
        raise RecipeError("--layer all: an ark holds matrices; use --format npz")
    for utt, path in utterances.items() if file_format == "ark" else ():
        if utt.split() != [utt]:
            raise RecipeError(
                f"{path}: its id {utt!r} has a space, which an ark cannot hold; list "
                "it in a wav.scp"
            )
    model = model.to(device)
    frames = 0
    with FORMATS[file_format](Path(output)) as store:
        for utt, path in tqdm(utterances.items(), desc="features", disable=None):
            states = _states(model, utt, path, device)
            array = torch.stack([states[k][0] for k in chosen]).float().cpu().numpy()
            store(utt, array if layer == "all" else array[0])
            frames += array.shape[1]
    size = f"{len(utterances)} utterances, {frames} frames of {model.dim} values"
    logging.info("wrote %s: layer %s, %s", output, layer, size)


def _states(model: nn.Module, utt: str, path: str, device: str) -> list[torch.Tensor]:
    try:
        wave = read_waveform(path)
    except Unusable as error:
        raise RecipeError(f"{path}: utterance {utt!r}: {error}") from error
    if len(wave) < RECEPTIVE_FIELD:
        raise RecipeError(
            f"{path}: utterance {utt!r} has {len(wave)} samples at 16 kHz, expected at "
            f"least {RECEPTIVE_FIELD}; leave it out"
        )
    waves = torch.from_numpy(wave)[None].to(device)
    # Lengths as S3PRL's upstreams want them; nothing is padded.
    return model.extract_features(waves, torch.tensor([len(wave)], device=device))[0]
