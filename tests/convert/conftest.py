"""Random HuBERTs of fairseq's own network, and files as fairseq pickles them."""

import argparse
import dataclasses
import enum
import sys
import types
import warnings
from collections import defaultdict
from typing import Any, Dict, Optional, Tuple  # noqa: UP035

import pytest
import torch

LAYERS = 3
CONVOLUTIONS = "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2"
# What distinguishes the two; Base-type models take the waveform as it is.
TYPES = {
    "base": {"extractor_mode": "default", "layer_norm_first": False},
    "large": {"extractor_mode": "layer_norm", "layer_norm_first": True},
}


def randomise(model):
    """Move every bias and norm off its default, so that leaving one out is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def wavs():
    """Two waveforms ``[2, 4000]`` that are neither centred nor of unit variance."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(2, 4000, generator=generator) + 0.1


@pytest.fixture(scope="session")
def assert_equal_states():
    """Return the comparison of two lists of ``LAYERS + 1`` states."""

    def compare(found, expected):
        assert len(found) == len(expected) == LAYERS + 1
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    return compare


@pytest.fixture(scope="session")
def torchaudio_states():
    """Return a function that takes all states from torchaudio's own functions."""

    def states(model, wavs, lengths=None):
        kept = []
        first = getattr(model, "model", model).encoder.transformer.layers[0]
        hook = first.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        with torch.no_grad():
            final, _ = model(wavs, lengths)
            hook.remove()
            blocks, _ = model.extract_features(wavs, lengths)
        return [*kept, *blocks[:-1], final]

    return states


@pytest.fixture(scope="session")
def fairseq_model():
    """Return a function that builds fairseq's network (the copy inside S3PRL)."""
    from s3prl.upstream.hubert.hubert_model import (
        HubertConfig,
        HubertModel,
        HubertPretrainingConfig,
    )

    def build(kind="large", conv_bias=False):
        config = HubertConfig(
            label_rate=50.0,
            encoder_layers=LAYERS,
            encoder_embed_dim=16,
            encoder_ffn_embed_dim=24,
            encoder_attention_heads=2,
            conv_feature_layers=CONVOLUTIONS,
            conv_bias=conv_bias,
            conv_pos=8,
            conv_pos_groups=2,
            final_dim=12,
            **TYPES[kind],
        )
        task = HubertPretrainingConfig(normalize=kind == "large")
        torch.manual_seed(0)
        with warnings.catch_warnings():
            # It uses the weight norm of its time.
            warnings.simplefilter("ignore", FutureWarning)
            model = randomise(HubertModel(config, task, [list("abcde")]))
        model.settings = dataclasses.asdict(config), dataclasses.asdict(task)
        return model

    return build


class StrEnum(enum.Enum):
    """As fairseq's: members are pickled as their class called with their value."""

    def __reduce_ex__(self, protocol):
        return self.__class__, (self._value_,)


def fake_fairseq():
    """Modules and classes under fairseq's names, to be pickled by reference."""
    modules = {
        name: types.ModuleType(name)
        for name in (
            "fairseq",
            "fairseq.data",
            "fairseq.data.dictionary",
            "fairseq.dataclass",
            "fairseq.dataclass.constants",
            "fairseq.models.hubert.hubert",
            "fairseq.tasks.hubert_pretraining",
        )
    }

    def put(module, cls):
        cls.__module__ = module
        setattr(modules[module], cls.__name__, cls)
        return cls

    choices = put(
        "fairseq.dataclass.constants",
        StrEnum("Choices", {c: c for c in ("default", "layer_norm", "gelu")}),
    )
    model = put(
        "fairseq.models.hubert.hubert",
        dataclasses.make_dataclass(
            "HubertConfig",
            [
                ("_name", Optional[str], "hubert"),  # noqa: UP045 (fairseq's spelling)
                ("extractor_mode", choices, choices.default),
                ("activation_fn", choices, choices.gelu),
                (
                    "latent_temp",
                    Tuple[float, float, float],  # noqa: UP006
                    (2, 0.5, 0.999995),
                ),
                ("label_rate", float, "${task.label_rate}"),
            ],
        ),
    )
    task = put(
        "fairseq.tasks.hubert_pretraining",
        dataclasses.make_dataclass(
            "HubertPretrainingConfig",
            [
                ("_name", str, "hubert_pretraining"),
                ("extra", Any, None),
                (
                    "limits",
                    Dict[str, Optional[int]],  # noqa: UP006, UP045
                    dataclasses.field(default_factory=lambda: {"max": None}),
                ),
            ],
        ),
    )
    dictionary = put("fairseq.data.dictionary", type("Dictionary", (), {}))
    return modules, choices, model, task, dictionary


@pytest.fixture
def write_fairseq(monkeypatch, tmp_path):
    """Return a function that writes a checkpoint as fairseq does.

    Its classes exist while it writes and are gone when it returns, and omegaconf can
    not be imported any more.
    """

    from omegaconf import OmegaConf, open_dict

    def write(model, form="omegaconf", legacy=False, name="hubert.pt", change=None):
        modules, choices, model_class, task_class, dictionary = fake_fairseq()
        settings, task = map(dict, model.settings)
        settings |= {"_name": "hubert"}
        task |= {"_name": "hubert_pretraining", "labels": ["km"]}
        units = dictionary()
        units.symbols, units.indices = list("abcde"), defaultdict(int, a=0, b=1)
        state = {
            "args": None,
            "cfg": None,
            "model": dict(model.state_dict()),
            "criterion": {},
            "optimizer_history": [{"optimizer_name": "FP16Optimizer"}],
            "task_state": {"dictionaries": [units]},
            "extra_state": {
                "best": torch.tensor(3.0).double().numpy().mean(),
                "seen": {1, 2},
                "meters": defaultdict(dict, train=[(0, "loss", "AverageMeter", {})]),
            },
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(7)}}},
        }
        if form == "namespace":
            flat = settings | task | {"arch": "hubert", "task": "hubert_pretraining"}
            del flat["_name"]
            state["args"] = argparse.Namespace(**flat)
        elif form == "dict":
            state["cfg"] = {"model": settings, "task": task}
        elif form == "converted":
            state = {
                "task_cfg": task,
                "model_cfg": settings,
                "model_weight": state["model"],
                "dictionaries_symbols": [list("abcde")],
            }
        else:
            mode = choices[settings["extractor_mode"]]
            nodes = {
                "model": OmegaConf.structured(model_class),
                "task": OmegaConf.structured(task_class),
            }
            with open_dict(nodes["model"]), open_dict(nodes["task"]):
                nodes["model"].update(settings | {"extractor_mode": mode})
                nodes["model"].activation_fn = choices.gelu
                nodes["task"].update(task)
            nodes["common"] = {"seed": 1337, "path": None}
            state["cfg"] = OmegaConf.create(nodes)
        if change is not None:
            change(state)
        path = tmp_path / name
        with monkeypatch.context() as patch:
            for module, content in modules.items():
                patch.setitem(sys.modules, module, content)
            torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        for module in ("fairseq", "omegaconf", "omegaconf.dictconfig"):
            monkeypatch.setitem(sys.modules, module, None)
        return path

    return write


@pytest.fixture(autouse=True)
def _torch_may_unpickle(monkeypatch):
    """Let these tests show what a file does to a reader that trusts it.

    Tests that ran before in this process may have forced torch to be careful, as the
    package's commands do.
    """
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
