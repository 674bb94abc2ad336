"""Frame counts against HuBERT's convolution stack."""

import pytest

from espnet2_lamer.constants import num_frames

# (kernel, stride) of the seven layers: HuBERT, section III-A (wav2vec 2.0's stack).
_LAYERS = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]


def _convolve(length):
    for kernel, stride in _LAYERS:
        length = (length - kernel) // stride + 1 if length >= kernel else 0
    return length


@pytest.mark.parametrize("samples", [0, 399, 400, 719, 720, 721, 16000, 159999, 160000])
def test_frames_are_those_of_the_convolution_stack(samples):
    assert num_frames(samples) == _convolve(samples)
