"""The challenge's folder: runs alone, keeps to the interface, says what it took."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from espnet2_lamer.export import challenge
from espnet2_lamer.export.challenge_code.check import LENGTHS, check

ALONE = Path(__file__).with_name("only_required.py")


def answer(lang="eng", text="A"):
    return lambda waveform, true_lid=None: (true_lid or lang, text)


def test_the_check_calls_with_and_without_a_language():
    rows = check(answer(), ["cmn", "eng"])
    assert [(row[0], row[3]) for row in rows] == [
        (f"noise of {seconds:g} s", given)
        for seconds in LENGTHS
        for given in (None, "cmn")
    ]
    assert all(row[4:] == [row[3] or "eng", "A"] for row in rows)
    assert all(row[2] >= 0 for row in rows)


def changing(waveform, true_lid=None):
    waveform *= 2
    return true_lid or "eng", "A"


def forgetful():
    texts = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return lambda waveform, true_lid=None: (true_lid or "eng", next(texts))


@pytest.mark.parametrize(
    ("api", "problem"),
    [
        (lambda w, true_lid=None: "eng", "expected two texts"),
        (lambda w, true_lid=None: ("eng", None), "expected two texts"),
        (answer(lang="deu"), "found the language 'deu'"),
        (lambda w, true_lid=None: ("eng", "A"), "true_lid cmn: found the language"),
        (answer(text="[eng] A"), "a tag is left"),
        (changing, "the waveform was changed"),
        (forgetful(), "another answer the second time"),
    ],
)
def test_the_check_refuses_what_is_not_the_interface(api, problem):
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check(api, ["cmn", "eng"])


def test_requirements_are_what_the_package_asks_for_and_imports(monkeypatch):
    installed = {
        "espnet2-lamer": ("0.1", ["torch>=2", "whisper; extra == 'whisper'"]),
        "torch": ("2.11.0+cu130", ["sympy", "never-imported"]),
        "sympy": ("1.14", None),
        "never-imported": ("1.0", None),
        "whisper": ("3.0", None),
        "beside": ("7.0", None),
    }
    modules = {name.replace("-", "_"): [name] for name in installed}
    metadata = challenge.importlib.metadata
    monkeypatch.setattr(metadata, "packages_distributions", lambda: modules)
    monkeypatch.setattr(metadata, "version", lambda name: installed[name][0])
    monkeypatch.setattr(metadata, "requires", lambda name: installed[name][1])
    imported = ["espnet2_lamer", "torch", "sympy", "whisper", "beside", "_sitebuiltins"]
    assert challenge._requirements(imported) == "sympy==1.14\ntorch==2.11.0\n"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The organisers' template as far as it touches the model, with our wrapper."""
    schemas = types.ModuleType("app.domain.schemas.model")
    schemas.ModelSingleOutput = types.SimpleNamespace
    for name in ("app", "app.domain", "app.domain.schemas"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, schemas.__name__, schemas)
    (tmp_path / "app/domain").mkdir(parents=True)
    (tmp_path / "app/resources").mkdir()
    (tmp_path / "app/resources/model.py").write_text(
        "def load():\n    pass\n\n\n"
        "def API(waveform, true_lid=None):\n"
        "    return true_lid or 'deu', f'{waveform.dtype} {len(waveform)}'\n"
    )
    monkeypatch.delitem(sys.modules, "model", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = (challenge.CODE / "dynabench.py").read_text(encoding="utf-8")
    place = tmp_path / "app/domain/model.py"
    module = types.ModuleType("wrapper")
    module.__file__ = str(place)
    exec(compile(code, place, "exec"), module.__dict__)
    yield module.ModelController()
    sys.modules.pop("model", None)


def test_the_servers_wrapper_answers_in_its_form(server):
    def ask(language, rate=16000, audio=(0.0,) * 480):
        return types.SimpleNamespace(
            audio=list(audio), sample_rate=rate, language=language
        )

    found = server.single_inference(ask(""))
    assert (found.language, found.text) == ("[deu]", "float32 480")
    assert server.single_inference(ask("eng")).language == "[eng]"
    assert server.single_inference(ask("", 48000)).text == "float32 160"
    batch = types.SimpleNamespace(dataset_samples=[vars(ask("eng")), ask("")])
    answers = [one.language for one in server.batch_inference(batch)]
    assert answers == ["[eng]", "[deu]"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("long")
    (tmp_path / "exp/final").mkdir(parents=True)
    for name in ("config.yaml", "model.pth"):
        (tmp_path / "exp/final" / name).touch()
    with pytest.raises(challenge.RecipeError, match="a directory that no export wrote"):
        challenge.write_challenge(tmp_path / "exp", tmp_path / "mine")
    with pytest.raises(challenge.RecipeError, match=r"model\.pth|config\.yaml"):
        challenge.write_challenge(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A trained head and the folder that the command line made of it."""
    from espnet2_lamer.bin.export import main
    from tests.joint import train_joint

    root = tmp_path_factory.mktemp("challenge")
    experiment, raw = train_joint(root)
    command = ["--kind", "challenge", "--experiment", str(experiment)]
    command += ["--output", str(root / "folder"), "--license", "cc-by-4.0"]
    main([*command, "--wav_scp", str(raw / "mlsuperb2_lug_dev/wav.scp")])
    return experiment, raw, root / "folder"


@pytest.mark.slow
def test_the_folder_answers_alone_as_the_head_does(written, tmp_path):
    """In a process that sees neither this checkout nor what is not required."""
    import soundfile

    from espnet2_lamer.evaluation.joint_head import JointHead
    from espnet2_lamer.fileio.datadir import read_table

    experiment, raw, folder = written
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    paths = read_table(raw / "mlsuperb2_cmn_dev/wav.scp")
    command = [sys.executable, "-I", "-B", str(ALONE), str(moved), *paths.values()]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    moved.rename(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"real-time factor: \d\.\d{4} \(\d+ s of audio\)", done.stdout)
    assert re.search(r"peak memory: process \d\.\d\d GB, GPU 0\.00 of 24", done.stdout)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["package"] == str(moved / "espnet2_lamer")
    answers = {(row[0], row[3]): tuple(row[4:]) for row in found["rows"]}
    head = JointHead(experiment / "final")
    texts = read_table(raw / "mlsuperb2_cmn_dev/text.char")
    right = 0
    for utt, path in paths.items():
        speech = soundfile.read(path, dtype="float32")[0]
        for given in (None, "cmn"):
            answer = head(speech, given)
            assert answers[Path(path).name, given] == answer
            # The tones were learnt, so the answers mean something.
            assert answer[0] == "cmn"
            right += sum(a == b for a, b in zip(answer[1], texts[utt], strict=False))
        # Another language's tag leaves the letters, which are the same tones.
        assert head(speech, "lug")[0] == "lug"
        assert head(speech, "[lga]")[0] == "lug"  # its code before 2026
    assert right >= 0.5 * 2 * sum(map(len, texts.values()))
    assert not list(tmp_path.glob("**/__pycache__"))


@pytest.mark.slow
def test_the_function_says_what_it_does_not_use(written, caplog):
    from espnet2_lamer.evaluation.joint_head import JointHead

    experiment, _, _ = written
    head = JointHead(experiment / "final")
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    assert head(noise, "xho") == head(noise)
    assert "true_lid xho: not among the 3 languages" in caplog.text
    for short in (0, 10, 400, 900):
        lang, text = head(noise[:short])
        assert lang in head.languages and isinstance(text, str)


@pytest.mark.slow
def test_the_folder_says_what_it_is(written):
    _, _, folder = written
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "languages (3): cmn eng lug" in readme
    assert "weights: cc-by-4.0" in readme
    assert re.search(r"real-time factor 0\.\d{4}, peak memory \d\.\d\d GB", readme)
    for name in ("LICENSE", "NOTICE"):
        text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
        assert (folder / "espnet2_lamer" / name).read_text(encoding="utf-8") == text
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("README.md", "requirements.txt", "model.py", "check.py", "dynabench.py"),
        *("head", "espnet2_lamer"),
    }
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert {"torch", "espnet", "numpy"} <= {line.split("==")[0] for line in lines}
    # Nothing says where it was made.
    for path in (folder / "head/config.yaml", folder / "README.md"):
        assert str(folder.parent) not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_folder_that_does_not_answer_as_the_head_is_not_written(
    written, tmp_path, monkeypatch
):
    experiment, _, _ = written
    run = challenge._run

    def other(folder, audio):
        found = run(folder, audio)
        found["rows"][4][5] += "X"
        return found

    monkeypatch.setattr(challenge, "_run", other)
    with pytest.raises(challenge.RecipeError, match="the folder was not written"):
        challenge.write_challenge(experiment, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    code = tmp_path / "code"
    code.mkdir()
    for name in ("check.py", "dynabench.py", "model.py"):
        text = (challenge.CODE / name).read_text(encoding="utf-8")
        (code / name).write_text(text.replace("(waveform, true_lid)", "(waveform)"))
    monkeypatch.undo()
    monkeypatch.setattr(challenge, "CODE", code)
    with pytest.raises(challenge.RecipeError, match="found the language"):
        challenge.write_challenge(experiment, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
