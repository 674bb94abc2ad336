"""Updates of a given amount of audio, and how ranks and micro-batches share them.

Which utterances an update has does not depend on the number of ranks, nor on what their
memory holds: only who computes them does.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from espnet2_lamer.train.batching import rounded_length
from espnet2_lamer.train.utterances import Batches, Lengths

# From where to where in an update a micro-batch of a rank goes.
Cell = tuple[int, int]


def make_updates(
    lengths: Mapping[str, int],
    update_bins: int,
    max_samples: int,
    bucket: int,
    generator: np.random.Generator,
) -> Batches:
    """Cut one pass over the utterances into updates of ``update_bins`` samples.

    Utterances are shuffled, ordered by their rounded length (from long to short), and
    cut where the sum of rounded lengths passes multiples of the pass's n-th part, n
    being the number of updates that comes nearest to ``update_bins``. So an update is
    of neighbouring lengths, has on average the audio of the pass divided by n, and is
    at most one utterance away from it. Every pass has the same n, whatever the order.
    Lengths, the crop ``max_samples`` and ``bucket`` are in samples.
    """
    lengths = Lengths.of(lengths)
    order = generator.permutation(len(lengths))
    rounded = rounded_length(
        lengths.samples[order].astype(np.int64), max_samples, bucket
    )
    by_length = np.argsort(-rounded, kind="stable")
    order, rounded = order[by_length].astype(np.int32), rounded[by_length]
    ends = np.cumsum(rounded)
    count = max(1, round(int(ends[-1]) / update_bins))
    # An utterance belongs where its middle lies.
    update = ((2 * ends - rounded) * count) // (2 * int(ends[-1]))
    # One longer than an update leaves some without any.
    starts = np.flatnonzero(np.diff(update, prepend=-1))
    bounds = np.append(starts, len(order))
    chosen = generator.permutation(len(starts))
    return Batches(lengths, order, bounds[:-1][chosen], bounds[1:][chosen])


def split_update(
    rounded: NDArray[np.int64], ranks: int, device_bins: int
) -> list[list[Cell]]:
    """Split an update into micro-batches, and each of these over the ranks.

    There are as few micro-batches as ``device_bins`` samples per rank and micro-batch
    (padding included) allow; an utterance that is longer stands alone. Among all ways
    to cut the row of utterances into that many pieces one is taken whose largest piece
    is smallest, so that ranks wait for each other as little as can be.

    Args:
        rounded: Rounded length of each utterance, from long to short ``[U]``.
        ranks: Processes.
        device_bins: Most samples at a time on one device.

    Returns:
        For each micro-batch the range of utterances of each rank; an empty one where
        there is nothing left for a rank.
    """
    lengths: list[int] = rounded.tolist()
    most = max(device_bins, lengths[0])
    count = -(-len(_filled(lengths, most)) // ranks)
    pieces = count * ranks
    # The smallest capacity that needs no more pieces.
    low = max(lengths[0], -(-sum(lengths) // pieces))
    high = most
    low = min(low, high)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(lengths, middle)) <= pieces:
            high = middle
        else:
            low = middle + 1
    cells = _evened(lengths, high, min(pieces, len(lengths)))
    cells += [(len(lengths), len(lengths))] * (pieces - len(cells))
    rows = [cells[first : first + ranks] for first in range(0, pieces, ranks)]
    # Every other one the other way round: the longest are not always the same rank's.
    return [row[::-1] if n % 2 else row for n, row in enumerate(rows)]


def _evened(lengths: list[int], capacity: int, pieces: int) -> list[Cell]:
    """Cut into so many ranges within capacity, each near the mean of what is left."""
    cells, start, left = [], 0, sum(lengths)
    for others in range(pieces - 1, -1, -1):
        length = lengths[start]
        most = min(max(1, capacity // length), len(lengths) - start - others)
        count = min(max(1, round(left / (others + 1) / length)), most)
        # The others have to hold the rest.
        while len(_filled(lengths[start + count :], capacity)) > others:
            count += 1
        cells.append((start, start + count))
        left -= sum(lengths[start : start + count])
        start += count
    return cells


def _filled(lengths: list[int], capacity: int) -> list[Cell]:
    """Cut into as few ranges as fit, from the longest utterances on."""
    cells, start = [], 0
    while start < len(lengths):
        end = min(start + max(1, capacity // lengths[start]), len(lengths))
        cells.append((start, end))
        start = end
    return cells
