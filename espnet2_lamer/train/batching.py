"""Batches of nearly equal length by total audio, with few distinct shapes."""

import numpy as np


def rounded_length(num_samples: int, max_samples: int, bucket: int) -> int:
    """Length that a row of ``num_samples`` occupies in a batch.

    Rounded up to a bucket, but never above the crop length: crops themselves, the most
    frequent length of long utterances, need no padding.
    """
    return min(-(-num_samples // bucket) * bucket, max_samples)


def make_batches(
    lengths: dict[str, int],
    batch_bins: int,
    max_samples: int,
    bucket: int,
    generator: np.random.Generator,
    shuffle: bool,
    ranks: int = 1,
) -> list[list[str]]:
    """Group utterances so that a batch holds at most ``batch_bins`` padded samples.

    Utterances are shuffled, then ordered by rounded length, so a batch mixes at most
    the neighbouring lengths, and every batch but the last is full: few shapes, which
    lets kernels and plans be reused (oneDNN, cuDNN, CUDA graphs).

    Args:
        lengths: Samples per utterance.
        batch_bins: Largest number of samples in a batch, padding included.
        max_samples: Crop length.
        bucket: Lengths are rounded up to multiples of this many samples.
        generator: Source of randomness.
        shuffle: Shuffle utterances and the order of batches.
        ranks: Smallest number of utterances in a batch: each rank needs one.

    Returns:
        Lists of utterance ids; each utterance occurs once.

    Raises:
        ValueError: There are fewer utterances than ranks.
    """
    if len(lengths) < ranks:
        raise ValueError(f"found {len(lengths)} utterances for {ranks} ranks")
    names = sorted(lengths)
    if shuffle:
        names = [names[i] for i in generator.permutation(len(names))]
    names.sort(key=lambda n: -rounded_length(lengths[n], max_samples, bucket))
    batches: list[list[str]] = []
    size = 0
    for name in names:
        if not batches or len(batches[-1]) >= size:
            longest = rounded_length(lengths[name], max_samples, bucket)
            size = max(ranks, batch_bins // longest)
            batches.append([])
        batches[-1].append(name)
    if len(batches[-1]) < ranks:
        # The rest of the last batch comes from the one before, whose lengths are next.
        missing = ranks - len(batches[-1])
        if len(batches[-2]) - missing >= ranks:
            batches[-1] = batches[-2][-missing:] + batches[-1]
            del batches[-2][-missing:]
        else:
            rest = batches.pop()
            batches[-1] += rest
    if shuffle:
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches
