"""Nothing in a file runs: it loads as inert data, or is refused."""

import os
import pathlib
import pickle
import shutil
import subprocess
import time
import zipfile

import pytest
import torch

from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.inert_pickle import Inert, global_names, load_inert
from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.errors import RecipeError


class Call:
    """Pickled as a call that happens when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Let the pickler take the result of a call for a function."""


def attacks(marker):
    """Calls each of which creates the file ``marker``."""
    python = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    return {
        "os.system": Call(os.system, shell),
        "os.popen": Call(os.popen, f"{shell} && true"),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "open": Call(open, str(marker), "w"),
        "run": Call(subprocess.check_call, ["touch", str(marker)]),
        "copy": Call(shutil.copy, __file__, str(marker)),
        "touch": Call(pathlib.Path.touch, pathlib.Path(str(marker))),
        "import": Call(
            Call(getattr, Call(__import__, "subprocess"), "call"),
            ["touch", str(marker)],
        ),
    }


NAMES = list(attacks(pathlib.Path("x")))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_a_file_is_not_made(
    fairseq_model, write_fairseq, tmp_path, name, legacy
):
    marker = tmp_path / "it_ran"
    reference = fairseq_model()

    def attack(state):
        del state["task_state"]  # is of classes that are not there
        state["extra_state"]["x"] = attacks(marker)[name]

    path = write_fairseq(reference, "dict", legacy, change=attack)
    for read in (load_hubert, read_architecture, load_inert):
        try:
            read(path)
        except RecipeError as error:
            assert "cannot be read" in str(error)
        assert not marker.exists()
    # The file is what it claims to be.
    torch.load(path, weights_only=False)
    deadline = time.monotonic() + 10  # popen returns before its command does
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert marker.exists()


def test_what_is_harmless_as_data_leaves_the_weights_as_they_are(
    fairseq_model, write_fairseq, tmp_path
):
    reference = fairseq_model()

    def attack(state):
        state["extra_state"]["x"] = Call(eval, "1 / 0")
        state["cfg"]["model"]["_comment"] = Call(exec, "1 / 0")

    model = load_hubert(write_fairseq(reference, "dict", change=attack))
    assert torch.equal(model.mask_embedding, reference.mask_emb.detach())


@pytest.mark.parametrize("key", ["conv_feature_layers", "encoder_layers"])
def test_a_call_in_place_of_a_setting_is_not_made(fairseq_model, write_fairseq, key):
    def attack(state):
        state["cfg"]["model"][key] = Call(eval, "open('/it_ran', 'w')")

    with pytest.raises(RecipeError, match=f"cfg.model.{key}: found"):
        load_hubert(write_fairseq(fairseq_model(), "dict", change=attack))


def test_a_call_in_place_of_a_tensor_is_not_made(fairseq_model, write_fairseq):
    def attack(state):
        state["model"]["mask_emb"] = Call(eval, "1 / 0")

    with pytest.raises(RecipeError, match="mask_emb: found builtins.eval, expected a"):
        load_hubert(write_fairseq(fairseq_model(), "dict", change=attack))


def write_zip(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
    return path


def hand_made(marker):
    """Pickles that no pickler writes, or writes with another protocol."""
    shell = f"touch {marker}".encode()
    return {
        # protocol 0's class instruction, and the same in two steps
        "INST": b"(S'" + shell + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + shell + b"'\no.",
        "GLOBAL": b"cos\nsystem\n(S'" + shell + b"'\ntR.",
        "posix": b"\x80\x02cposix\nsystem\nX"
        + len(shell).to_bytes(4, "little")
        + shell
        + b"\x85R.",
        "STACK_GLOBAL": pickle.dumps(Call(os.system, shell.decode()), protocol=4),
        "EXT1": b"\x80\x02\x82\x01)R.",
        # A name with a dot: pickle would walk from module to attribute.
        "dotted": b"\x80\x02cpathlib\nos.system\nX"
        + len(shell).to_bytes(4, "little")
        + shell
        + b"\x85R.",
        # Calling the result of a call, and a stand-in's own attribute.
        "twice": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R)R.",
        "inert": b"\x80\x02cespnet2_lamer.convert.inert_pickle\ntorch.os.system\nX"
        + len(shell).to_bytes(4, "little")
        + shell
        + b"\x85R.",
        "newobj": b"\x80\x02csubprocess\nPopen\nX"
        + len(shell).to_bytes(4, "little")
        + shell
        + b"\x85\x81.",
        "build": b"\x80\x02cargparse\nNamespace\n)\x81cbuiltins\nexec\n"
        b"X\x03\x00\x00\x001/0\x85Rb.",
        "persistent": b"\x80\x02X\x05\x00\x00\x00modulecos\nsystem\nNN\x87Q.",
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(hand_made(pathlib.Path("x"))))
def test_a_hand_made_pickle_does_nothing(tmp_path, name, zipped):
    marker, path = tmp_path / "it_ran", tmp_path / "x.pt"
    data = hand_made(marker)[name]
    if zipped:
        write_zip(path, data)
    else:
        # The first pickle of a file in the format before zip, then in the fourth.
        path.write_bytes(data)
        with pytest.raises(RecipeError, match="x.pt: "):
            load_hubert(path)
        torch.save({}, path, _use_new_zipfile_serialization=False)
        empty = b"\x80\x02}q\x00."
        head, found, tail = path.read_bytes().rpartition(empty)
        assert found
        path.write_bytes(head + data + tail)
    with pytest.raises(RecipeError, match="x.pt: "):
        load_hubert(path)
    assert not marker.exists()


def test_what_others_registered_is_not_called_and_stays_registered(
    fairseq_model, write_fairseq, tmp_path
):
    marker = tmp_path / "it_ran"

    def attack(state):
        state["extra_state"]["x"] = Call(shutil.copy, __file__, str(marker))

    path = write_fairseq(fairseq_model(), change=attack)
    with torch.serialization.safe_globals([shutil.copy, (dict, "numpy.dtype")]):
        before = set(torch.serialization.get_safe_globals())
        load_hubert(path)
        read_architecture(path)
        assert set(torch.serialization.get_safe_globals()) == before
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(RecipeError):
            load_hubert(path)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


def test_objects_keep_what_they_were_given(tmp_path):
    from argparse import Namespace
    from collections import Counter, OrderedDict, defaultdict, deque

    value = {
        "namespace": Namespace(a=1, b=[2.5, None, True]),
        "path": pathlib.PurePosixPath("/a/b"),
        "dict": defaultdict(list, x=[1]),
        "deque": deque([1, 2], maxlen=5),
        "ordered": OrderedDict(y=2),
        "counter": Counter("aab"),
        "set": {3},
        "tensor": torch.arange(3),
        "type": dict,
    }
    for legacy in (False, True):
        torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        found = load_inert(tmp_path / "x.pt")
        assert isinstance(found["namespace"], Inert)
        assert found["namespace"].state == {"a": 1, "b": [2.5, None, True]}
        # Python 3.13 gives the whole, those before give the parts.
        assert pathlib.PurePosixPath(*found["path"].args) == value["path"]
        assert found["dict"] == {"x": [1]} and type(found["dict"]) is dict
        assert found["deque"] == [1, 2] and type(found["deque"]) is list
        assert found["ordered"] == value["ordered"]
        assert found["counter"] == value["counter"]
        assert found["set"] == {3}
        assert torch.equal(found["tensor"], torch.arange(3))
        assert issubclass(found["type"], Inert)
        names = global_names(tmp_path / "x.pt")
        assert {"argparse.Namespace", "builtins.dict"} <= names


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_damaged_file_is_named(fairseq_model, write_fairseq, part, legacy):
    path = write_fairseq(fairseq_model(), legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(RecipeError, match=r"hubert.pt: cannot be read \(.+\)$"):
        load_hubert(path)


@pytest.mark.parametrize(
    "content", [b"", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"PK\x03\x04"]
)
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(RecipeError, match=r"x.pt: cannot be read \(.+\)$"):
        load_hubert(tmp_path / "x.pt")


def test_a_zip_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("meta.yaml", "a: 1")
    with pytest.raises(RecipeError, match="x.pt: .*a zip file without data.pkl"):
        load_hubert(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [torch.ones(2), [1], {"x": torch.ones(1)}, {}])
def test_a_torch_file_of_something_else_is_named(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(RecipeError, match="x.pt: found the keys .* expected a fairseq"):
        load_hubert(tmp_path / "x.pt")
