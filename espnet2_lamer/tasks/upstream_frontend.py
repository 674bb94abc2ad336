"""Frontend with an upstream inside, frozen or tuned: waveform in, states out."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor

from espnet2_lamer.asr.frontend.states import LayerSum, selected_states, upstream_states
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.constants import LID_ROUTED, SAMPLE_RATE, UPSTREAM_MODES
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.config import check_values
from espnet2_lamer.layers.lid_routing import LidRoutingConfig
from espnet2_lamer.tasks.tuning import tuned_weights

#: Weight of the language's cross-entropy beside CTC where none is given.
LID_WEIGHT = 0.1


class LamerUpstreamFrontend(AbsFrontend):
    """A Lamer or HuBERT model as the input of an ESPnet model.

    With ``tune: head`` the upstream never trains: its parameters need no gradient, and
    it runs without autograd and in fp32. Otherwise it is frozen for the first
    ``freeze_encoder_steps`` updates, and trains from then on. It stays in eval mode,
    so no dropout reaches the features, but with ``upstream_mode: train``.

    Args:
        upstream: What ``espnet2_lamer.load_model`` accepts. For training; checkpoints
            then hold the rest of the ESPnet model alone.
        upstream_conf: ``Upstream.architecture()`` of a model whose weights come with
            the checkpoint of the whole ESPnet model. For packed models: no file but
            the checkpoint is needed.
        layer: One state index, or ``"all"`` for the learned weighted sum.
        fs: Sampling rate of the waveforms; upstreams know 16 kHz only.
        tune: What trains beside the head: ``head`` (nothing), ``experts`` (LoRA
            experts and routers), ``all``, or ``lid_routed``: LoRA that is added here,
            see ``lid_routed``.
        freeze_encoder_steps: Updates of the head alone before the upstream trains.
        freeze_convolution: Whether ``all`` leaves the convolutions as they are.
        lid_routed: Options of ``layers.lid_routing.LidRoutingConfig`` and ``weight``,
            the weight of the language's cross-entropy in the loss. With another
            ``tune`` it is not read.
        upstream_mode: ``train``: a frozen upstream drops in training what it dropped
            in its own, as in ML-SUPERB's recipe.

    Raises:
        RecipeError: Not exactly one of ``upstream`` and ``upstream_conf`` is given,
            the rate is not 16 kHz, the upstream has no such layer, or train mode of
            one that is tuned.
    """

    def __init__(
        self,
        upstream: str | Path | None = None,
        upstream_conf: dict[str, Any] | None = None,
        layer: int | str = "all",
        fs: int | str = SAMPLE_RATE,
        tune: str = "head",
        freeze_encoder_steps: int = 0,
        freeze_convolution: bool = True,
        lid_routed: dict[str, Any] | None = None,
        upstream_mode: str = "eval",
    ) -> None:
        super().__init__()
        right = str(fs) in (str(SAMPLE_RATE), "16k")
        expected = f"{SAMPLE_RATE}; resample the audio"
        steps = ("freeze_encoder_steps", freeze_encoder_steps)
        check_values(
            "frontend_conf.",
            ("fs", fs, right, expected),
            (*steps, freeze_encoder_steps >= 0, "updates, 0 or more"),
            (
                "upstream_mode",
                upstream_mode,
                upstream_mode in UPSTREAM_MODES[: 2 if tune == "head" else 1],
                "eval, or with tune: head train",
            ),
        )
        if (upstream is None) == (upstream_conf is None):
            raise RecipeError(
                "frontend_conf: give exactly one of upstream (a path) and "
                "upstream_conf (an architecture whose weights are in the checkpoint)"
            )
        from espnet2_lamer.upstream import build_upstream, load_model

        self.from_file = upstream is not None
        # A head has the same first weights whether its features are stored or not.
        with torch.random.fork_rng(devices=[]):
            if self.from_file:
                self.upstream = load_model(upstream)
            else:
                self.upstream = build_upstream(upstream_conf)
            if tune == LID_ROUTED:
                route = (lid_routed or {}, layer)
                self.lid_weight = add_lid_routed(self.upstream, *route)
        if upstream_mode == "train":
            self.upstream.drop_in_training()
        self.register_state_dict_post_hook(_drop_upstream)
        self.register_load_state_dict_pre_hook(_fill_upstream)
        self.layer = layer
        states = selected_states(self.upstream.num_layers, layer)
        self.layer_sum = LayerSum(len(states), self.upstream.dim)
        self.tune = tune
        self.freeze_encoder_steps = freeze_encoder_steps
        named = tuned_weights(self.upstream, tune, freeze_convolution, states[-1])
        self.tuned = {f"upstream.{name}": weight for name, weight in named.items()}
        # What the upstream computes in where it trains; None: float32.
        self.tuned_dtype: torch.dtype | None = None
        if self.tuned:
            # In checkpoints, so that a resumed training releases it when it would have.
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def output_size(self) -> int:
        """Return D."""
        return self.layer_sum.dim

    def count_update(self) -> None:
        """Count an update of the optimizer."""
        self.updates += 1

    @property
    def released(self) -> bool:
        """Whether the upstream trains in the update that is on."""
        return bool(self.tuned) and int(self.updates) >= self.freeze_encoder_steps

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map 16 kHz waveforms ``[B, n]``, samples ``[B]`` to ``[B, T, D]``, ``[B]``.

        ``T = ceil(n / 320)``, the frames that S3PRL returns.
        """
        trains = torch.is_grad_enabled() and self.released
        half = self.tuned_dtype
        with torch.autocast(input.device.type, half, enabled=half is not None):
            states, lengths = upstream_states(
                self.upstream, input.float(), input_lengths, self.layer, trains
            )
        return self.layer_sum(states.float()), lengths


def add_lid_routed(
    upstream: torch.nn.Module, options: Mapping[str, Any], layer: int | str
) -> float:
    """Add the LoRA of ``frontend_conf.lid_routed`` below the states that a head reads.

    Returns:
        The weight of the language's cross-entropy.

    Raises:
        RecipeError: An option is unknown, missing or wrong, or the upstream is not of
            this package, or has experts.
    """
    where, options = "frontend_conf.lid_routed", dict(options)
    weight = options.pop("weight", LID_WEIGHT)
    if not isinstance(upstream, Upstream):
        raise RecipeError(f"{where}: S3PRL upstreams stay frozen here")
    known = {field.name for field in fields(LidRoutingConfig)} - {"layers"}
    right = isinstance(weight, int | float) and weight >= 0
    check_values(f"{where}.", ("weight", weight, right, "0 or more"))
    for key in sorted({*options} - known):
        some = ", ".join(sorted(known))
        raise RecipeError(f"{where}: found {key!r}, expected some of {some}, weight")
    if "languages" not in options:
        raise RecipeError(f"{where}.languages: found none, expected those of the data")
    last = selected_states(upstream.num_layers, layer)[-1]
    upstream.route_by_language({**options, "layers": last})
    return float(weight)


def _drop_upstream(
    module: LamerUpstreamFrontend, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Keep what lies in a file already, up to a gigabyte, out of every checkpoint."""
    if module.from_file:
        for key in module.upstream.state_dict(prefix=f"{prefix}upstream."):
            if key.removeprefix(prefix) not in module.tuned:
                state.pop(key, None)


def _fill_upstream(
    module: LamerUpstreamFrontend, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    weights = module.upstream.state_dict(prefix=f"{prefix}upstream.")
    missing = {key: value for key, value in weights.items() if key not in state}
    lost = [key for key in missing if key.removeprefix(prefix) in module.tuned]
    if module.from_file and lost and len(lost) < len(module.tuned):
        raise RecipeError(
            f"checkpoint: {len(lost)} of {len(module.tuned)} tuned weights of the "
            f"upstream are missing, first {lost[0]}; it belongs to another tune"
        )
    if module.from_file:
        state.update(missing)
    elif missing:
        # ESPnet loads with strict=False, which would leave a random upstream in place.
        raise RecipeError(
            f"checkpoint: {len(missing)} weights of the upstream are missing, first "
            f"{next(iter(missing))}; the checkpoint belongs to another upstream_conf"
        )
