"""S3PRL upstreams as teachers, cut off above the layer that is wanted."""

import logging

import torch
from torch import nn

from espnet2_lamer.convert.s3prl import load_s3prl
from espnet2_lamer.data.frames import STRIDE
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.trust import s3prl_files_trusted
from espnet2_lamer.units.speech import SAMPLE_RATE
from espnet2_lamer.units.teacher import Teacher, exact_float32, state_hash

# What an upstream that misses a block may raise.
_FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


class S3prlTeacher(Teacher):
    """Hidden state ``layer`` (0 is the transformer's input) of an S3PRL upstream.

    S3PRL's own wrapper repeats the last frame to have one for every 320 samples begun;
    here the upstream itself is called, for the frames it really has.

    Args:
        source: As :func:`~espnet2_lamer.convert.s3prl.load_s3prl`.
        layer: Index of the hidden state.
        device: ``cpu`` or ``cuda``.

    Raises:
        RecipeError: As there, or it lacks the layer, or HuBERT's frame rate.
    """

    def __init__(self, source: str, layer: int | None, device: str):
        model = load_s3prl(source).float().eval()
        last = model.num_layers - 1
        if layer is None or not 0 <= layer <= last:
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 0 to {last}"
            )
        if model.downsample_rates[layer] != STRIDE:
            raise RecipeError(
                f"{source}: a frame every {model.downsample_rates[layer]} "
                f"samples, expected {STRIDE}; use a teacher with HuBERT's frames"
            )
        self.dim = model.hidden_sizes[layer]
        self.identity = {
            "source": source,
            "sha256": state_hash(model),
            "layer": layer,
            "normalisation": "S3PRL's",
        }
        self.device = device
        self.trust_s3prl_files = s3prl_files_trusted()
        self._upstream = model.upstream
        blocks = stop_at(self._upstream, layer, model.num_layers)
        logging.info("%s: %d of %d blocks run", source, blocks, last)
        self._upstream.to(device)

    def _features(self, waveforms):
        states = self._upstream(list(waveforms))["hidden_states"]
        return states[self.identity["layer"]]


def stop_at(upstream: nn.Module, layer: int, states: int) -> int:
    """Drop the blocks above ``layer`` where this leaves its state as it is, to the bit.

    S3PRL computes every layer. Upstreams differ in how they collect states (hooks,
    outputs) and in what follows the last block, so the shorter network is tried on a
    noise signal, with ``layer`` blocks and with one more, and kept only when the state
    is the same.

    Args:
        upstream: S3PRL's expert, on the CPU.
        layer: Wanted hidden state.
        states: How many hidden states it has.

    Returns:
        The number of blocks that run from now on.
    """
    stacks = [
        (module, name, child)
        for module in upstream.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == states - 1
    ]
    if len(stacks) != 1:
        return states - 1
    parent, name, blocks = stacks[0]
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))

    def state() -> torch.Tensor:
        with exact_float32(), torch.inference_mode():
            return upstream([noise])["hidden_states"][layer]

    expected = state()
    for keep in range(layer, min(layer + 2, states - 1)):
        setattr(parent, name, nn.ModuleList(list(blocks)[:keep]))
        try:
            if torch.equal(state(), expected):
                return keep
        except _FAILURES:
            pass
    setattr(parent, name, blocks)
    return states - 1
