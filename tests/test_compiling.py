import contextlib
import importlib.util
import os
import pwd
import resource
import tempfile

import numba
import pytest

from torchrsm.compiling import compiled

SOURCE = """
def twice(number):
    return 2 * number
"""


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """A function in a file of a folder that is installed read-only, of a user without a home."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__pycache__").touch()  # no folder of this name can be made
    file = tmp_path / "package" / "functions.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("functions", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.twice


@contextlib.contextmanager
def full_disk():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def private(tmp_path):
    (folder,) = (tmp_path / "temporary").iterdir()
    return folder


def hits(function):
    """Say how often machine code was taken from the disk in calling a function that was just decorated."""
    assert function(21) == 42
    return sum(function.stats.cache_hits.values())


def test_machine_code_lies_beside_the_source(tmp_path, twice):
    (tmp_path / "package" / "__pycache__").unlink()
    assert hits(compiled()(twice)) == 0
    assert hits(compiled()(twice)) == 1
    assert list((tmp_path / "package" / "__pycache__").glob("*.nbc"))
    assert not list((tmp_path / "temporary").iterdir())


def test_the_place_that_the_user_chose_goes_first(tmp_path, twice, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "chosen"))
    assert hits(compiled()(twice)) == 0
    assert list((tmp_path / "chosen").glob("*/*.nbc"))
    assert str(tmp_path / "chosen") == numba.config.CACHE_DIR


def test_without_such_a_place_it_lies_in_a_private_folder(tmp_path, twice):
    assert hits(compiled()(twice)) == 0
    assert hits(compiled()(twice)) == 1
    assert private(tmp_path).stat().st_mode & 0o777 == 0o700
    assert numba.config.CACHE_DIR == ""


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, twice):
    compiled()(twice)
    private(tmp_path).chmod(0o777)
    assert hits(compiled()(twice)) == hits(compiled()(twice)) == 0
    assert not list(private(tmp_path).glob("*/*.nbc"))


def test_a_link_to_a_folder_is_not_used(tmp_path, twice):
    compiled()(twice)
    name = private(tmp_path)
    name.rename(tmp_path / "elsewhere")
    name.symlink_to(tmp_path / "elsewhere")
    assert hits(compiled()(twice)) == hits(compiled()(twice)) == 0


def test_without_a_home_no_folder_of_a_strange_name_is_made(tmp_path, twice, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    assert hits(compiled()(twice)) == 0
    assert hits(compiled()(twice)) == 1
    assert private(tmp_path).is_dir()
    assert not (tmp_path / "~").exists()
    assert "HOME" not in os.environ


def test_without_any_place_each_process_compiles(tmp_path, twice):
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").touch()
    assert hits(compiled()(twice)) == hits(compiled()(twice)) == 0


def test_a_full_disk_is_no_error(tmp_path, twice):
    function = compiled()(twice)
    with full_disk():
        assert hits(function) == 0
    assert not list(private(tmp_path).glob("*/*.nb*"))
    assert hits(compiled()(twice)) == 0


@pytest.mark.parametrize("content", [b"", b"\x80\x05damaged", b"no machine code at all"])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_damaged_machine_code_is_made_again(tmp_path, twice, kind, content):
    assert hits(compiled()(twice)) == 0
    for file in private(tmp_path).glob(f"*/*.{kind}"):
        file.write_bytes(content)
    assert hits(compiled()(twice)) == 0
    assert hits(compiled()(twice)) == 1
