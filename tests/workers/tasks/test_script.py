"""A user's own script as the task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from workers.config import TrainingConfig
from workers.errors import TaskError
from workers.tasks import script


def run(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    return script.run(config(path), make_job=lambda: None)


def config(path: Path) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "job", "task": {"script": path}})


def test_it_runs_as_main_beside_its_own_modules(tmp_path: Path) -> None:
    (tmp_path / "beside_the_script.py").write_text("VALUE = 41\n")
    text = (
        "import sys\nfrom beside_the_script import VALUE\n"
        "if __name__ == '__main__':\n    RESULT = {'value': VALUE + 1, 'argv': sys.argv}\n"
    )
    before = (list(sys.argv), list(sys.path))
    assert run(tmp_path / "train.py", text) == {"value": 42, "argv": [str(tmp_path / "train.py")]}
    assert (sys.argv, sys.path) == before


def test_without_a_result_there_is_none(tmp_path: Path) -> None:
    assert run(tmp_path / "train.py", "x = 1\n") == {}
    assert run(tmp_path / "train.py", "import sys\nsys.exit()\n") == {}


def test_what_the_script_raises_passes(tmp_path: Path) -> None:
    before = list(sys.path)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "train.py", "1 / 0\n")
    assert sys.path == before


@pytest.mark.parametrize(("code", "words"), [("3", "with exit status 3"), ("'no data'", "with the words 'no data'")])
def test_an_exit_of_the_script_is_a_failure_of_the_task(tmp_path: Path, code: str, words: str) -> None:
    """A worker that only went away would be started again and again."""
    before = list(sys.path)
    with pytest.raises(TaskError, match=rf"train\.py ended by sys\.exit\(\) {words}") as failure:
        run(tmp_path / "train.py", f"raise SystemExit({code})\n")
    assert failure.value.exit_code == 1
    assert sys.path == before


def test_a_result_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="sets RESULT to a int; make it a dict"):
        run(tmp_path / "train.py", "RESULT = 3\n")


def test_a_missing_script_is_named_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no file .*gone\.py"):
        script.preload(config(tmp_path / "gone.py"))
    (tmp_path / "here.py").write_text("")
    script.preload(config(tmp_path / "here.py"))
