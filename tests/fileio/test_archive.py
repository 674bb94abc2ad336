"""Model zips are written reproducibly and refused when they are dangerous."""

import stat
import zipfile

import pytest
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.archive import check_zip, write_archive

META = yaml.safe_dump(
    {
        "files": {"asr_model_file": "model.pth"},
        "yaml_files": {"asr_train_config": "config.yaml"},
    }
).encode()
GOOD = {"meta.yaml": META, "config.yaml": b"a: 1\n", "model.pth": b"weights" * 99}


def _write(path, members):
    """Write members as they are, without the checks of write_archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def test_same_members_give_the_same_bytes(tmp_path):
    source = tmp_path / "model.pth"
    source.write_bytes(GOOD["model.pth"])
    for name in ("one.zip", "two.zip"):
        write_archive(tmp_path / name, GOOD | {"model.pth": source})
        source.touch()
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert check_zip(tmp_path / "one.zip")["files"] == {"asr_model_file": "model.pth"}
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == GOOD


def test_failure_leaves_the_old_zip_in_place(tmp_path):
    write_archive(tmp_path / "m.zip", GOOD)
    before = (tmp_path / "m.zip").read_bytes()
    with pytest.raises(FileNotFoundError):
        write_archive(tmp_path / "m.zip", GOOD | {"more": tmp_path / "missing"})
    assert (tmp_path / "m.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


@pytest.mark.parametrize(
    "name",
    ["/etc/cron.d/x", "../x", "a/../../x", "a/./x", "c:x", "a\\..\\x", "a//x"],
)
def test_members_that_leave_the_target_are_refused(tmp_path, name):
    _write(tmp_path / "m.zip", [*GOOD.items(), (name, b"x")])
    with pytest.raises(RecipeError, match="not a plain relative path"):
        check_zip(tmp_path / "m.zip")


def test_symbolic_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    _write(tmp_path / "m.zip", [*GOOD.items(), (link, b"/etc/passwd")])
    with pytest.raises(RecipeError, match="link"):
        check_zip(tmp_path / "m.zip")


def test_absurd_sizes_are_refused(tmp_path):
    _write(tmp_path / "bomb.zip", [*GOOD.items(), ("zeros", b"\0" * 10_000_000)])
    with pytest.raises(RecipeError, match="swell"):
        check_zip(tmp_path / "bomb.zip")
    write_archive(tmp_path / "large.zip", GOOD)
    with pytest.raises(RecipeError, match="at most 100"):
        check_zip(tmp_path / "large.zip", max_bytes=100)
    _write(tmp_path / "many.zip", [*GOOD.items(), *((f"{i}", b"") for i in range(999))])
    with pytest.raises(RecipeError, match="1002 members"):
        check_zip(tmp_path / "many.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("x", "x"), ("x", "x/y")])
def test_members_that_overwrite_each_other_are_refused(tmp_path, names):
    _write(tmp_path / "m.zip", [*GOOD.items(), *((name, b"x") for name in names)])
    with pytest.raises(RecipeError, match="twice|both a file and a folder"):
        check_zip(tmp_path / "m.zip")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"{", "not valid YAML"),
        (b"[]", "files is not a mapping"),
        (b"files: {}\nyaml_files: {a: ../config.yaml}", "not in the zip"),
        (b"files: {a: [model.pth]}\nyaml_files: {}", "not in the zip"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_malformed_meta_is_refused(tmp_path, meta, message):
    write_archive(tmp_path / "m.zip", GOOD | {"meta.yaml": meta})
    with pytest.raises(RecipeError, match=message):
        check_zip(tmp_path / "m.zip")


def test_a_second_meta_cannot_stand_in_for_the_checked_one(tmp_path):
    write_archive(tmp_path / "m.zip", {"a/meta.yaml": META, **GOOD})
    with pytest.raises(RecipeError, match="at the top"):
        check_zip(tmp_path / "m.zip")


def test_damaged_zips_give_clear_errors_only(tmp_path):
    write_archive(tmp_path / "m.zip", GOOD)
    whole = (tmp_path / "m.zip").read_bytes()
    refused, positions = 0, range(0, 700, 37)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position % len(whole)] ^= 0xFF
        for content in (bytes(damaged), whole[:position]):
            (tmp_path / "d.zip").write_bytes(content)
            try:
                check_zip(tmp_path / "d.zip")
            except RecipeError:
                refused += 1
    # A flipped date or attribute bit may be harmless; most damage is not.
    assert refused > len(positions)
    with pytest.raises(RecipeError, match="file not found"):
        check_zip(tmp_path / "missing.zip")
