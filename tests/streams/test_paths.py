import os
from pathlib import Path

import pytest

from torchrsm.streams.paths import (
    files_with_suffix,
    files_without_suffix,
    printable,
    require_file,
    require_folder,
    require_local,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.png", "plain.png"),
        ("é ü 漢.png".encode(), "é ü 漢.png"),
        (b"caf\xe9.png", r"caf\udce9.png"),
        (b"two\nlines\x1b[2J.png", r"two\nlines\x1b[2J.png"),
        (b"\xff", r"\udcff"),
    ],
)
def test_every_name_can_be_printed_on_one_line(name, shown):
    for path in (os.fsdecode(name), Path(os.fsdecode(name))):
        assert printable(path) == shown
    printable(os.fsdecode(name)).encode("utf-8")


@pytest.mark.parametrize("check", [require_file, require_folder])
def test_errors_about_names_of_any_bytes_can_be_printed(tmp_path, check):
    path = tmp_path / os.fsdecode(b"\xe9\n")
    with pytest.raises(FileNotFoundError, match=r"\\udce9\\n must be an existing") as error:
        check(path)
    str(error.value).encode("utf-8")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("http://a.org/b.png", "on this computer is needed; got the address"),
        ("S3+x://a\ud800", "on this computer is needed; got the address"),
        ("a\0b", "must not hold a zero byte"),
        (None, "a path must be a str or a Path; got NoneType"),
        (7, "a path must be a str or a Path; got int"),
        (b"a.png", "a path must be a str or a Path; got bytes"),
    ],
)
def test_refuses_what_is_no_path(path, message):
    with pytest.raises(ValueError, match=message):
        require_local(path)


def test_says_what_is_at_a_path(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    for check, name, error, message in (
        (require_file, "gone", FileNotFoundError, "must be an existing file; got nothing at that path"),
        (require_file, "link", FileNotFoundError, "must be an existing file; got a link to nothing"),
        (require_file, ".", IsADirectoryError, "must be a file; got a folder"),
        (require_file, "pipe", ValueError, "must be a file; got a device or a pipe"),
        (require_folder, "gone", FileNotFoundError, "must be an existing folder; got nothing"),
        (require_folder, "link", FileNotFoundError, "must be an existing folder; got a link to nothing"),
        (require_folder, "file", NotADirectoryError, "must be a folder; got a file"),
    ):
        with pytest.raises(error, match=message):
            check(tmp_path / name)
    assert require_file(str(tmp_path / "file")) == tmp_path / "file"
    assert require_folder(tmp_path) == tmp_path


def test_a_dash_and_a_protocol_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-", "--frames", "file:a", "-a.png"):
        Path(name).write_text("")
        assert require_file(name) == Path(name)


def test_files_of_a_folder_come_in_natural_order(tmp_path):
    names = ["F1.PNG", "f2.png", "f02.png", "f10.Png", "f10a.png", "f10b2.png", "f10b10.png", "g.png", "é1.png"]
    for name in [*names, ".hidden.png", "notes.txt", "frame1"]:
        (tmp_path / name).write_text("")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    expected = ["F1.PNG", "f02.png", "f2.png", "f10.Png", "f10a.png", "f10b2.png", "f10b10.png", "g.png", "é1.png"]
    assert [path.name for path in files_with_suffix(tmp_path, [".png"])] == expected


def test_a_number_of_any_length_is_in_order(tmp_path):
    names = ["9" * 200, "1" + "0" * 200, "²", "1²"]  # a small two above the line is no digit of a number
    for name in names:
        (tmp_path / name).write_text("")
    assert {path.name for path in files_without_suffix(tmp_path)} == set(names)
    assert [path.name for path in files_without_suffix(tmp_path)][:3] == ["1²", "9" * 200, "1" + "0" * 200]


def test_files_without_a_suffix_are_those_of_no_kind(tmp_path):
    for name in ("frame1", "frame.0002", "a.b.7", "film.mp4", ".hidden", "x.png", "dot."):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("gone")
    assert [path.name for path in files_without_suffix(tmp_path)] == ["a.b.7", "dot.", "frame1", "frame.0002"]


def test_a_link_to_nothing_is_missing_and_a_link_to_a_file_is_one(tmp_path):
    (tmp_path / "1.png").write_text("")
    (tmp_path / "2.png").symlink_to("1.png")
    assert [path.name for path in files_with_suffix(tmp_path, [".png"])] == ["1.png", "2.png"]
    (tmp_path / "3.png").symlink_to("gone.png")
    with pytest.raises(FileNotFoundError, match=r"3\.png must be an existing file; got a link to nothing"):
        files_with_suffix(tmp_path, [".png"])
