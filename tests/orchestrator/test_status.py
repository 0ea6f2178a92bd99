"""`quantarion status` with a coordinator that answers, is silent, is another job's, or has gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quantarion.v1 import control_pb2, operator_pb2

from orchestrator import status
from orchestrator.errors import ExitCode, UserError
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served


def reply(job: str) -> operator_pb2.StatusReply:
    return operator_pb2.StatusReply(
        job=job,
        phase="training",
        step=41,
        total_steps=100,
        generation=control_pb2.Generation(incarnation=1, counter=3),
        ranks=[
            operator_pb2.RankStatus(rank=0, host="host-1", pid=11, state="training", step=41),
            operator_pb2.RankStatus(rank=-1, host="host-1", pid=12, state="idle"),
        ],
        hosts=[
            operator_pb2.HostStatus(
                host="host-1", address="127.0.0.2", state="healthy", agent_pid=10, group="a", memory=0.5
            )
        ],
        discarded=2,
        phi=1.5,
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where connections are accepted and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def step_line(step: int, generation: list[int]) -> dict[str, object]:
    return {"step": step, "generation": generation, "loss": 1.0}


def test_a_running_job_is_shown_as_its_coordinator_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeOperator(reply("demo"))) as address:
        make_job(tmp_path, "demo", address=address)
        assert status.show("demo", tmp_path, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["answering"] is True
    assert (shown["job"], shown["phase"], shown["step"], shown["total_steps"]) == ("demo", "training", 41, 100)
    assert shown["generation"] == [1, 3]
    assert shown["discarded"] == 2
    assert (shown["phi"], shown["lockstep"], shown["out_of_phase"]) == (1.5, None, 0)
    assert shown["ranks"][0] == {"rank": 0, "host": "host-1", "pid": 11, "state": "training", "step": 41}
    host = {"host": "host-1", "address": "127.0.0.2", "state": "healthy", "agent_pid": 10, "through": "", "group": "a"}
    unknown = {"standing": "", "score": None, "reason": "", "trust": 0.0, "evictions": 0, "returns_at": None}
    sensors: dict[str, object] = {"memory": 0.5, "disk": None, "load": None, "cpu": None, "short_of": []}
    assert shown["hosts"] == [{**host, **unknown, "excluded": False, **sensors}]


def test_text_names_ranks_and_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeOperator(reply("demo"))) as address:
        make_job(tmp_path, "demo", address=address)
        status.show("demo", tmp_path, as_json=False)
    text = capsys.readouterr().out
    assert text.startswith("demo: training, step 41/100, generation 1.3, 1 rank\n")
    assert "rank 0" in text and "idle" in text and "127.0.0.2       healthy  group a\n" in text
    assert "  phi 1.5000\n" in text


def test_only_the_driver_counts_as_the_driver(tmp_path: Path) -> None:
    operator = FakeOperator(reply("demo"))
    with served(operator) as address:
        folder = make_job(tmp_path, "demo", address=address)
        status.fetch(folder)
        status.fetch(folder, driver=True)
    assert [question.driver for question in operator.questions] == [False, True]


def test_who_asks_again_and_again_connects_once(tmp_path: Path) -> None:
    first, second = FakeOperator(reply("demo")), FakeOperator(reply("demo"))
    with served(first) as address, served(second) as other:
        folder = make_job(tmp_path, "demo", address=address)
        link = status.Link(folder)
        assert all(link.fetch(30.0) for _ in range(3))
        moved = {"incarnation": 2, "address": other, "pid": 1, "started": 0.0}
        (folder / "coordinator.json").write_text(json.dumps(moved))
        assert all(link.fetch(30.0) for _ in range(2))
        link.close()
        assert link.fetch(30.0) is not None  # it may be used again
        link.close()
    assert (len(first.connections), len(set(first.connections))) == (3, 1)
    assert len(second.connections) == 3 and second.connections[0] == second.connections[1]


def test_a_silent_coordinator_costs_a_bounded_time_and_the_logs_speak(tmp_path: Path, silent: str) -> None:
    folder = make_job(tmp_path, "demo", address=silent)
    append(folder / "steps.jsonl", step_line(6, [1, 1]), step_line(7, [1, 1]), step_line(6, [1, 2]))
    members = [{"rank": 0, "host": "host-1", "pid": 5, "worker": "w"}]
    append(folder / "events.jsonl", {"t": 1, "kind": "generation", "generation": [1, 2], "members": members})
    state = status.read(folder)
    assert state["answering"] is False
    assert state["phase"] == "training"
    assert state["step"] == 6  # of the highest generation, not the highest number
    assert state["generation"] == [1, 2]
    assert [rank["pid"] for rank in state["ranks"]] == [5]
    assert silent in state["message"]


def test_the_coordinator_of_another_job_on_the_old_port_is_not_believed(tmp_path: Path) -> None:
    with served(FakeOperator(reply("other"))) as address:
        folder = make_job(tmp_path, "demo", address=address)
        assert status.fetch(folder) is None
        assert status.read(folder)["answering"] is False


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    folder = make_job(tmp_path, "demo")
    append(folder / "steps.jsonl", step_line(8, [2, 1]))
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"step": 9, "gener')
    assert status.read(folder)["step"] == 8


def test_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    folder = make_job(tmp_path, "demo")
    append(folder / "steps.jsonl", *(step_line(number, [1, 1]) for number in range(1, 10_001)))
    assert (folder / "steps.jsonl").stat().st_size > 1 << 18
    records = status.tail(folder / "steps.jsonl", frozenset({"step"}))
    assert records[-1]["step"] == 10_000
    assert len(records) < 10_000
    assert status.read(folder)["step"] == 10_000


@pytest.mark.parametrize(
    ("code", "phase"), [(ExitCode.DONE, "finished"), (ExitCode.STOPPED, "finished"), (ExitCode.FAILED, "failed")]
)
def test_how_it_ended_stands_in_the_journal(tmp_path: Path, code: ExitCode, phase: str) -> None:
    folder = make_job(tmp_path, "demo", address="127.0.0.1:1")
    append(folder / "control" / "journal.jsonl", {"entry": "started"}, {"entry": "ended", "exit_code": int(code)})
    state = status.read(folder)
    assert (state["phase"], state["exit_code"]) == (phase, code)
    append(folder / "control" / "journal.jsonl", {"entry": "started"})  # resumed
    assert status.read(folder)["exit_code"] is None


@pytest.mark.parametrize(("verified", "code"), [(False, ExitCode.GATE), (True, ExitCode.DONE), (None, ExitCode.DONE)])
def test_a_model_that_is_not_verified_is_told(tmp_path: Path, verified: bool | None, code: ExitCode) -> None:
    folder = make_job(tmp_path, "demo")
    append(folder / "control" / "journal.jsonl", {"entry": "ended", "exit_code": 0})
    (folder / "result.json").write_text(json.dumps({"verified": verified}))
    state = status.read(folder)
    assert (state["phase"], state["exit_code"]) == ("finished", code)
    assert ("not verified" in state["message"]) is (code == ExitCode.GATE)


def test_a_failure_is_told_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_job(tmp_path, "demo", address="127.0.0.1:1")
    reason = "fewer than hosts.min=2 hosts for 300 s"
    append(folder / "control" / "journal.jsonl", {"entry": "started"}, {"entry": "ended", "exit_code": 9})
    append(folder / "events.jsonl", {"t": 1.0, "kind": "failed", "step": 7, "message": reason, "exit_code": 9})
    status.show("demo", tmp_path, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1].strip() == reason
    append(folder / "events.jsonl", {"t": 2.0, "kind": "coordinator_started"})  # resumed; its end is not on record
    assert status.read(folder)["message"] == "It ended with exit code 9."


def test_the_end_on_record_is_that_of_the_last_run(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert status.recorded_end(tmp_path) is None
    append(events, {"t": 1.0, "kind": "finished", "message": "", "exit_code": 130})
    assert status.recorded_end(tmp_path) == {"t": 1.0, "kind": "finished", "message": "", "exit_code": 130}
    append(events, {"t": 2.0, "kind": "coordinator_started"}, {"t": 3.0, "kind": "phase"})
    assert status.recorded_end(tmp_path) is None
    append(events, {"t": 4.0, "kind": "failed", "message": "no", "exit_code": 3}, {"t": 5.0, "kind": "worker_exit"})
    end = status.recorded_end(tmp_path)
    assert end is not None and end["exit_code"] == 3


def test_the_end_of_the_run_before_is_not_that_of_one_whose_coordinator_has_not_begun(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    append(events, {"t": 1.0, "kind": "finished", "message": "", "exit_code": 0})
    before = events.stat().st_size
    assert status.recorded_end(tmp_path, before) is None
    append(events, {"t": 2.0, "kind": "failed", "message": "nobody can be let in", "exit_code": 4})
    assert status.recorded_end(tmp_path, before) == {
        "t": 2.0,
        "kind": "failed",
        "message": "nobody can be let in",
        "exit_code": 4,
    }


def test_a_folder_moved_aside_keeps_its_name(tmp_path: Path) -> None:
    folder = make_job(tmp_path, "demo")
    assert status.read(folder.rename(tmp_path / "demo.1"))["job"] == "demo"


def test_an_unknown_job_is_refused_with_the_folder_and_the_known_ones(tmp_path: Path) -> None:
    make_job(tmp_path, "demo")
    with pytest.raises(UserError) as refusal:
        status.show("dmeo", tmp_path, as_json=False)
    assert refusal.value.exit_code == ExitCode.USAGE
    assert str(tmp_path) in str(refusal.value) and "demo" in str(refusal.value)


def test_storage_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError) as refusal:
        status.show(None, tmp_path / "runs", as_json=False)
    assert refusal.value.exit_code == ExitCode.STORAGE


def test_without_a_name_all_jobs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], silent: str) -> None:
    with served(FakeOperator(reply("alpha"))) as address:
        make_job(tmp_path, "alpha", address=address)
        for number in range(5):
            make_job(tmp_path, f"silent-{number}", address=silent)
        (tmp_path / "not-a-job").mkdir()
        make_job(tmp_path, ".alpha.new")  # a start of it was killed before it had moved anything
        assert status.show(None, tmp_path, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["alpha", *(f"silent-{number}" for number in range(5))]
    assert "no answer" in lines[1]


def test_no_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.show(None, tmp_path / "runs", as_json=False) == 0
    assert "No job" in capsys.readouterr().out
    assert status.show(None, tmp_path / "runs", as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_status_imports_neither_ray_nor_torch(tmp_path: Path, child_environment: dict[str, str]) -> None:
    make_job(tmp_path, "demo")
    code = (
        "import sys; from pathlib import Path; from orchestrator import status; "
        f"status.show('demo', Path({str(tmp_path)!r}), True); "
        "sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=child_environment, check=False).returncode == 0
