"""The JobSpec: what is accepted, and how everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import jobfile, jobspec
from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec
from orchestrator.schema import SchemaField, fields, markdown
from workers.config import TrainingConfig


def load(folder: Path, text: str, *sets: str) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(text)
    return jobspec.load(path, list(sets))


def refused(folder: Path, text: str, *sets: str) -> str:
    """The sentence with which a JobSpec is refused."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *sets)
    assert caught.value.exit_code == ExitCode.USAGE
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.removeprefix(f"{folder}/")


def test_a_name_is_enough(tmp_path: Path) -> None:
    spec = load(tmp_path, "name: small")
    assert spec == JobSpec(name="small")
    assert (spec.task.recipe, spec.task.script, spec.storage) == ("mlp", None, Path("runs"))
    assert spec.phases.epochs == spec.epochs == spec.phases.fp32_epochs + spec.phases.qat_epochs


def test_the_demo_is_valid(project: Path) -> None:
    spec = jobspec.load(project / "examples" / "demo.yaml", [])
    assert (spec.name, spec.seed, spec.storage) == ("demo", 7, Path("runs"))
    assert (spec.hosts.min, spec.hosts.max, spec.ranks_per_host) == (1, 2, 2)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    spec = load(tmp_path, "name: a\noptimizer: {lr: 1e-3}\nhosts: {wait: 60}\nclip_norm: 1")
    assert (spec.optimizer.lr, spec.hosts.wait, spec.clip_norm) == (0.001, 60.0, 1.0)


def test_set_goes_on_top_in_order(tmp_path: Path) -> None:
    spec = load(tmp_path, "name: a\nhosts:\n", "hosts.max=2", "hosts.max=3", "task.hidden=[8, 4]", "name=b")
    assert (spec.hosts.max, spec.task.hidden, spec.name) == (3, [8, 4], "b")


def test_a_script_is_a_job_with_defaults(tmp_path: Path) -> None:
    script = tmp_path / "My Net_2.py"
    script.touch()
    spec = jobspec.load(script, ["hosts.max=2"])
    assert (spec.name, spec.task.script, spec.task.recipe, spec.hosts.max) == ("my-net-2", script, None, 2)


def test_adam_has_its_own_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, "name: a\noptimizer: {name: adamw}")
    assert (spec.optimizer.lr, spec.optimizer.momentum) == (0.001, 0.0)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path, "name: a\nstorage: ~/jobs").storage == tmp_path / "jobs"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\ngolbal_batch: 3", "golbal_batch is not a key of the JobSpec; write global_batch instead"),
        ("name: a\nhosts: {mim: 3}", "hosts.mim is not a key of the JobSpec; write hosts.min instead"),
        ("name: a\nfp32_epochs: 3", "fp32_epochs is not a key of the JobSpec; write phases.fp32_epochs instead"),
        (
            "name: a\nhosts: {blub: 3}",
            "the keys there are hosts.min, hosts.max, hosts.spares, hosts.wait, hosts.",
        ),
        ("name: a\n1: 2", "1 is not a key of the JobSpec; the keys there are name, storage, "),
        ("hosts: {max: 2}", "name is missing; write for example name: my-job"),
        ("name: My Job", "name is 'My Job', but must be a text of at most 63 lower-case letters, digits"),
        ("name: a\nhosts: 3", "hosts is 3, but must be a group of keys; write for example hosts.min: 1"),
        ("name: a\nseed: true", "seed is true, but must be a whole number, at least 0"),
        ("name: a\nseed: '3'", "write for example seed: 3"),
        ("name: a\nseed: -1", "seed is -1, but must be a whole number, at least 0"),
        ("name: a\noptimizer: {lr: .nan}", "optimizer.lr is nan, but must be a number, more than 0"),
        ("name: a\noptimizer: {name: adma}", "one of sgd, adam, adamw; write for example optimizer.name: adam"),
        ("name: a\ntask: {weight_bits: 8}", "task.weight_bits is not a key of the JobSpec; write qat.weight_bits instead"),
        ("name: a\nqat: {weight_bits: 5}", "qat.weight_bits is 5, but must be one of 8, 6, 4, 2; write for example "),
        ("name: a\nqat: {activation_bits: 2}", "qat.activation_bits is 2, but must be one of 8, 6, 4"),
        ("name: a\nqat: {state_bits: 6}", "qat.state_bits is 6, but must be one of 8, 4, 2 or null"),
        ("name: a\nqat: {averaging: 0}", "qat.averaging is 0, but must be a number, more than 0 and at most 1"),
        ("name: a\nqat: {calibration_batches: 0}", "must be a whole number of batches, at least 1"),
        ("name: a\ntask: {spiking: {encoding: morse}}", "one of rate, temporal, latency, burst, current"),
        (
            "name: a\ntask: {spiking: {readout: rates}}",
            "task.spiking.readout is 'rates', but must be one of count, membrane",
        ),
        (
            "name: a\ntask: {spiking: {slope: 51}}",
            "task.spiking.slope is 51, but must be a number, more than 0 and at most 50",
        ),
        (
            "name: a\ntask: {spiking: {decay: 1}}",
            "task.spiking.decay is 1, but must be a number, more than 0 and less than 1",
        ),
        (
            "name: a\ntask: {data: {validation: 0.5}}",
            "task.data.validation is 0.5, but must be a number, at least 0 and less",
        ),
        ("name: a\ntask: {text: {context: 0}}", "must be a whole number of bytes, at least 1; write for example "),
        (
            "name: a\ntask: {num_steps: 4}",
            "task.num_steps is not a key of the JobSpec; write task.spiking.num_steps instead",
        ),
        ("name: a\ntask: {hidden: [8, x]}", "task.hidden.1 is 'x', but must be a whole number, at least 1"),
        ("name: a\nstorage: s3://b/c", "storage: 's3://b/c' is a URL, but must be a path"),
        ("name: a\nfaults: [in_appyl=kill]", "faults.0: fault 'in_appyl=kill' is not of the form point["),
    ],
)
def test_wrong_keys_and_values_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hosts: {wait: 5m}", "hosts.wait is '5m', but must be a number of seconds, at least 0; write for example "),
        ("hosts: {wait: 5m}", "write for example hosts.wait: 300"),
        ("hosts: {wait: 1.5 h}", "write for example hosts.wait: 5400"),
        ("limits: {agent_grace: 500ms}", "write for example limits.agent_grace: 0.5"),
        ("global_batch: 128MB", "global_batch is '128MB', but must be a whole number of samples"),
        ("micro_batch: 64.0", "micro_batch is 64.0, but must be a whole number of samples"),
        ("checkpoint: {every: 5m}", "checkpoint.every is '5m', but must be a whole number of steps"),
    ],
)
def test_wrong_units_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, f"name: a\n{text}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hosts: {min: 3, max: 2}", "hosts.min is 3, more than hosts.max, which is 2; write hosts.min: 2 or less"),
        ("micro_batch: 500", "micro_batch is 500, more than global_batch, which is 128; write micro_batch: 128"),
        ("{global_batch: 3, micro_batch: 1, hosts: {max: 2}}", "each of the 4 ranks"),
        (
            "{reproducible: true, global_batch: 64, micro_batch: 32, hosts: {max: 2}}",
            "micro-batches, of which global_batch 64 has 2, for 4 ranks (hosts.max 2 times ranks_per_host 2); "
            "write micro_batch: 16 or less",
        ),
        ("task: {recipe: mlp, script: x.py}", "task.recipe is mlp and task.script is 'x.py', but a job has one"),
        ("task: {recipe: null}", "task names neither a recipe nor a script; write task.recipe: spiking"),
        (
            "task: {text: {width: 10}}",
            "task.text.heads is 4, which does not divide task.text.width, 10; write task.text.heads",
        ),
        (
            "phases: {qat_epochs: 3}\nqat: {state_from: 3}",
            "qat.state_from is 3, but the 3 QAT epochs are counted from 0 to 2; ",
        ),
        ("qat: {activations_from: 5, state_from: 2}", "qat.activations_from is 5, later than qat.state_from, which is 2; "),
        ("task: {script: net.txt}", "task.script is 'net.txt', which is not a Python file"),
        ("phases: {fp32_epochs: 0, qat_epochs: 0}", "there is nothing to train; write phases.fp32_epochs: 1 or more"),
        ("optimizer: {name: adam, momentum: 0.5}", "optimizer.momentum is 0.5, but optimizer.name is adam"),
        ("task: {data: {source: sklearn, folder: x}}", "task.data.source is sklearn, which reads no folder"),
        (
            "{reproducible: true, sync: {every: 4}}",
            "sync.every is 4, but ranks that train alone learn something else when there are more of them; "
            "write reproducible: false, or sync.every: 1",
        ),
        (
            "{compression: {codec: int4}, sync: {every: 4}}",
            "sync.every is 4, so that no gradients travel, but compression.codec is int4; "
            "write compression.codec: none, and sync.codec for parameter differences",
        ),
        ("{compression: {policy: adaptive}, sync: {every: 4}}", "policy is adaptive; write compression.policy: fixed, and"),
        ("{compression: {follow_learning_rate: true}, sync: {every: 4}}", "write compression.follow_learning_rate: false"),
        ("{compression: {momentum: 0.5}, sync: {every: 4}}", "compression.momentum is 0.5; write compression.momentum: 0"),
        (
            "sync: {every: 8, staleness: 8}",
            "sync.staleness is 8, but a round has no more than 8 steps (sync.every); write sync.staleness: 7, or less",
        ),
        (
            "sync: {every: 8, staleness: 2, within: host}",
            "use the memory they share in every step; write sync.within: rank",
        ),
        ("sync: {every: 8, fragments: 2}", "sync.fragments is 2, but all differences go out when a round ends: sync"),
        ("sync: {codec: int5}", "sync.codec: there is no codec 'int5'"),
    ],
)
def test_impossible_combinations_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    text = f"{text[:-1]}, name: a}}" if text.startswith("{") else f"name: a\n{text}"
    assert sentence in refused(tmp_path, text)


def test_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "task.script is 'no.py', which is no file" in refused(tmp_path, "name: a\ntask: {script: no.py}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "job.yaml: holds nothing, not keys; write at least 'name: my-job'"),
        ("- a\n", "job.yaml: holds a list, not keys"),
        ("name: a\nhosts: [\n", "job.yaml:3:1: is not valid YAML"),
        ("name: a\nseed: 1\nname: b\n", "job.yaml:3:1: is not valid YAML (the key 'name' stands twice)"),
        ("name: !!python/object:os.system x", "job.yaml:1:7: is not valid YAML"),
        ("name: a\x07", "job.yaml: is not valid YAML"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(tmp_path, text).startswith(sentence)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("hosts.max", "--set hosts.max: is not of the form key=value"),
        ("a..b=1", "--set a..b=1: is not of the form key=value"),
        ("seed=[", "--set seed=[: the value is not valid YAML"),
        ("name.x=1", "--set name.x=1: name is 'a', which has no keys"),
        ("hosts.mx=2", "--set hosts.mx=2: hosts.mx is not a key of the JobSpec; write hosts.max instead"),
        ("hosts.min=9", "--set hosts.min=9: hosts.min is 9, more than hosts.max"),
    ],
)
def test_a_wrong_set_is_refused_by_its_own_name(tmp_path: Path, setting: str, sentence: str) -> None:
    assert refused(tmp_path, "name: a", setting).startswith(sentence)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, sentence in [
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "cannot be read"),
        (binary, "is not text"),
        (tmp_path / "none.py", "which is no file"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            jobspec.load(path, [])
        assert caught.value.exit_code == ExitCode.USAGE


SCALARS = st.none() | st.booleans() | st.integers(-1, 300) | st.floats() | st.text(max_size=4)
NAMES = st.sampled_from([key.key.rpartition(".")[2] for key in fields(jobspec.json_schema())])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@given(values=st.dictionaries(NAMES | st.text(max_size=4), VALUES, max_size=5), named=st.booleans())
def test_whatever_is_written_gives_a_job_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object], named: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps({**values, "name": "a"} if named else values))
    try:
        assert jobspec.load(path, []).name == ("a" if named else values.get("name"))
    except UserError as error:
        assert error.exit_code == ExitCode.USAGE
        assert str(error).startswith(str(path))


def test_job_json_brings_back_the_same_configuration(tmp_path: Path) -> None:
    script = tmp_path / "net.py"
    script.touch()
    for spec in (
        load(tmp_path, "name: a\noptimizer: {name: adam}\nclip_norm: 1\nfaults: ['in_apply@rank=1,step=5=kill']"),
        jobspec.load(script, []),
    ):
        written = json.loads(json.dumps(spec.model_dump(mode="json")))
        assert JobSpec.from_job_json(written) == spec
        config = TrainingConfig.from_job_json(written)
        assert config.model_dump() == spec.model_dump(include=set(TrainingConfig.model_fields))


@pytest.mark.parametrize("field", fields(jobspec.json_schema()), ids=lambda field: field.key)
def test_every_key_is_documented_and_its_example_accepted(field: SchemaField, tmp_path: Path) -> None:
    assert field.node.get("description")
    if field.key != "name" and not field.is_group:
        values: jobfile.Values = {"name": "a"}
        jobfile.assign(values, f"{field.key}={json.dumps(field.example)}")
        JobSpec.model_validate(values)


def test_docs_jobspec_is_up_to_date(project: Path) -> None:
    """`quantarion schema --markdown > docs/jobspec.md` writes it."""
    assert (project / "docs" / "jobspec.md").read_text() == markdown(jobspec.json_schema())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a", None),
        ("name: a\npreflight: off", "off"),  # which YAML takes for false
        ("name: a\npreflight: 'off'", "off"),
        ("name: a\npreflight: advise", "advise"),
        ("name: a\npreflight: require", "require"),
        ("name: a\npreflight: null", None),
    ],
)
def test_gm40_a_job_may_ask_for_a_pass(tmp_path: Path, text: str, expected: str | None) -> None:
    assert load(tmp_path, text).preflight == expected


@pytest.mark.parametrize("value", ["on", "yes", "required", "1", "[]"])
def test_gm40_what_else_preflight_is_is_refused(tmp_path: Path, value: str) -> None:
    sentence = refused(tmp_path, f"name: a\npreflight: {value}")
    assert "preflight is " in sentence
    assert "must be one of off, advise, require or null; write for example preflight: require" in sentence
