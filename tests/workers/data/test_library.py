"""The standard library as text: the same on every host with the same files, split by file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.data.library import END_OF_FILE, read_library
from workers.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of 100 bytes, f0.py to f39.py, some in a package; and what must be left out."""
    root = tmp_path_factory.mktemp("library")
    for number in range(40):
        write(root / ("package" if number % 3 else "") / f"f{number}.py", f"{number:03d}" * 33 + "\n")
    for name in ("site-packages/a.py", "json/tests/b.py", "test/c.py", "sitecustomize.py", "_sysconfigdata__linux.py"):
        write(root / name, "left out")
    write(root / "config-3.11-linux/python-config.py", "left out")
    write(root / "notes.txt", "left out")
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(text: bytes) -> list[bytes]:
    return text.split(END_OF_FILE)[:-1]


def test_everything_is_read_once_and_nothing_else(folder: Path) -> None:
    text = read_library(10**6, folder=folder)
    assert text.num_files == 40
    assert sorted(files(text.train) + files(text.held_out)) == [b"%03d" % i * 33 + b"\n" for i in range(40)]
    assert len(files(text.held_out)) == 4


@settings(max_examples=25)
@given(st.integers(200, 4500), st.integers(0, 2**40), st.integers(2, 12))
def test_the_texts_share_the_limit_and_no_file(folder: Path, limit: int, seed: int, every: int) -> None:
    text = read_library(limit, seed, every, folder)
    everything = read_library(10**6, seed, every, folder)
    assert len(text.held_out) == min(limit // every, len(everything.held_out))
    assert len(text.train) == min(limit - limit // every, len(everything.train))
    assert everything.train.startswith(text.train) and everything.held_out.startswith(text.held_out)
    assert not set(files(everything.train)) & set(files(everything.held_out))


def test_a_seed_changes_the_order_but_not_what_is_held_out(folder: Path) -> None:
    texts = [read_library(10**6, seed, folder=folder) for seed in range(4)]
    assert len({text.train for text in texts}) == 4
    assert len({text.held_out for text in texts}) == 1
    assert read_library(10**6, 2, folder=folder) == texts[2]


def test_the_digest_tells_texts_apart_and_fits_a_float64(folder: Path, tmp_path: Path) -> None:
    for source in folder.rglob("f*.py"):
        write(tmp_path / source.relative_to(folder), source.read_text())
    assert read_library(folder=tmp_path) == read_library(folder=folder)
    write(tmp_path / "f0.py", "another release")
    digests = [read_library(folder=root).digest for root in (folder, tmp_path)]
    assert digests[0] != digests[1]
    assert all(int(float(digest)) == digest < 2**48 for digest in digests)


def test_line_ends_do_not_count(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"f{number}.py").write_bytes(b"a\r\nb\r\n")
    assert read_library(held_out_every=2, folder=tmp_path).held_out == (b"a\nb\n" + END_OF_FILE) * 2


@pytest.mark.parametrize("number", [0, 1])
def test_without_a_library_one_sentence_says_so(number: int, tmp_path: Path) -> None:
    for index in range(number):
        write(tmp_path / f"f{index}.py", "x = 1\n")
    with pytest.raises(DataError, match=f"holds {number} source files of Python's standard library, too few"):
        read_library(folder=tmp_path)


def test_the_library_of_this_python_is_found() -> None:
    text = read_library(200_000)
    assert (len(text.train), len(text.held_out)) == (180_000, 20_000)
    assert text.num_files > 200 and b"import " in text.train and b"def " in text.held_out
