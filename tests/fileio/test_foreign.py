"""YAML from outside is read as SafeLoader reads it, within bounds; errors are clear."""

import random
import struct
import zlib

import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import (
    MAX_YAML_BYTES,
    MAX_YAML_EXPANDED,
    check_weights,
    clear_errors,
    parse_yaml,
)


def random_value(draw, depth=0):
    kind = draw.randrange(7 if depth < 4 else 5)
    if kind < 5:
        return draw.choice([None, True, -3, 2.5, "text", "1e3", "é 你", "", "a: b"])
    size = draw.randrange(5)
    if kind == 5:
        return [random_value(draw, depth + 1) for _ in range(size)]
    return {f"k{n}": random_value(draw, depth + 1) for n in range(size)}


@pytest.mark.parametrize("seed", range(20))
def test_plain_values_are_read_as_pyyaml_reads_them(seed):
    value = random_value(random.Random(seed))
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text, "f") == value == yaml.safe_load(text)
    assert parse_yaml(text.encode("utf-16"), "f") == value


def test_aliases_within_bounds_are_read():
    assert parse_yaml("a: &x [1, 2]\nb: [*x, *x]\n", "f")["b"] == [[1, 2], [1, 2]]
    assert parse_yaml("a: &x {p: 1}\nb: {<<: *x, q: 2}\n", "f")["b"] == {"p": 1, "q": 2}
    assert parse_yaml("", "f") is None


def aliases(levels, width):
    return "".join(
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * width)}]\n"
        for n in range(levels)
    )


def test_the_bound_is_the_size_with_every_alias_written_out():
    # Level n has width**(n + 1) scalars of 17 bytes, and as many nodes above them.
    small, large = aliases(6, 9), aliases(7, 9)
    assert 17 * 9**6 < MAX_YAML_EXPANDED < 17 * 9**7
    assert len(parse_yaml(small, "f")) == 6
    with pytest.raises(RecipeError, match="f: its aliases expand to more than"):
        parse_yaml(large, "f")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.getcwd []",
        "!!python/name:os.system ''",
        "a: [",
        "a: 1\n---\nb: 2\n",
        "? [1]\n: 2\n",
        "a: " + "9" * 5000,
        "a: 2026-99-99",
        "[" * 5000,
        b"\xff\xfe\xff",
        "a: *nowhere",
    ],
)
def test_what_is_not_plain_yaml_is_one_error_that_names_the_file(text):
    with pytest.raises(RecipeError, match="some/file: not valid YAML"):
        parse_yaml(text, "some/file")


def test_loops_and_large_files_are_refused():
    with pytest.raises(RecipeError, match="aliases expand"):
        parse_yaml("a: &x [1, *x]", "f")
    with pytest.raises(RecipeError, match=f"expected at most {MAX_YAML_BYTES}"):
        parse_yaml(b" " * (MAX_YAML_BYTES + 1), "f")


@pytest.mark.parametrize(
    "error", [KeyError("x"), struct.error("s"), zlib.error("z"), RecursionError("r")]
)
def test_errors_of_libraries_become_one_that_names_file_and_kind(error):
    with pytest.raises(RecipeError, match="the/file: damaged.*" + type(error).__name__):
        with clear_errors("the/file"):
            raise error


def test_a_full_disk_is_not_called_damage():
    with pytest.raises(
        RecipeError, match="the/file: cannot be read or unpacked .*spac"
    ):
        with clear_errors("the/file"):
            raise OSError(28, "No space left on device")


def test_clear_errors_keep_their_words_and_gain_the_file():
    with pytest.raises(RecipeError, match="^the/file: rank: found 0$"):
        with clear_errors("the/file"):
            raise RecipeError("rank: found 0")
    with pytest.raises(RecipeError, match="^key of the/file$"):
        with clear_errors("the/file"):
            raise RecipeError("key of the/file")
    with pytest.raises(KeyboardInterrupt):
        with clear_errors("the/file"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("legacy", [False, True])
def test_a_refused_pickle_is_named_without_torchs_advice_to_load_it(tmp_path, legacy):
    import torch

    path = tmp_path / "x.pth"
    torch.save(random.Random, path, _use_new_zipfile_serialization=not legacy)
    for read in (check_weights, lambda path: clearly(path, torch.load)):
        with pytest.raises(
            RecipeError, match="x.pth: .*GLOBAL random.Random"
        ) as caught:
            read(path)
        for advice in ("weights_only", "add_safe_globals", "trust", "http"):
            assert advice not in str(caught.value)


def clearly(path, load):
    with clear_errors(path):
        return load(path)
