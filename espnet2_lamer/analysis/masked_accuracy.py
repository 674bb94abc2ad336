"""Masked accuracy of a pretraining model, per utterance, under fixed masks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet2_lamer.constants import STRIDE
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.train.batching import LABEL_PADDING, LamerCollate


def masked_accuracy(
    model: torch.nn.Module,
    data_dir: Path,
    utt2lang: Mapping[str, str],
    seed: int = 0,
) -> dict[str, Measure]:
    """Rate, in per cent, of masked frames whose unit is predicted, per language.

    The masks depend on ``seed`` and the utterance only, so two models see the same ones
    and can be compared utterance by utterance. The model is a
    ``LamerHubertPretrainModel`` in eval mode, on any device; the directory has
    ``wav.scp`` and ``text.km``; ``utt2lang`` names what to measure.
    """
    encoder = model.encoder
    device = next(model.parameters()).device
    collate = LamerCollate(
        max_samples=0,
        bucket=STRIDE,
        mask_prob=encoder.mask_prob,
        mask_length=encoder.mask_length,
        seed=seed,
        draw=0,
        train=False,
    )
    audio = read_table(data_dir / "wav.scp")
    units = read_table(data_dir / "text.km", "assign_units")
    parts: dict[str, dict[str, tuple[float, float]]] = {}
    for utt, lang in tqdm(utt2lang.items(), desc="masked accuracy", disable=None):
        speech, _ = soundfile.read(audio[utt], dtype="float32")
        labels = np.array(units[utt].split(), dtype=np.int64)
        _, batch = collate([(utt, {"speech": speech, "text": labels})])
        mask = torch.zeros_like(batch["text"], dtype=torch.bool)
        mask[0, batch["mask_indices"][0].clamp(min=0)] = batch["mask_indices"][0] >= 0
        mask &= batch["text"] != LABEL_PADDING
        moved = (batch[key].to(device) for key in ("speech", "speech_lengths"))
        with torch.no_grad():
            output = encoder(*moved, mask.to(device))
        right = output.logits.argmax(-1).cpu() == batch["text"][mask]
        parts.setdefault(lang, {})[utt] = (int(right.sum()), right.numel())
    return {lang: Measure.of_rate(rows, seed=seed) for lang, rows in parts.items()}
