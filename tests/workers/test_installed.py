"""What a host says that it would train with (GM-9)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from workers import installed
from workers.installed import software


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("RESULT = {}\n")
    (tmp_path / "job.json").write_text(json.dumps({"task": {"script": str(tmp_path / "train.py")}}))
    return tmp_path


def test_gm9_two_looks_at_the_same_are_equal_and_complete(job: Path) -> None:
    found = software(job)
    assert found == software(job)
    assert all(found.values()) and set(found) == {"python", "torch", "quantarion", "job", "script"}
    assert "+" not in found["torch"]


def test_gm9_another_script_or_job_is_seen(job: Path) -> None:
    before = software(job)
    (job / "train.py").write_text("RESULT = {'accuracy': 1}\n")
    after = software(job)
    assert [what for what in before if before[what] != after[what]] == ["script"]
    (job / "job.json").write_text((job / "job.json").read_text() + "\n")
    assert [what for what in before if software(job)[what] != after[what]] == ["job"]


@pytest.mark.parametrize("content", [None, "", "[", "[]", "{}", '{"task": {"script": null}}', '{"task": {"script": 3}}'])
def test_gm9_what_is_not_there_is_empty(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    assert software(tmp_path)["script"] == ""


def test_gm9_a_script_is_looked_for_where_the_job_was_begun(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text("RESULT = {}\n")
    for begun, found in ((str(tmp_path / "project"), True), (str(tmp_path / "gone"), False)):
        (tmp_path / "job.json").write_text(json.dumps({"task": {"script": "train.py"}, "started_in": begun}))
        assert bool(software(tmp_path)["script"]) is found


def test_gm9_every_source_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("A = 1\n")
    monkeypatch.setattr(installed, "FOLDERS", {"package": package, "missing": tmp_path / "missing"})
    digests = []
    for change in (None, ("one.py", "A = 2\n"), ("two.py", "A = 2\n"), ("notes.txt", "no source")):
        if change is not None:
            (package / change[0]).write_text(change[1])
        installed.sources.cache_clear()
        digests.append(installed.sources())
    moved = package.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(installed, "FOLDERS", {"package": moved, "missing": tmp_path / "missing"})
    installed.sources.cache_clear()
    digests.append(installed.sources())
    installed.sources.cache_clear()
    assert len(set(digests[:3])) == 3 and digests[2] == digests[3] == digests[4]


def test_gm9_the_folders_are_those_that_were_imported() -> None:
    for name, folder in installed.FOLDERS.items():
        module = importlib.import_module(name.replace("/", "."))
        assert str(folder) in [str(Path(place)) for place in module.__path__]
        assert any(folder.rglob("*.py"))
