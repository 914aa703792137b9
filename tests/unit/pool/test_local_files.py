"""Files as a table names them: with blanks, other separators, invisible signs and the two forms of accented letters."""

from pathlib import Path

from alloop.pool.local_files import LOCAL_DISK

NFC, NFD = "caf\u00e9", "cafe\u0301"


def found(folder: Path, name: str) -> Path | None:
    location = LOCAL_DISK.find(name, folder)
    return None if location is None else Path(location)


def test_a_file_is_found_as_written_then_as_it_is_meant(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", " b.png", "sub/c.png", f"sub/{NFD}.png"):
        (tmp_path / name).touch()

    assert found(tmp_path, " a.png ") == tmp_path / "a.png"
    assert found(tmp_path, " b.png") == tmp_path / " b.png"
    assert found(tmp_path, "sub\\c.png") == tmp_path / "sub" / "c.png"
    assert found(tmp_path, "a.png\u200b") == tmp_path / "a.png"
    assert found(tmp_path, "\u200esub\\c.png") == tmp_path / "sub" / "c.png"
    assert found(tmp_path, f"sub\\{NFC}.png") == tmp_path / "sub" / f"{NFD}.png"
    assert found(tmp_path, "b.png") is None
    assert found(tmp_path, "") is None


def test_two_files_whose_names_look_alike_are_told_apart_or_neither_is_taken(tmp_path: Path):
    for name in (f"{NFC}1.png", f"{NFD}1.png", "o\u0302\u0323.png", "\u00f4\u0323.png"):
        (tmp_path / name).touch()

    assert found(tmp_path, f"{NFD}1.png") == tmp_path / f"{NFD}1.png"
    assert found(tmp_path, "\u1ed9.png") is None
