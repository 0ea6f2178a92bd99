"""GM-40: for what a pass is, for how long, and what is no pass; and what `train` makes of it."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec
from orchestrator.preflight import admission, passes
from orchestrator.preflight.hosts import Host
from orchestrator.preflight.passes import Passes, Subject, subject

NOW = 1_700_000_000.0
HOSTS = [Host("10.0.0.1", "n1", "a"), Host("10.0.0.2", "n2", "a")]
ROWS = [{"test": "PF-1", "outcome": "passed", "seconds": 7.0, "tries": 1, "reason": "…"}]


def spec_of(tmp_path: Path, **values: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "demo", "storage": str(tmp_path), **values})


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return spec_of(tmp_path)


@pytest.fixture
def held(spec: JobSpec) -> Passes:
    """With a pass that was issued now."""
    found = Passes(spec.storage)
    found.issue(subject(spec, HOSTS), ROWS, NOW)
    return found


def test_gm40_a_pass_is_valid_for_a_day(spec: JobSpec, held: Passes) -> None:
    what = subject(spec, HOSTS)
    for seconds in (0.0, 1.0, 24 * 3600 - 1.0):
        assert held.objection(what, NOW + seconds) == ""
    assert held.objection(what, NOW + 24 * 3600) == "the last one has expired"
    assert held.objection(what, NOW - 1) == "the last one is of the future"


def test_gm40_without_a_pass_there_is_none(spec: JobSpec) -> None:
    assert Passes(spec.storage).objection(subject(spec, HOSTS), NOW) == "there is none for this JobSpec"


def test_gm40_name_storage_and_whether_it_is_asked_for_change_nothing(tmp_path: Path, spec: JobSpec) -> None:
    other = spec_of(tmp_path / "elsewhere", name="other", preflight="require")
    assert subject(other, HOSTS) == subject(spec, HOSTS)


@pytest.mark.parametrize(
    ("values", "hosts", "objection"),
    [
        ({"seed": 1}, HOSTS, "there is none for this JobSpec"),
        ({"governor": {"noisy": "enforce"}}, HOSTS, "there is none for this JobSpec"),
        ({}, HOSTS[:1], "the last one is of other hosts"),
        ({}, [HOSTS[0], Host("10.0.0.3", "n2", "a")], "the last one is of other hosts"),
        ({}, [HOSTS[0], Host("10.0.0.2", "n2", "b")], "the last one is of other hosts"),
        ({}, [], "the last one is of other hosts"),
    ],
)
def test_gm40_another_jobspec_or_other_hosts_need_another_pass(
    tmp_path: Path, held: Passes, values: dict[str, Any], hosts: list[Host], objection: str
) -> None:
    assert held.objection(subject(spec_of(tmp_path, **values), hosts), NOW) == objection


def test_gm40_the_same_hosts_in_another_order_or_after_a_restart_of_ray_are_the_same(spec: JobSpec, held: Passes) -> None:
    again = [Host("10.0.0.2", "m2", "a"), Host("10.0.0.1", "m1", "a")]
    assert held.objection(subject(spec, again), NOW) == ""


def test_gm40_a_changed_script_needs_another_pass(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("a = 1\n")
    spec = spec_of(tmp_path, task={"script": str(script)})
    held = Passes(tmp_path)
    held.issue(subject(spec, HOSTS), ROWS, NOW)
    assert held.objection(subject(spec, HOSTS), NOW) == ""
    script.write_text("a = 2\n")
    assert held.objection(subject(spec, HOSTS), NOW) == "the last one is of another version of the code"
    script.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        subject(spec, HOSTS)


def test_gm40_another_version_of_what_it_stands_on_needs_another_pass(
    spec: JobSpec, held: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_version", lambda package: "0.0")
    assert held.objection(subject(spec, HOSTS), NOW) == "the last one is of another version of the code"


def test_gm40_a_later_pass_takes_the_place_of_an_earlier_one(spec: JobSpec, held: Passes) -> None:
    what = subject(spec, HOSTS)
    held.issue(what, ROWS, NOW + 3600)
    assert held.objection(what, NOW + 24 * 3600 + 1) == ""
    assert len(list(held.path(what).parent.iterdir())) == 1


def test_gm40_the_key_is_for_its_owner_alone_and_stays(spec: JobSpec, held: Passes) -> None:
    key = spec.storage / ".control" / "preflight.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    assert len(bytes.fromhex(before.decode())) == 32
    held.issue(subject(spec, HOSTS), ROWS, NOW)
    assert key.read_bytes() == before


def altered(held: Passes, what: Subject, **values: Any) -> None:
    path = held.path(what)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"expires": NOW + 1e9},
        {"topology": "0" * 32},
        {"findings": []},
        {"more": 1},
        {"signature": ""},
        {"signature": "é"},
        {"signature": None},
    ],
)
def test_gm40_whoever_has_not_the_key_changes_nothing(spec: JobSpec, held: Passes, values: dict[str, Any]) -> None:
    what = subject(spec, HOSTS)
    altered(held, what, **values)
    assert held.objection(what, NOW) == "the one for this JobSpec is not signed with the key of this storage"


def test_gm40_a_pass_of_another_storage_is_none_here(tmp_path: Path, spec: JobSpec, held: Passes) -> None:
    what, other = subject(spec, HOSTS), Passes(tmp_path / "other")
    path = other.issue(what, ROWS, NOW)
    path.write_text(held.path(what).read_text())
    assert other.objection(what, NOW) == "the one for this JobSpec is not signed with the key of this storage"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"issued": NaN}', "\0"])
def test_gm40_what_is_no_pass_is_none(spec: JobSpec, held: Passes, text: str) -> None:
    what = subject(spec, HOSTS)
    held.path(what).write_text(text)
    assert held.objection(what, NOW) != ""


def test_gm40_a_damaged_key_signs_nothing(spec: JobSpec, held: Passes) -> None:
    what, key = subject(spec, HOSTS), spec.storage / ".control" / "preflight.key"
    for text in ("", "no key", "ab" * 31):
        key.write_text(text)
        assert "is no key" in held.objection(what, NOW)
        with pytest.raises(UserError, match=r"preflight\.key is no key; remove it") as refused:
            held.issue(what, ROWS, NOW)
        assert refused.value.exit_code == ExitCode.STORAGE


def test_gm40_the_same_value_is_the_same_bytes() -> None:
    assert passes.canonical({"b": [1, 2.5], "a": None}) == passes.canonical({"a": None, "b": [1, 2.5]})
    with pytest.raises(ValueError):
        passes.canonical({"a": float("nan")})


# ---------------------------------------------------------------- admission


def admitted(spec: JobSpec, *, cluster: bool, now: float = NOW) -> list[str]:
    """What a start is told."""
    said: list[str] = []
    admission.admit(spec, lambda _: HOSTS, cluster=cluster, note=said.append, clock=lambda: now)
    return said


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["quantarion", "train", "job.yaml", "--address", "h:1", "--resume", "--exact", "--report", "r.json"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("PATH", os.defpath)


@pytest.mark.parametrize(
    ("wish", "cluster", "expected"),
    [
        (None, False, "off"),
        (None, True, "advise"),
        ("off", True, "off"),
        ("advise", False, "advise"),
        ("require", False, "require"),
        ("require", True, "require"),
    ],
)
def test_gm40_off_where_ray_starts_in_here_and_advice_on_a_cluster(
    tmp_path: Path, wish: str | None, cluster: bool, expected: str
) -> None:
    assert admission.asked(spec_of(tmp_path, preflight=wish), cluster=cluster) == expected


def test_gm40_a_job_that_does_not_ask_is_not_looked_at(tmp_path: Path) -> None:
    def hosts(_: JobSpec) -> list[Host]:
        raise AssertionError("asked")

    admission.admit(spec_of(tmp_path), hosts, cluster=False, note=pytest.fail)
    admission.admit(spec_of(tmp_path, preflight="off"), hosts, cluster=True, note=pytest.fail)


def test_gm40_advice_is_one_sentence_and_the_job_goes_on(spec: JobSpec) -> None:
    (said,) = admitted(spec, cluster=True)
    assert said.startswith(
        "these hosts have no valid pre-flight pass for this job: there is none for this JobSpec; to test"
    )
    assert said.endswith("quantarion preflight job.yaml --address h:1")


def test_gm40_required_and_missing_ends_with_93_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        admitted(spec_of(tmp_path, preflight="require"), cluster=False)
    assert refused.value.exit_code == ExitCode.PREFLIGHT
    assert refused.value.exit_code == 93
    assert str(refused.value).startswith("preflight is require, but these hosts have no valid pass: there is none")
    assert str(refused.value).endswith("run quantarion preflight job.yaml --address h:1")


def test_gm40_with_a_pass_nothing_is_said_until_it_has_expired(tmp_path: Path, spec: JobSpec, held: Passes) -> None:
    required = spec_of(tmp_path, preflight="require")
    assert admitted(required, cluster=False) == admitted(spec, cluster=True) == []
    with pytest.raises(UserError, match="has expired"):
        admitted(required, cluster=False, now=NOW + 90_000)
    (said,) = admitted(spec, cluster=True, now=NOW + 90_000)
    assert "the last one has expired" in said
