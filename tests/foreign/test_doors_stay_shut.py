"""Files of others are data: no door runs, fetches or reads what a payload asks for.

Every door is opened with every payload, and the variable that makes torch careful is
not set by the user. A payload that did anything has left a mark; a refusal is a
``RecipeError``, or from a command one line and exit code 1.
"""

import logging
import os
import re
import subprocess
import sys

import pytest

import espnet2_lamer
from espnet2_lamer.errors import RecipeError
from tests.foreign import (  # noqa: F401 - fill DOORS
    library_doors,
    model_doors,
    recipe_doors,
    training_doors,
)
from tests.foreign.command_lines import command, head_training, pretraining
from tests.foreign.payloads import FORMS, Payload, Watch
from tests.foreign.sound_files import DOORS, experiment, make_sound_files

VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
WATCH = Watch()
# How torch suggests to load a file unsafely.
ADVICE = re.compile("weights_only|add_safe_globals|will likely succeed")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_sound_files(tmp_path_factory.mktemp("good"))


@pytest.fixture
def unprotected(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    # What a door set must not protect the next one.
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def quiet():
    """Handlers and levels that commands set up stay theirs."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.level, root.handlers = before


def _cells():
    for name in DOORS:
        slow = [pytest.mark.slow] if name.startswith("stock_s3prl") else []
        for form in FORMS:
            yield pytest.param(name, form, marks=slow, id=f"{name}-{form}")


def test_there_are_at_least_25_doors_and_8_payloads():
    assert len(DOORS) >= 25 and len(FORMS) >= 8


@pytest.mark.parametrize(("name", "form"), list(_cells()))
def test_a_payload_is_refused_or_harmless(
    good, tmp_path, monkeypatch, caplog, unprotected, quiet, name, form
):
    here, mark = tmp_path / "here", tmp_path / "mark"
    here.mkdir()
    monkeypatch.chdir(here)
    payload = Payload(form, tmp_path / "theirs", mark)
    said, other = "", None
    WATCH.watch(payload, files=not DOORS[name].named)
    try:
        DOORS[name](good, here, payload)
    except RecipeError as error:
        said = str(error)
    except SystemExit as end:
        assert end.code in (0, 1, 2), end
        if end.code == 1:
            said = caplog.records[-1].getMessage()
    except Exception as error:
        other = error
    finally:
        WATCH.payload = None
    assert not mark.exists(), f"the payload did something, then {other!r}"
    # A loader of others that reads what the user gave it says so in its own way.
    if other is not None and not name.startswith("stock_s3prl"):
        raise AssertionError(f"no message but {type(other).__name__}") from other
    assert not ADVICE.search(said), said
    assert "Traceback" not in said and "\n" not in said.strip(), said


@pytest.mark.slow
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("name", ["hubert_train", "asr_inference", "export"])
def test_commands_refuse_a_pickle_in_a_process_of_their_own(
    good, tmp_path, name, variable
):
    mark, here = tmp_path / "mark", tmp_path / "here"
    here.mkdir()
    payload = Payload(FORMS[0], tmp_path / "theirs", mark)
    arguments = {
        "hubert_train": lambda: [
            *pretraining(good, here),
            f"--init_param={payload.file()}:a:b",
        ],
        "asr_inference": lambda: [
            f"--asr_train_config={good.root / 'head' / 'config.yaml'}",
            f"--asr_model_file={payload.file()}",
            f"--data_path_and_name_and_type={good.data}/wav.scp,speech,sound",
            f"--output_dir={here / 'out'}",
        ],
        "export": lambda: [
            f"--experiment={experiment(good, here, payload)}",
            *("--task=ssl", f"--output={here / 'm.zip'}"),
        ],
    }[name]()
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", f"espnet2_lamer.bin.{name}", *arguments],
        env=environment | ({variable: "1"} if variable else {}),
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert done.returncode == 1 and not mark.exists(), done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "ERROR" in last and "Traceback" not in done.stderr, done.stderr
    assert not ADVICE.search(last)


@pytest.mark.slow
def test_the_trust_option_opens_s3prls_files(tmp_path, unprotected):
    """What is refused without it would run: the file really is dangerous."""
    payload = Payload("text for eval", tmp_path / "theirs", tmp_path / "mark")
    source = f"s3prl:hubert_custom:{payload.file()}"
    with pytest.raises(RecipeError, match="evaluates.*--trust_s3prl_files true"):
        espnet2_lamer.load_model(source)
    assert not payload.mark.exists()
    with pytest.raises(RecipeError, match="S3PRL cannot load it"):
        espnet2_lamer.load_model(source, trust_s3prl_files=True)
    assert payload.mark.exists()


def test_a_config_cannot_say_that_its_files_are_trusted(
    good, tmp_path, quiet, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = head_training(good, tmp_path, trust_s3prl_files=True)
    with pytest.raises(SystemExit) as end:
        command("asr_train", *arguments)
    assert end.value.code == 2
    assert "unrecognized arguments: trust_s3prl_files" in capsys.readouterr().err


def test_every_sound_file_still_opens(good):
    from espnet2_lamer.convert.packed import unpack_model

    espnet2_lamer.load_model(good.root / "ssl.zip")
    espnet2_lamer.load_model(good.root / "exp")
    espnet2_lamer.load_model(good.root / "ssl.safetensors", base=good.base)
    assert set(unpack_model(good.root / "asr.zip", good.root / "cache")) == {
        "asr_train_config",
        "asr_model_file",
    }
