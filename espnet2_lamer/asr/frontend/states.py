"""A frozen upstream's states on S3PRL's time grid, their sum, and a frontend of it."""

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor, nn

from espnet2_lamer.asr.upstream import FrozenUpstream, check_samples
from espnet2_lamer.constants import SAMPLE_RATE, STRIDE
from espnet2_lamer.errors import RecipeError


def selected_states(num_layers: int, layer: int | str) -> list[int]:
    """Return the states of 0 (input) .. L that ``layer``, an index or "all", asks for.

    Another ``layer`` raises ``RecipeError``.
    """
    if layer == "all":
        return list(range(num_layers + 1))
    if isinstance(layer, int) and 0 <= layer <= num_layers:
        return [layer]
    raise RecipeError(
        f"layer: found {layer!r}, expected 'all' or a number from 0 (transformer "
        f"input) to {num_layers}, the depth of this upstream"
    )


def stretch_to_grid(
    states: Tensor, state_lengths: Tensor, num_samples: Tensor, hop: int = STRIDE
) -> tuple[Tensor, Tensor]:
    """Give every utterance ``ceil(samples / hop)`` frames by repeating its last one.

    S3PRL's rule, applied per utterance so that the result does not depend on the other
    utterances of the batch. Frames of ``states [B, T, D]`` beyond an utterance's length
    are zero; ``state_lengths [B]`` are what the convolutions gave.
    """
    lengths = torch.div(num_samples + hop - 1, hop, rounding_mode="floor")
    frames = torch.arange(int(lengths.max()), device=states.device)  # [T']
    source = torch.minimum(frames[None], state_lengths[:, None] - 1)  # [B, T']
    batch = torch.arange(len(states), device=states.device)[:, None]
    stretched = states[batch, source]
    return stretched * (frames[None] < lengths[:, None]).unsqueeze(-1), lengths


def upstream_states(
    upstream: FrozenUpstream,
    wavs: Tensor,
    lengths: Tensor,
    layer: int | str,
    trains: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run an upstream and return the chosen states side by side.

    Waveforms are zero-padded 16 kHz ``[B, n]``, their samples ``[B]``, at least 400
    (``TooShortError``); the upstream lets no padding reach an utterance's states. Only
    where it ``trains`` they have gradients.

    Returns:
        ``[B, T, S * D]`` with ``T = max ceil(n / hop)``, S the number of chosen
        states, and the lengths ``[B]``.
    """
    chosen = selected_states(upstream.num_layers, layer)
    check_samples(lengths.tolist())
    extract = upstream.states_with_gradients if trains else upstream.extract_features
    with torch.set_grad_enabled(trains):
        hidden, hidden_lengths = extract(wavs, lengths, chosen[-1])
        states = torch.cat([hidden[k] for k in chosen], dim=-1)
    return stretch_to_grid(states, hidden_lengths, lengths, upstream.hop)


class LayerSum(nn.Module):
    """Softmax-weighted sum of S states: ``sum_s softmax(w)_s h_s``.

    S3PRL's Featurizer without layer norm: weights start at zero, i.e. equal shares.
    One state has no weights and passes unchanged.
    """

    def __init__(self, num_states: int, dim: int) -> None:
        super().__init__()
        self.num_states = num_states
        self.dim = dim
        self.weights = nn.Parameter(torch.zeros(num_states)) if num_states > 1 else None

    def forward(self, states: Tensor) -> Tensor:
        """Map ``[B, T, S * D]`` to ``[B, T, D]``."""
        if states.size(-1) != self.num_states * self.dim:
            raise RecipeError(
                f"expected {self.num_states} states of {self.dim} values per frame, "
                f"found {states.size(-1)} values: the features belong to another "
                "upstream or layer choice; remove them and store them again"
            )
        if self.weights is None:
            return states
        stacked = states.unflatten(-1, (self.num_states, self.dim))  # [B, T, S, D]
        return torch.einsum("btsd,s->btd", stacked, self.weights.softmax(0))


class StoredFeaturesFrontend(AbsFrontend):
    """Pass stored states on, summing them with learned weights if there are several.

    Training a head on it equals training it on ``lamer_upstream`` with the upstream
    that wrote the store, without running that upstream again. A frame has S =
    ``num_states`` of D = ``dim`` values. ESPnet's recipes pass ``fs``; it has no rate.
    """

    def __init__(
        self, dim: int, num_states: int = 1, fs: int | str = SAMPLE_RATE
    ) -> None:
        super().__init__()
        self.layer_sum = LayerSum(num_states, dim)

    def output_size(self) -> int:
        """Return D."""
        return self.layer_sum.dim

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map stored states ``[B, T, S * D]``, lengths ``[B]`` to ``[B, T, D]``."""
        return self.layer_sum(input), input_lengths
