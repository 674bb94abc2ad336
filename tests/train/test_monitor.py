"""The forgetting monitor: what it compares, with what, and what it leaves alone."""

import copy
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.cka import LinearCKA
from espnet2_lamer.metrics.probe import phone_probe
from espnet2_lamer.train.monitor import (
    MAX_SAMPLES,
    RIDGE,
    ForgettingMonitor,
    build_monitor,
    monitor_sample,
)
from tests.tiny_hubert import ARCHITECTURE

LANGS = ["cmn", "eng"]
ENCODER = {
    **ARCHITECTURE,
    # The monitor must not hear it.
    "encoder_dropout": 0.1,
    "final_dim": 8,
}
LAMER = {"allocation": "2,4", "rank": 2}


def encoder(lamer=LAMER, seed=0):
    torch.manual_seed(seed)
    return LamerHubertEncoder(num_classes=5, lamer=lamer, **ENCODER)


def change(model, std=0.3):
    """What training would do."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.wav2vec2.named_parameters():
            if parameter.requires_grad and not name.endswith("lora_A"):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(std * noise)


class Factory:
    """What is used of a validation iterator: lengths, and data by utterance."""

    def __init__(self, count=12):
        generator = np.random.default_rng(0)
        self.speech = {
            f"utt{n:02d}": generator.normal(0, 0.1, 4000 + 100 * n).astype(np.float32)
            for n in range(count)
        }
        self.lengths = {utt: len(x) for utt, x in self.speech.items()}
        self.dataset = {utt: (utt, {"speech": x}) for utt, x in self.speech.items()}


@pytest.fixture
def data(tmp_path):
    """ESPnet's description of the validation data; every phone lasts 5 frames."""
    factory = Factory()
    lines = [f"{utt} {n % 2}" for n, utt in enumerate(factory.lengths)]
    (tmp_path / "utt2langid").write_text("\n".join(lines) + "\n")
    phones = [
        f"{utt} 1 {t / 10} 0.1 {'aeiou'[(n + t) % 5]}"
        for n, (utt, length) in enumerate(factory.lengths.items())
        for t in range(length // 1600)
    ]
    (tmp_path / "phones.ctm").write_text("\n".join(phones) + "\n")
    return [
        (str(tmp_path / "wav.scp"), "speech", "sound"),
        (str(tmp_path / "utt2langid"), "lang", "text_int"),
    ]


def sample_options(data, number=4, seed=0):
    return SimpleNamespace(
        valid_data_path_and_name_and_type=data,
        langs=LANGS,
        monitor_utts=number,
        seed=seed,
    )


def sample(data, number=4, seed=0):
    return monitor_sample(Factory(), sample_options(data, number, seed))


def monitor(model, data, tmp_path, layers=(), epoch=1, updates=0):
    return ForgettingMonitor(
        model, sample(data), list(layers), tmp_path, epoch, updates, "cpu"
    )


def measure(found, epoch=1, **figures):
    reporter = Reporter(epoch)
    reporter.stats[epoch] = {"valid": dict(figures)}
    found.measure(10 * epoch, reporter)
    return reporter.stats[epoch]["valid"]


def lines(tmp_path):
    text = (tmp_path / "forgetting.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_nothing_is_forgotten_before_the_first_update(data, tmp_path):
    figures = measure(monitor(encoder(), data, tmp_path))
    assert figures["cka_cmn"] == figures["cka_eng"] == pytest.approx(1.0)
    (line,) = lines(tmp_path)
    assert line["probe"] == line["probe_of_base"]
    # A quarter, half, three quarters and 11/12 of two layers.
    assert line["layers"] == [1, 2]


@pytest.mark.parametrize("layers", [[2], [0, 1, 2]])
def test_figures_are_those_of_stage_8s_functions_on_the_same_utterances(
    data, tmp_path, layers
):
    model = encoder()
    base = Upstream(encoder(lamer=None).wav2vec2)
    change(model)
    figures = measure(
        monitor(model, data, tmp_path, layers), acc_m_cmn=0.25, acc_m_eng=0.5, other=1.0
    )
    adapted = Upstream(copy.deepcopy(model).wav2vec2)
    chosen = sample(data)
    for lang, utts in chosen.speech.items():
        for index, layer in enumerate(layers):
            cka = LinearCKA()
            features = {
                name: {
                    utt: upstream.extract_features(x[None])[0][layer][0].numpy()
                    for utt, x in utts.items()
                }
                for name, upstream in (("base", base), ("adapted", adapted))
            }
            for utt in utts:
                cka.add(features["base"][utt], features["adapted"][utt])
            halves = list(utts)[::2], list(utts)[1::2]
            parts = [
                phone_probe(
                    {u: features["adapted"][u] for u in one},
                    chosen.phones,
                    {u: features["adapted"][u] for u in other},
                    chosen.phones,
                    ridge=RIDGE,
                ).accuracy.parts.values()
                for one, other in (halves, halves[::-1])
            ]
            right, frames = np.sum([p for part in parts for p in part], axis=0)
            line = lines(tmp_path)[0]
            assert line["cka"][lang][index] == pytest.approx(cka.value(), abs=1e-6)
            assert line["probe"][lang][index] == pytest.approx(right / frames)
        if layers[-1]:
            assert cka.value() < 0.99
        # The last layer is what ESPnet's log shows.
        assert figures[f"cka_{lang}"] == line["cka"][lang][-1]
        assert figures[f"probe_{lang}"] == line["probe"][lang][-1]
    assert line["acc_m"] == {"cmn": 0.25, "eng": 0.5}
    assert (line["epoch"], line["updates"]) == (1, 10)


def test_full_training_is_compared_with_its_start_also_after_a_resume(data, tmp_path):
    model = encoder(lamer=None)
    first = monitor(model, data, tmp_path)
    change(model, 0.05)
    expected = measure(first)
    assert expected["cka_cmn"] < 0.999
    again = monitor(model, data, tmp_path, epoch=2, updates=10)
    figures = measure(again, epoch=2)
    assert figures["cka_cmn"] == expected["cka_cmn"]
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("problem", ["gone", "damaged", "other layers"])
def test_without_the_start_full_training_goes_on_unmeasured(
    data, tmp_path, caplog, problem
):
    model = encoder(lamer=None)
    monitor(model, data, tmp_path)
    if problem == "gone":
        (tmp_path / "forgetting_start.pt").unlink()
    elif problem == "damaged":
        (tmp_path / "forgetting_start.pt").write_bytes(b"PK")
    layers = [1] if problem == "other layers" else []
    later = monitor(model, data, tmp_path, layers, epoch=2, updates=10)
    assert "forgetting is not measured" in caplog.text
    assert measure(later, epoch=2, loss=1.0) == {"loss": 1.0}


def test_no_random_number_is_drawn_and_the_mode_stays(data, tmp_path):
    model = encoder()
    model.train()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    measure(monitor(model, data, tmp_path))
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert model.training and model.wav2vec2.encoder.transformer.layers[0].training


def test_the_sample_is_fixed_by_the_seed_and_bounded(data):
    one, two, other = (sample(data, 4, seed) for seed in (0, 0, 1))
    assert {lang: list(utts) for lang, utts in one.speech.items()} == {
        lang: list(utts) for lang, utts in two.speech.items()
    }
    assert one.speech["cmn"].keys() != other.speech["cmn"].keys()
    for lang, parity in (("cmn", 0), ("eng", 1)):
        assert len(one.speech[lang]) == 4
        assert {int(utt[3:]) % 2 for utt in one.speech[lang]} == {parity}
    assert {lang: len(u) for lang, u in sample(data, 99).speech.items()} == {
        "cmn": 6,
        "eng": 6,
    }


def test_of_a_long_utterance_only_the_beginning_is_heard(data):
    factory = Factory(1)
    factory.dataset["utt00"][1]["speech"] = np.ones(MAX_SAMPLES + 5, np.float32)
    found = monitor_sample(factory, sample_options(data))
    assert found.speech["cmn"]["utt00"].shape == (MAX_SAMPLES,)


def test_without_languages_and_phones_cka_of_all_together_remains(tmp_path):
    data = [(str(tmp_path / "wav.scp"), "speech", "sound")]
    figures = measure(monitor(encoder(), data, tmp_path))
    assert {key for key in figures if "time" not in key} == {"cka_all"}
    assert figures["cka_all"] == pytest.approx(1.0)


def test_lines_that_are_measured_once_more_are_dropped(data, tmp_path):
    found = monitor(encoder(), data, tmp_path)
    for epoch in (1, 2, 3):
        measure(found, epoch)
    with open(tmp_path / "forgetting.jsonl", "a") as handle:
        handle.write('{"epoch": 4, "upda')
    monitor(encoder(), data, tmp_path, epoch=3)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]


def test_a_broken_model_is_reported_and_does_not_stop_training(data, tmp_path, caplog):
    model = encoder()
    with torch.no_grad():
        next(p for p in model.wav2vec2.parameters() if p.requires_grad).fill_(torch.nan)
    assert measure(monitor(model, data, tmp_path), loss=1.0) == {"loss": 1.0}
    assert "forgetting was not measured" in caplog.text


def monitor_of(model, tmp_path, data, **options):
    """Build the monitor of a training with these options."""
    defaults = {"monitor_utts": 4, "monitor_layers": [], "max_epoch": 3, "seed": 0}
    defaults |= {"langs": LANGS, "encoder_conf": {}, "init_param": []}
    defaults["monitor_control"] = None
    defaults["valid_data_path_and_name_and_type"] = data
    defaults["output_dir"] = str(tmp_path)
    run = SimpleNamespace(
        options=SimpleNamespace(**defaults | options),
        model=SimpleNamespace(encoder=model),
        valid_factory=Factory(),
        epoch=1,
        updates=0,
        device="cpu",
        is_first=True,
    )
    return build_monitor(run)


def test_it_is_off_where_nothing_can_be_forgotten(data, tmp_path):
    for model, options in (
        (encoder(), {"monitor_utts": 0}),
        (encoder(lamer={"allocation": 0}), {}),
        (encoder(lamer=None), {}),
        (encoder(), {"max_epoch": 0}),
    ):
        assert monitor_of(model, tmp_path, data, **options) is None
    found = monitor_of(
        encoder(lamer=None), tmp_path, data, encoder_conf={"base": "somewhere"}
    )
    assert found.layers == [1, 2]


def test_a_layer_that_is_not_there_is_refused_before_training(data, tmp_path):
    with pytest.raises(
        RecipeError, match="monitor_layers: found 3, expected 0 .* to 2"
    ):
        monitor_of(encoder(), tmp_path, data, monitor_layers=[1, 3])


def test_masked_accuracy_stands_beside_the_controls_of_the_same_epoch(
    data, tmp_path, caplog
):
    from tests.train.test_curves import write_control

    caplog.set_level("INFO")
    control = write_control(tmp_path / "control")
    found = monitor_of(encoder(), tmp_path, data, monitor_control=str(control))
    figures = measure(found, 2, acc_m=0.5, acc_m_eng=0.375, bits_m_eng=4.0, loss=1.0)
    assert (figures["control_acc_m"], figures["control_acc_m_eng"]) == (0.2, 0.1)
    assert list(figures)[:6] == [
        "acc_m",
        "control_acc_m",
        "acc_m_eng",
        "control_acc_m_eng",
        "bits_m_eng",
        "control_bits_m_eng",
    ]
    (line,) = lines(tmp_path)
    assert line["acc_m"] == {"eng": 0.375}
    assert line["control_acc_m"] == {"eng": 0.1}
    assert line["control_bits_m"] == {"eng": 6.0}
    assert "acc_m_eng 0.375, control_acc_m_eng 0.100" in caplog.text
    # The control has no third epoch.
    assert "control_acc_m" not in measure(found, 3, acc_m=0.5)


def test_a_control_that_is_not_there_is_refused_before_training(data, tmp_path):
    with pytest.raises(RecipeError, match="monitor_control: found no"):
        monitor_of(encoder(), tmp_path, data, monitor_control="nowhere")
