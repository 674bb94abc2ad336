"""Which frames are masked: HuBERT's span masks with fairseq's ``static`` statistics."""

import numpy as np

# Pads labels in a batch; never a unit.
LABEL_PADDING = -1


def span_mask(
    num_frames: int,
    mask_prob: float,
    mask_length: int,
    generator: np.random.Generator,
    min_masks: int = 2,
) -> np.ndarray:
    """Draw the masked frames of one utterance.

    ``floor(mask_prob * T / mask_length + u)`` spans, u uniform in [0, 1), at least
    ``min_masks``, start at distinct random frames; spans may overlap. Unlike fairseq,
    rows of a batch are not thinned out to the count of the least masked one.

    Args:
        num_frames: T, the utterance's own frames, so padding is never masked.
        mask_prob: Expected share of frames covered if spans never overlapped.
        mask_length: Frames per span.
        generator: Source of randomness.
        min_masks: Smallest number of spans.

    Returns:
        Sorted frame indices, int64; empty when T is too short for two frames.
    """
    if num_frames < 2:
        return np.zeros(0, dtype=np.int64)
    spans = int(mask_prob * num_frames / mask_length + generator.random())
    spans = max(spans, min_masks)
    length = min(mask_length, num_frames - 1)
    if num_frames - length <= spans:
        length = max(num_frames - spans - 1, 1)
    starts = generator.choice(
        num_frames - length, min(spans, num_frames - length), replace=False
    )
    covered = (starts[:, None] + np.arange(length)).ravel()
    return np.unique(covered)
