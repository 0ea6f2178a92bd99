"""CK-5, CK-8, CK-9: a job whose checkpoints lie in an object store, and everything else is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.gang import Gang, is_alive, wait_for
from tests.object_store import BUCKET, CREDENTIALS, ObjectStore, known_store
from workers.checkpoint import list_checkpoints
from workers.checkpoint.remote import Remote

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NAME = "stored"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with known_store() as found:
        yield found


def test_a_job_whose_folder_is_lost_goes_on_from_its_store(
    store: ObjectStore, start: Callable[..., Gang], paced_job: Path, child_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**child_environment, **CREDENTIALS}
    there = (
        *("--set", "hosts.max=1", "--set", "spares_per_host=0", "--set", "checkpoint.every=10"),
        *("--set", f"checkpoint.store=s3://{BUCKET}/runs"),
        *("--set", f"checkpoint.store_options.endpoint_url={store.endpoint}"),
    )
    gang = start(paced_job, *there, name=NAME, environment=environment)
    first = gang.until("a checkpoint", lambda: gang.events("checkpoint"))[0]
    url = first["path"].rpartition("/")[0]
    assert url.startswith(f"s3://{BUCKET}/runs/{NAME}/run-")
    assert not (gang.folder / "checkpoints").exists()

    store.weather.is_out = True  # CK-7: training goes on, and an event says what is wrong
    gang.until("an event", lambda: gang.events("checkpoint_failed"))
    gang.until_step(gang.last_step() + 5)
    saved = {event["step"] for event in gang.events("checkpoint")}
    store.weather.is_out = False
    gang.until("a later checkpoint", lambda: {event["step"] for event in gang.events("checkpoint")} - saved)

    victims = gang.everything()
    for victim in victims:
        victim.kill()
    gang.process.wait()
    wait_for("the end of all that was killed", lambda: not any(is_alive(victim.pid) for victim in victims))
    newest = list_checkpoints(Remote(url, store.options))[0].step
    doctor = gang.command("doctor", "--storage", gang.storage)
    assert doctor.returncode == 0, doctor.stdout
    shutil.rmtree(gang.folder)

    resumed = start(paced_job, *there, "--resume", "--exact", name=NAME, environment=environment)
    resumed.until_step(newest + 11)
    resumed.signal(signal.SIGTERM)
    assert resumed.end() == 130, resumed.describe()
    assert f"resuming from step {newest} " in resumed.output
    line = {int(step["step"]): step for step in resumed.steps()}  # the last ones before it were in the state, too
    assert set(range(newest, newest + 12)) <= set(line)
    assert line[newest + 1]["generation"] > line[newest]["generation"]
    assert {event["path"].rpartition("/")[0] for event in resumed.events("checkpoint")} == {url}

    listed = resumed.command("checkpoint", "list", NAME, "--storage", resumed.storage)
    assert listed.returncode == 0 and str(newest) in listed.stdout, listed.stdout
    weights = tmp_path / "weights.safetensors"
    path = resumed.events("checkpoint")[-1]["path"]
    with pytest.MonkeyPatch.context() as patch:  # without the job, the environment says where the store is
        patch.setitem(resumed.environment, "AWS_ENDPOINT_URL_S3", store.endpoint)
        assert resumed.command("checkpoint", "verify", path).returncode == 0
        converted = resumed.command("checkpoint", "convert", path, weights)
    assert converted.returncode == 0 and weights.stat().st_size > 0, converted.stdout


def test_a_store_that_nobody_reaches_is_said_before_anything_starts(
    store: ObjectStore, start: Callable[..., Gang], paced_job: Path, child_environment: dict[str, str]
) -> None:
    there = (
        "--set",
        "checkpoint.store=s3://nowhere/runs",
        "--set",
        f"checkpoint.store_options.endpoint_url={store.endpoint}",
    )
    gang = start(paced_job, *there, name="unreachable", environment={**child_environment, **CREDENTIALS})
    assert gang.end() == 4, gang.describe()
    assert "checkpoint.store: nothing can be written to s3://nowhere/runs/unreachable/run-" in gang.output
    assert "Traceback" not in gang.output and not gang.folder.exists()
