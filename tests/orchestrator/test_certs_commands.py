"""`quantarion certs init|rotate|show`, and what operators are told where their certificate is of no use."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from orchestrator import cli, operator_commands, status, stop
from orchestrator.authority import DAY, Authority, Pair
from orchestrator.certificates import AUTHORITY, Certificates
from orchestrator.errors import ExitCode, UserError
from orchestrator.peers import OPERATOR
from tests.orchestrator.fake_operator import append, make_job
from tests.orchestrator.guarded import guarded
from workers import tls


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`quantarion certs WORDS` with the test's storage: exit code, stdout, stderr."""
    return Run(monkeypatch, capsys, tmp_path)


class Run:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path) -> None:
        self._monkeypatch, self._capsys, self._storage = monkeypatch, capsys, storage

    def __call__(self, command: str, *words: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["quantarion", "certs", command, "--storage", str(self._storage), *words])
        try:
            code = cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return code, said.out, said.err


def test_a_job_that_has_never_run_gets_certificates(run: Run, tmp_path: Path) -> None:
    assert run("init", "demo", "--days", "7") == (0, "demo: made the certificates of coordinator, operator\n", "")
    assert Certificates(tmp_path / "demo", "demo").lifetime() == 7 * DAY
    assert not (tmp_path / "demo").exists()
    code, _, said = run("init", "demo")
    assert code == ExitCode.USAGE and "has certificates already" in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["Demo", "-demo", "a/b", "..", "x" * 64])
def test_what_is_no_name_of_a_job_gets_none(run: Run, tmp_path: Path, name: str) -> None:
    code, _, said = run("init", "--", name)
    assert code == ExitCode.USAGE and "is no name of a job; write at most 63 lower-case letters" in said
    assert list(tmp_path.iterdir()) == []


def test_they_are_replaced_and_shown(run: Run, tmp_path: Path) -> None:
    run("init", "demo")
    Certificates(tmp_path / "demo", "demo").keep(["host-1"], time.time())
    code, said, _ = run("rotate", "demo", "--ca")
    assert (code, said) == (0, "demo: replaced the certificates of coordinator, operator, agent of host-1\n")
    make_job(tmp_path, "demo")
    for check, times in (("expiry", 1), ("role", 2), ("expiry", 40)):
        append(tmp_path / "demo" / "events.jsonl", {"t": 1.0, "kind": "peer_refused", "check": check, "times": times})
    code, said, _ = run("show", "demo")
    lines = said.splitlines()
    assert code == 0 and lines[-1] == "refused peers: 41 by the check 'expiry', 2 by the check 'role'"
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        *(tls.TRUSTED, tls.TRUSTED, "agent-host-1.pem", "coordinator.pem", "operator.pem")
    ]
    code, said, _ = run("show", "demo", "--json")
    shown = json.loads(said)
    assert shown["refused"] == {"expiry": 41, "role": 2}
    assert [each["of"] for each in shown["certificates"]][2:] == ["agent of host-1", "coordinator", "operator"]
    assert {each["signed by"] for each in shown["certificates"][2:]} == {shown["certificates"][0]["signed by"]}


@pytest.mark.parametrize("words", [("rotate", "demo"), ("show", "demo"), ("rotate", "demo", "--at-once")])
def test_what_cannot_be_done_is_one_line(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, said = run(*words)
    assert (code, out, said.count("\n")) == (ExitCode.USAGE, "", 1) and said.startswith("quantarion: ")


def test_a_folder_that_cannot_be_used_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".demo.tls").touch()
    code, _, said = run("init", "demo")
    assert code == ExitCode.STORAGE and f"{tmp_path / '.demo.tls'} cannot be used" in said and said.count("\n") == 1


# ---------------------------------------------------------------------- operators


def test_operators_talk_to_a_coordinator_that_asks_for_certificates(tmp_path: Path) -> None:
    with guarded(tmp_path) as port:
        _announce(port.folder, port.entrance.address, port.entrance.server_name)
        state = status.fetch(port.folder, timeout=30.0)
        assert state is not None and state["job"] == "demo"
        assert operator_commands.drain("demo", "host-1", "test", tmp_path) == 0
        stop.ask(port.folder, False, "test")
        assert port.behind.asked == ["Status", "Status", "drain", "Status", "Stop"]


def test_without_a_certificate_they_are_told_why(tmp_path: Path) -> None:
    with guarded(tmp_path) as port:
        _announce(port.folder, port.entrance.address, port.entrance.server_name)
        certificates = port.certificates
        authority = Authority(Pair(*tls.split((certificates.folder / AUTHORITY).read_bytes())))
        expired = authority.issue(OPERATOR, "demo", time.time() - 10 * DAY, 3 * DAY)
        (certificates.folder / tls.OPERATOR).write_bytes(expired.pem)
        assert status.fetch(port.folder, timeout=30.0) is None
        _told(port.folder, "the certificate of the operator of demo has expired 7.0 days ago")
        assert port.refused.get(timeout=30.0)["check"] == "expiry"
        (certificates.folder / tls.OPERATOR).write_text("torn")
        _told(port.folder, f"{certificates.folder / tls.OPERATOR} is damaged")
        assert port.behind.asked == []


def _told(folder: Path, sentence: str) -> None:
    """By every command alike."""
    assert str(status.read(folder)["message"]).startswith(sentence)
    for ask in (
        lambda: operator_commands.drain("demo", "host-1", "test", folder.parent),
        lambda: operator_commands.events("demo", folder.parent, follow=True, as_json=False),
        lambda: stop.ask(folder, False, "test"),
    ):
        with pytest.raises(UserError) as told:
            ask()
        assert str(told.value).startswith(sentence) and told.value.exit_code == ExitCode.RAY


def _announce(folder: Path, address: str, server_name: str) -> None:
    """As the coordinator does."""
    content = {"incarnation": 1, "address": address, "pid": 1, "started": 0.0, "tls": server_name}
    (folder / "coordinator.json").write_text(json.dumps(content))
    (folder / "job.json").write_text(json.dumps({"name": "demo"}))
