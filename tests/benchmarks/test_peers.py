"""Comparisons with PEFT and with another checkout of this project."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmarks_main
from benchmarks import peers, update
from benchmarks.__main__ import SECTIONS, _plan
from benchmarks.harness import Case, Timings, interleave
from benchmarks.launches import Operations
from benchmarks.machine import ROOT
from benchmarks.peers_setup import hugging_face
from benchmarks.step import Options as StepOptions
from benchmarks.step import build_backbone
from benchmarks.update import Checkout, Options, checkout
from espnet2_lamer.errors import RecipeError

HAS_PEFT = find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed")
SMALL = {"layers": 2, "dim": 32, "inner": 64, "heads": 2, "channels": 8, "units": 10}


def hide(monkeypatch, package):
    monkeypatch.setattr(
        benchmarks_main,
        "find_spec",
        lambda name: None if name == package else find_spec(name),
    )
    monkeypatch.setattr("espnet2_lamer.errors.find_spec", lambda name: None)


def test_without_peft_the_section_names_what_to_install(monkeypatch):
    hide(monkeypatch, "peft")
    with pytest.raises(RecipeError, match=r"peers needs .* 'espnet2-lamer\[bench\]'"):
        _plan(["peers", "loss"], "cpu")
    # Caught here, whatever imports and earlier tests make of the root logger.
    said = []
    monkeypatch.setattr(
        benchmarks_main.logging, "warning", lambda text, *args: said.append(text % args)
    )
    plan = _plan(list(SECTIONS), "cpu")
    assert ("loss", "cpu") in plan and ("peers", "cpu") not in plan
    assert "peers is left out: peft is not installed: pip install" in "\n".join(said)


def test_transformers_gets_our_weights_masks_and_head():
    from benchmarks.peers_setup import HuggingFacePretrainModel

    options = peers.Options(**SMALL, batch=3, seconds=0.6)
    backbone = build_backbone(StepOptions(**SMALL, dtype="fp32")).train()
    theirs = HuggingFacePretrainModel(
        hugging_face(backbone),
        backbone.encoder.hubert_pretrain_model.logit_generator,
        None,
    ).train()
    batch = peers.make_batch(options, "cpu")
    assert batch["speech_lengths"].unique().numel() == 2
    models = {peers.OURS_ONE: backbone, peers.PEFT_LORA: theirs}
    assert peers.disagreement(models, batch) < 1e-5
    trained = {n for n, p in theirs.named_parameters() if p.requires_grad}
    assert all(name.startswith("head.") for name in trained)
    # Masks matter: with other ones the loss is another.
    loss = theirs(**batch)[1]["loss_m"]
    other = batch | {"mask_indices": batch["mask_indices"].flip(1).clamp(min=0)}
    assert abs(theirs(**other)[1]["loss_m"] - loss) > 1e-4
    with torch.no_grad():
        theirs.hubert.encoder.layers[0].feed_forward.output_dense.weight *= -1.0
    with pytest.raises(RuntimeError, match="do not compute the same"):
        peers.disagreement(models, batch)


@needs_peft
def test_all_forms_start_from_the_same_function_and_train_their_adapters():
    options = peers.Options(**SMALL, rank=4, batch=2, seconds=0.5)
    models = peers.build_models(options, "fp32")
    assert peers.disagreement(models, peers.make_batch(options, "cpu")) < 1e-4
    found = {name: peers.adapter_parameters(m) for name, m in models.items()}
    # A and B of both Linears in each of two layers: rank 4, or 4 of rank 2.
    one = 2 * 2 * 4 * (32 + 64)
    assert found[peers.OURS_ONE] == found[peers.PEFT_LORA] == one
    assert found[peers.PEFT_ARROW] == 2 * one
    routers = 2 * 4 * 32
    assert found[peers.OURS_TOP] == found[peers.OURS_SOFT] == 2 * one + routers


@needs_peft
def test_the_peers_table_judges_ours_against_each():
    table = peers.measure(peers.QUICK, "fp32", "cpu")
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    for theirs, limit in ((peers.PEFT_LORA, "0.9"), (peers.PEFT_ARROW, "0.7")):
        target = rows[theirs]["target: ours of its time"]
        assert re.fullmatch(rf"\d+\.\d\d <= {limit}: (met|missed)", target)
    work = {name: float(row["GFLOP"]) for name, row in rows.items()}
    assert 0 < work[peers.OURS_TOP + peers.CACHED] < work[peers.OURS_TOP]
    assert work[peers.OURS_TOP] < work[peers.PEFT_ARROW]
    assert int(rows[peers.PEFT_ARROW]["operators"]) > int(
        rows[peers.OURS_TOP]["operators"]
    )


@needs_peft
def test_in_bf16_their_side_is_also_compared_without_autocast():
    table = peers.measure(peers.QUICK, "bf16", "cpu")
    rows = {row[0]: row[-1] for row in table.rows}
    for name in (peers.PEFT_LORA, peers.PEFT_LORA + peers.LOADED):
        assert re.fullmatch(r"\d+\.\d\d <= 0.9: (met|missed)", rows[name])
    models = peers.build_models(peers.QUICK, "bf16")
    loaded = models[peers.PEFT_LORA + peers.LOADED].hubert
    for name, parameter in loaded.named_parameters():
        expected = torch.float32 if "lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name
    batch = peers.make_batch(peers.QUICK, "cpu")
    losses = [
        models[name](**batch)[0].item()
        for name in (peers.PEFT_LORA, peers.PEFT_LORA + peers.LOADED)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_cpu_seconds_are_taken_beside_the_clocks():
    def work():
        total = 0
        for number in range(300_000):
            total += number

    timings = interleave({"work": Case(work), "rest": Case(lambda: None)}, rounds=3)
    assert timings.of_cpu().median("work") > timings.of_cpu().median("rest") >= 0
    clocks = Timings({"a": [2.0]}, {"a": [1.0]})
    assert (clocks.median("a"), clocks.of_cpu().median("a")) == (2.0, 1.0)


def test_operations_that_compute_are_counted():
    x = torch.randn(3, 4)
    with Operations() as counter:
        x.t().reshape(2, 6)[:1].exp()
        torch.empty(3)
    # The transposed rows are copied to be cut anew.
    assert counter.count == 2


# What the worker takes of a checkout, in small.
PACKAGE = """
import argparse, time, types
import torch

class Model(torch.nn.Linear):
    amp_dtype = "none"
    def forward(self, speech, text):
        time.sleep(PAUSE)
        return super().forward(speech).square().mean() + 0.0 * text, {}, None

class LamerHubertTask:
    @staticmethod
    def get_parser():
        parser = argparse.ArgumentParser()
        parser.add_argument("--config", type=lambda path: open(path).read())
        parser.add_argument("--num_classes", type=int)
        parser.add_argument("--ngpu", type=int)
        parser.set_defaults(encoder_conf={}, grad_clip=1.0)
        return parser
    @staticmethod
    def build_model(args):
        assert len(args.token_list) == args.num_classes + 2
        print("chatter on standard output")
        return Model(1600, 2)
    @staticmethod
    def build_optimizers(args, model):
        return [torch.optim.SGD(model.parameters(), 0.1)]
    @staticmethod
    def build_collate_fn(args, train):
        def collate(utterances):
            rows = [torch.tensor(data["speech"][:1600]) for _, data in utterances]
            return [], {"speech": torch.stack(rows), "text": torch.tensor(len(rows))}
        collate.max_samples = 8000
        return collate
"""


def fake_checkout(folder, pause):
    tasks = folder / "espnet2_lamer" / "tasks"
    tasks.mkdir(parents=True)
    (folder / "espnet2_lamer" / "__init__.py").touch()
    (tasks / "__init__.py").touch()
    (tasks / "hubert.py").write_text(PACKAGE.replace("PAUSE", str(pause)))
    (folder / "a.yaml").write_text("")
    return folder


def test_each_checkout_makes_updates_with_its_own_package(tmp_path):
    folders = {
        update.THIS: fake_checkout(tmp_path / "new", 0.0),
        update.OTHER: fake_checkout(tmp_path / "old", 0.2),
    }
    options = Options(
        config="a.yaml", base="none", units=5, seconds=1.0, updates=2, rounds=3
    )
    timings, said = update.measure(folders, options)
    assert said[update.THIS]["loss"] == said[update.OTHER]["loss"] > 0
    assert [len(values) for values in timings.seconds.values()] == [3, 3]
    # The old one sleeps 0.2 s in an update, which costs no CPU seconds.
    assert timings.median(update.OTHER) > 0.2 > timings.of_cpu().median(update.OTHER)


def test_a_checkout_that_cannot_train_says_why(tmp_path):
    folder = fake_checkout(tmp_path, 0.0)
    options = Options(config="a.yaml", base="none", units=5, seconds=0.5)
    worker = Checkout(folder, options)
    worker.folder = tmp_path / "elsewhere"
    with pytest.raises(RecipeError, match=r"imported .* expected .*elsewhere"):
        worker.hello()
    assert worker.process.poll() is not None
    (folder / "espnet2_lamer" / "tasks" / "hubert.py").write_text("1 / 0")
    with pytest.raises(RecipeError, match="its process ended: ZeroDivisionError"):
        Checkout(folder, options).hello()


@pytest.mark.slow
def test_this_checkout_makes_updates_of_the_mini_preset():
    options = Options(units=5, seconds=0.6, updates=3, rounds=1)
    timings, said = update.measure({update.THIS: ROOT}, options)
    assert said[update.THIS]["loss"] > 0
    assert 0 < timings.of_cpu().median(update.THIS)


def test_a_revision_is_laid_out_for_as_long_as_it_is_needed():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    with checkout("HEAD") as folder:
        assert (folder / "espnet2_lamer" / "__init__.py").is_file()
    assert not folder.exists()
    with checkout(str(ROOT)) as folder:
        assert folder == ROOT
    with pytest.raises(RecipeError, match="neither a folder nor a revision"):
        with checkout("no-such-revision"):
            pass


def test_the_worker_takes_nothing_of_benchmarks():
    source = Path(update.WORKER).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) benchmarks", source, re.MULTILINE)
    assert sys.version_info >= (3, 11)  # python -P
