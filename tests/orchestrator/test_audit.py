"""EP-17: the audit finds a sample that was lost or doubled, whoever made the mistake."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit import EpochAudit, audit, main
from orchestrator.errors import UserError

N, BATCH, WORLD, EPOCHS = 20, 8, 3, 2  # steps of 8, 8 and 4 samples in each epoch

Line = dict[str, Any]


class Job:
    """What a job would have recorded; broken on purpose by the tests, then written."""

    def __init__(self, epochs: int = EPOCHS) -> None:
        self.steps: list[Line] = []
        self.read: dict[str, list[Line]] = {f"rank-{rank}": [] for rank in range(WORLD)}
        for epoch in range(epochs):
            order = random.Random(epoch).sample(range(N), N)
            for start in range(0, N, BATCH):
                self.commit(epoch, order[start : start + BATCH])

    def commit(self, epoch: int, ids: list[int], generation: tuple[int, int] = (1, 1), attempt: int = 0) -> None:
        header = {"step": len(self.steps) + 1, "generation": list(generation), "attempt": attempt, "epoch": epoch}
        self.steps.append({**header, "samples": len(ids)})
        for rank, lines in enumerate(self.read.values()):
            lines.append({**header, "ids": ids[rank::WORLD]})

    def write(self, folder: Path) -> Path:
        (folder / "samples").mkdir()
        _write(folder / "steps.jsonl", self.steps)
        for name, lines in self.read.items():
            _write(folder / "samples" / f"{name}.jsonl", lines)
        return folder


def _write(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_ep17_a_job_that_read_each_sample_once_passes(tmp_path: Path) -> None:
    result = audit(Job().write(tmp_path))
    assert result.problems == []
    assert result.each_once
    assert result.per_epoch == N
    assert result.epochs == [EpochAudit(0, 3, N, True), EpochAudit(1, 3, N, True)]
    assert (result.steps, result.discarded) == (6, 0)


def drop_a_sample(job: Job) -> None:
    job.read["rank-0"][1]["ids"].pop()


def drop_a_sample_and_say_so(job: Job) -> None:
    """The plan itself is wrong: step and records agree, a sample of epoch 0 is in no step."""
    job.read["rank-0"][1]["ids"].pop()
    job.steps[1]["samples"] -= 1


def drop_a_sample_of_the_last_epoch(job: Job) -> None:
    job.read["rank-0"][4]["ids"].pop()
    job.steps[4]["samples"] -= 1


def double_a_sample_inside_a_step(job: Job) -> None:
    job.read["rank-1"][2]["ids"][0] = job.read["rank-0"][2]["ids"][0]


def double_a_sample_across_steps(job: Job) -> None:
    job.read["rank-0"][4]["ids"][0] = job.read["rank-0"][3]["ids"][0]


def record_under_another_generation(job: Job) -> None:
    job.read["rank-2"][0]["generation"] = [1, 2]


def record_under_another_attempt(job: Job) -> None:
    job.read["rank-2"][0]["attempt"] = 1


def record_under_another_epoch(job: Job) -> None:
    job.read["rank-2"][0]["epoch"] = 1


def lose_a_file(job: Job) -> None:
    del job.read["rank-1"]


def lose_all_files(job: Job) -> None:
    job.read.clear()


def record_twice(job: Job) -> None:
    job.read["rank-0"].insert(1, {**job.read["rank-0"][0], "ids": []})


def read_a_foreign_sample(job: Job) -> None:
    job.read["rank-0"][0]["ids"][0] = 10**12


def lose_a_line_of_steps(job: Job) -> None:
    del job.steps[2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_a_sample, "step 2 (generation 1.1, attempt 0) committed 8 samples, but 7 were recorded as read"),
        (drop_a_sample_and_say_so, "in no committed step"),
        (drop_a_sample_of_the_last_epoch, "epoch 1: sample"),
        (double_a_sample_inside_a_step, "more than once"),
        (double_a_sample_across_steps, "in more than one committed step"),
        (record_under_another_generation, "step 1 (generation 1.1, attempt 0) committed 8 samples"),
        (record_under_another_attempt, "step 1 (generation 1.1, attempt 0) committed 8 samples"),
        (record_under_another_epoch, "in epoch 1, not 0"),
        (lose_a_file, "were recorded as read"),
        (lose_all_files, "nothing in samples/ was recorded for step 1"),
        (record_twice, "samples/rank-0.jsonl has step 1 (generation 1.1, attempt 0) twice"),
        (read_a_foreign_sample, "in no committed step"),
        (lose_a_line_of_steps, "steps.jsonl has no line for step 3"),
    ],
)
def test_ep17_a_broken_plan_is_seen(tmp_path: Path, damage: Callable[[Job], None], said: str) -> None:
    job = Job()
    damage(job)
    result = audit(job.write(tmp_path))
    assert not result.each_once
    assert any(said in problem for problem in result.problems), result.problems


def test_ep17_a_step_recomputed_after_a_discard_counts_once(tmp_path: Path) -> None:
    """Step 2 was committed by a rank that died alone: recomputed under the next generation, attempt 1 (EP-10)."""
    job = Job()
    dead = job.steps[1]
    job.steps.append({**dead, "generation": [1, 2], "attempt": 1})
    for later in job.steps[2:6]:
        later["generation"] = [1, 2]
    for lines in job.read.values():
        for line in lines[2:]:
            line["generation"] = [1, 2]
        lines.append({**lines[1], "generation": [1, 2], "attempt": 1})
    result = audit(job.write(tmp_path))
    assert result.problems == []
    assert (result.steps, result.discarded) == (6, 1)


def test_ep17_steps_recomputed_after_a_resume_supersede(tmp_path: Path) -> None:
    """Killed in epoch 1 after step 5, resumed from step 3: steps 4 and 5 are read again, from other ranks."""
    job = Job()
    again = [dict(step) for step in job.steps[3:]]
    reread = {name: [dict(line) for line in lines[3:]] for name, lines in job.read.items()}
    del job.steps[5]
    for lines in job.read.values():
        del lines[5]
    for step in again:
        job.steps.append({**step, "generation": [2, 1]})
    for name, lines in reread.items():
        job.read[f"second-{name}"] = [{**line, "generation": [2, 1]} for line in lines]
    result = audit(job.write(tmp_path))
    assert result.problems == []
    assert result.epochs == [EpochAudit(0, 3, N, True), EpochAudit(1, 3, N, True)]
    assert (result.steps, result.discarded) == (6, 2)


def test_ep17_an_unfinished_epoch_has_each_sample_at_most_once(tmp_path: Path) -> None:
    job = Job()
    job.steps.pop()
    result = audit(job.write(tmp_path))
    assert result.problems == []
    assert result.epochs[1] == EpochAudit(1, 2, 16, False)
    assert result.discarded == 0  # the step that was under way when the job stopped


def test_ep17_a_single_epoch_is_complete_only_without_a_hole(tmp_path: Path) -> None:
    assert audit(Job(epochs=1).write(tmp_path)).per_epoch == N
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    job = Job(epochs=1)
    job.steps.pop()
    result = audit(job.write(unfinished))
    assert (result.each_once, result.per_epoch) == (True, None)


@pytest.mark.parametrize("source", ["result", "plan"])
def test_ep17_a_stated_size_is_held_against_the_ids(tmp_path: Path, source: str) -> None:
    """The last sample is in no epoch at all, which only the stated size of the data set can show."""
    folder = Job().write(tmp_path)
    if source == "result":
        (folder / "result.json").write_text(json.dumps({"num_samples": N + 1}))
    else:
        _write(folder / "events.jsonl", [{"t": 1.0, "kind": "plan", "total_steps": 6, "num_samples": N + 1}])
    assert f"epoch 0: sample {N} in no committed step" in audit(folder).problems


def test_ep17_more_samples_than_stated_are_a_problem(tmp_path: Path) -> None:
    folder = Job().write(tmp_path)
    (folder / "result.json").write_text(json.dumps({"num_samples": N - 1}))
    assert f"sample {N - 1} was read, but there are {N - 1} samples, 0 to {N - 2}" in audit(folder).problems


def test_ep17_a_torn_record_of_a_killed_rank_harms_nothing(tmp_path: Path) -> None:
    folder = Job().write(tmp_path)
    with (folder / "samples" / "rank-1.jsonl").open("a") as file:
        file.write('{"step": 7, "generation": [1, 1], "attempt": 0, "epoch": 2, "ids": [3, ')
    assert audit(folder).each_once


def test_ep17_the_program_stands_alone(tmp_path: Path, child_environment: dict[str, str]) -> None:
    """A process of its own that loads neither the sampler nor anything else that trains; it exits 0, or 1."""
    folder = Job().write(tmp_path)
    program = (
        "import sys; from pathlib import Path; from orchestrator.audit import main; code = main(Path(sys.argv[1])); "
        "assert not any(name.split('.')[0] in ('workers', 'torch', 'ray') for name in sys.modules); sys.exit(code)"
    )
    done = run("-c", program, str(folder), env=child_environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "audit: each sample once, 6 committed steps, 0 discarded attempts"
    (folder / "samples" / "rank-2.jsonl").unlink()
    done = run("-m", "orchestrator.audit", str(folder), env=child_environment)
    assert done.returncode == 1
    assert "problem: step 1 (generation 1.1, attempt 0) committed 8 samples, but 6 were recorded" in done.stdout


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)


def test_nothing_to_audit_is_one_sentence(tmp_path: Path, child_environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"has no steps\.jsonl; write the folder of a job") as found:
        main(tmp_path)
    assert found.value.exit_code == 3
    _write(tmp_path / "steps.jsonl", Job().steps)
    with pytest.raises(UserError, match="train with record_samples: true") as found:
        main(tmp_path)
    assert found.value.exit_code == 3
    done = run("-m", "orchestrator.audit", env=child_environment)
    assert (done.returncode, done.stderr) == (2, "write: python -m orchestrator.audit FOLDER_OF_A_JOB\n")
