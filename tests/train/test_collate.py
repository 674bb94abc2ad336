"""Collate: crops stay aligned with units, masks depend on seed, utterance and draw."""

import numpy as np
import pytest
import torch

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.batching import LamerCollate, utterance_generator

CROP = 16000


def ramp(utt_id, samples):
    """Sample n of the waveform holds n // 320; unit t is t: alignment can be read."""
    data = {
        "speech": (np.arange(samples) // 320).astype(np.float32),
        "text": np.arange(num_frames(samples)),
    }
    return utt_id, data


def collate(batch, draw=1, train=True, seed=0, crop=CROP, bucket=1600):
    return LamerCollate(crop, bucket, 0.8, 10, seed, draw, train)(batch)


def masks(batch, **options):
    names, data = collate(batch, **options)
    rows = zip(data["mask_indices"], data["mask_indices_lengths"], strict=True)
    return {n: row[:m].tolist() for n, (row, m) in zip(names, rows, strict=True)}


@pytest.mark.parametrize("draw", range(1, 6))
def test_a_crop_starts_on_a_frame_and_its_units_stay_with_their_frames(draw):
    batch = [ramp(f"utt{n}", CROP + 137 * n) for n in range(1, 20)]
    _, data = collate(batch, draw=draw)
    assert data["speech_lengths"].tolist() == [CROP] * len(batch)
    starts = set()
    for speech, text in zip(data["speech"], data["text"], strict=True):
        frames = num_frames(CROP)
        assert torch.equal(text[:frames], speech[: 320 * frames : 320].long())
        # The first sample of the crop begins a frame: 320 equal samples follow.
        assert (speech[:320] == speech[0]).all() and speech[320] == speech[0] + 1
        starts.add(int(text[0]))
    assert len(starts) > 1


def test_crops_reach_the_first_and_the_last_possible_frame():
    utterance = [ramp("utt", CROP + 2 * 320 + 100)]
    starts = {int(collate(utterance, draw=e)[1]["text"][0, 0]) for e in range(30)}
    assert starts == {0, 1, 2}


def test_an_utterance_that_fits_is_not_cropped():
    _, data = collate([ramp("utt", CROP)])
    assert data["speech_lengths"].tolist() == [CROP]
    assert data["text"][0, 0] == 0


def test_validation_is_not_cropped_and_its_masks_are_fixed():
    batch = [ramp("a", 3 * CROP), ramp("b", CROP + 1)]
    names, data = collate(batch, train=False)
    assert data["speech_lengths"].tolist() == [3 * CROP, CROP + 1]
    assert data["text_lengths"].tolist() == [num_frames(3 * CROP), num_frames(CROP + 1)]
    first, later = (masks(batch, train=False, draw=draw) for draw in (1, 9))
    assert first == later


def test_masks_depend_on_seed_utterance_and_draw_only():
    long = [ramp(f"utt{n}", CROP + 320 * n) for n in range(6)]
    together = masks(long)
    for utterance in long:
        assert masks([utterance])[utterance[0]] == together[utterance[0]]
    assert masks(long[::-1]) == together
    assert masks(long, draw=2) != together
    assert masks(long, seed=1) != together
    assert len({tuple(mask) for mask in together.values()}) == len(long)


def test_crops_do_not_depend_on_the_rest_of_the_batch():
    long = [ramp(f"utt{n}", CROP + 3200 * (n + 1)) for n in range(6)]
    _, together = collate(long)
    for row, utterance in enumerate(long):
        _, alone = collate([utterance])
        assert torch.equal(alone["speech"][0], together["speech"][row])


def test_masks_and_units_never_touch_padding():
    batch = [ramp("a", 4000), ramp("b", 15000), ramp("c", 1200)]
    _, data = collate(batch)
    for row, samples in enumerate((4000, 15000, 1200)):
        frames = num_frames(samples)
        assert data["text_lengths"][row] == frames
        assert (data["text"][row, frames:] == -1).all()
        assert (data["text"][row, :frames] >= 0).all()
        assert (data["speech"][row, samples:] == 0).all()
        count = data["mask_indices_lengths"][row]
        assert (data["mask_indices"][row, count:] == -1).all()
        mask = data["mask_indices"][row, :count]
        assert mask.min() >= 0 and mask.max() < frames


def test_frames_are_given_by_their_places_in_the_grid():
    _, data = collate([ramp("a", 4000), ramp("b", 15000), ramp("c", 400)])
    frames = data["text"].shape[1]
    real = [
        row * frames + t
        for row, count in enumerate(data["text_lengths"].tolist())
        for t in range(count)
    ]
    assert data["real_frames"].tolist() == real
    masked = [
        row * frames + t
        for row, mask in enumerate(data["mask_indices"].tolist())
        for t in mask
        if t >= 0
    ]
    assert data["masked_frames"].tolist() == masked and set(masked) < set(real)


def test_batches_are_padded_to_the_bucket_and_units_to_its_frames():
    _, data = collate([ramp("a", 4001)])
    assert data["speech"].shape == (1, 4800)
    assert data["text"].shape == (1, num_frames(4800))


def test_training_is_padded_at_most_to_the_crop_and_validation_is_not_bound_by_it():
    batch = [ramp("a", CROP + 300)]
    crop = CROP + 400
    assert collate(batch, crop=crop)[1]["speech"].shape == (1, crop)
    assert collate(batch, crop=CROP)[1]["speech"].shape == (1, CROP)
    _, data = collate(batch, crop=400, train=False)
    assert data["speech"].shape == (1, CROP + 1600)


def test_an_utterance_too_short_to_be_masked_gives_an_empty_mask():
    _, data = collate([ramp("a", 400)])
    assert data["mask_indices"].tolist() == [[-1]]
    assert data["mask_indices_lengths"].tolist() == [0]


def test_languages_travel_as_numbers():
    batch = [ramp("a", 4000), ramp("b", 4000)]
    for number, (_, data) in enumerate(batch):
        data["lang"] = np.array([number + 2])
    assert collate(batch)[1]["lang"].tolist() == [2, 3]


def test_a_wrong_number_of_units_is_refused_and_names_the_utterance():
    utt_id, data = ramp("speaker1-utt7", 4000)
    data["text"] = data["text"][:-1]
    message = r"speaker1-utt7: found 11 units for 4000 samples, expected 12 .*anew"
    for train in (True, False):
        with pytest.raises(RecipeError, match=message):
            collate([(utt_id, data)], train=train)


def test_generators_of_different_utterances_are_unrelated():
    draws = {
        key: utterance_generator(*key).random()
        for key in [(0, 1, "a"), (0, 1, "b"), (1, 1, "a"), (0, 2, "a"), (1, 0, "1 a")]
    }
    assert len(set(draws.values())) == len(draws)
    assert utterance_generator(0, 1, "a").random() == draws[0, 1, "a"]
