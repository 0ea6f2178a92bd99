"""Broken and hostile checkpoints and model folders, one after the other, before our readers: `python -m benchmarks.fuzz`.

    python -m benchmarks.fuzz --minutes 30
    python -m benchmarks.fuzz --inputs 2000 --seed 7

Each input is a sound one of a small corpus, changed in one to three places. What is damaged blindly is refused by a
checksum, so most changes are sealed again as an attacker would: behind the checksum of a manifest, of a shard, of a tensor.

A reader may return a state or raise CheckpointError with one sentence. Anything else is a finding: another exception, more
than `--patience` seconds, more memory than `--memory` MiB beyond what the corpus needs, and what was changed without being
sealed again and comes back as another state. A finding is kept below `--keep`.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import psutil
import torch
import zstandard
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from workers.checkpoint import CheckpointError, list_checkpoints, load, save, verify
from workers.checkpoint.chain import Chain
from workers.checkpoint.contents import contents
from workers.checkpoint.planes import join_planes
from workers.models.transformer import ByteTransformer
from workers.qins.architectures import byte_transformer
from workers.qins.container import CODECS, SUFFIX, inspect, read_container, write_container
from workers.qins.convert import convert_model_to_projective
from workers.qins.files import QINSModelLoader, save_model
from workers.qins.manifest import TENSORS
from workers.state import Captured, digest

MANIFEST = "manifest.json"
INTERESTING = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    1e308,
    0.5,
)
WORDS = (
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a" * 5000,
    "\0",
    "é\n",
    "float32",
    "exact",
    "qins",
    "0" * 32,
    "shard-00000.qins",
)

LIMIT = 256 << 20
"""Bytes of a state that readers are told to take at most."""

Random = random.Random


class TooSlow(BaseException):
    """Raised in the reader by a timer; nothing there may catch it."""


@dataclass
class Tally:
    """What the readers have said."""

    kinds: Counter[str] = field(default_factory=Counter)
    read: int = 0
    refused: int = 0
    sentences: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def inputs(self) -> int:
        """How many there were."""
        return sum(self.kinds.values())


# ---------------------------------------------------------------------- the corpus


def make_corpus(root: Path) -> list[Path]:
    """Folders of sound ones: in each lie checkpoints, of which the last is read, or a file of tensors; or it is a model
    folder."""
    torch.manual_seed(0)
    tensors = {
        "parameter.weight": torch.randn(40, 33),
        "parameter.half": torch.randn(5, 4).bfloat16(),
        "parameter.nan": torch.tensor([1.0, float("nan"), -0.0, float("inf")]),
        "buffer.count": torch.tensor(12),
        "buffer.none": torch.empty(0, 3),
        "optimizer.weight|exp_avg": torch.randn(40, 33) * 1e-3,
        "optimizer.weight|exp_avg_sq": torch.rand(40, 33) * 1e-6,
    }
    meta = {"groups": [{"lr": 0.1, "betas": (0.9, 0.999)}], "history": [[1, "evaluate", {"loss": 1.5, "count": 3}]]}
    arguments: dict[str, Any] = {"job": "fuzz", "generation": (1, 2), "lineage": 3, "world": 4, "fence": lambda: True}
    kinds: dict[str, dict[str, Any]] = {"exact": {}, "shards": {"shard_bytes": 3000}}
    kinds |= {f"qins-{codec}": {"tier": "qins", "weights": codec} for codec in ("int8", "v1", "log7", "log8")}
    for name, more in kinds.items():
        save(Captured(tensors, meta), root / name, step=1, **arguments, **more)
    chain = Chain()
    for step in range(1, 5):
        moved = {name: t * (1 + 1e-3 * step) if t.is_floating_point() else t for name, t in tensors.items()}
        save(Captured(moved, meta), root / "chain", step=step, tier="qins", chain=chain, whole_every=8, **arguments)
    model: nn.Module = ByteTransformer(context=8, width=16, depth=1, heads=2)
    architecture = byte_transformer(context=8, width=16, depth=1, heads=2)
    save_model(convert_model_to_projective(model), root / "model", architecture)
    for codec in CODECS:
        write_container(root / f"container-{codec}" / f"tensors{SUFFIX}", tensors, codec)
    return [path for path in sorted(root.iterdir()) if path.is_dir()]


def checkpoints_in(folder: Path) -> list[Path]:
    """Oldest first; none in a model folder."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("step-"))


# ---------------------------------------------------------------------- changes


def change_bytes(content: bytes, chance: Random) -> bytes:
    """A few bytes are others, missing, more, or elsewhere."""
    data = bytearray(content)
    at = chance.randrange(len(data) + 1)
    length = min(len(data) - at, chance.choice((1, 2, 4, 8, 64, 4096)))
    match chance.randrange(8):
        case 0 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            data[at : at + length] = bytes(length)
        case 5:
            data[at : at + length] = b"\xff" * length
        case 6:
            data[at : at + length] = chance.randbytes(length)
        case _:
            data += chance.randbytes(chance.choice((1, 16, 1000)))
    return bytes(data)


def change_json(value: Any, chance: Random) -> Any:
    """One node of plain JSON is another one."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        match chance.randrange(12):
            case 0:
                del value[key]
            case 1:
                value[f"{key}2"] = value[key]
            case 2:
                value[key] = _other(value[key], chance)
            case _:
                value[key] = change_json(value[key], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        index = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                del value[index]
            case 1:
                value.append(copy.deepcopy(value[index]))
            case 2:
                chance.shuffle(value)
            case _:
                value[index] = change_json(value[index], chance)
        return value
    return _other(value, chance)


def _other(value: Any, chance: Random) -> Any:
    if isinstance(value, str) and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice("0f/.-x\0") + value[at + 1 :]
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 128, -value - 1, 2**31))
    deep: Any = 0
    for _ in range(chance.choice((1, 3, 500))):
        deep = [deep]
    return chance.choice((*INTERESTING, *WORDS, None, True, [], {}, [0], {"dict": [[1, 2]]}, {"tuple": 3}, deep))


def seal(fields: dict[str, Any], digest: Callable[[bytes], str]) -> str:
    """The text of a manifest whose checksum is right."""
    fields.pop("checksum", None)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**fields, "checksum": digest(text)})


def blake(content: bytes) -> str:
    """BLAKE2b-128 as 32 hex digits."""
    return blake2b(content, digest_size=16).hexdigest()


def in_bytes(folder: Path, chance: Random) -> None:
    """Of any file, and nothing is sealed."""
    path = chance.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    path.write_bytes(change_bytes(path.read_bytes(), chance))


def in_manifest(folder: Path, chance: Random) -> None:
    """In the fields, sealed again, and so in those of all that are differences to it."""
    path = chance.choice(sorted(folder.rglob(MANIFEST)))
    fields = change_json(json.loads(path.read_text()), chance)
    if isinstance(fields, dict):
        is_model = not checkpoints_in(folder)
        path.write_text(seal(fields, (lambda text: sha256(text).hexdigest()) if is_model else blake))
    else:
        path.write_text(json.dumps(fields))
    relink(folder)


def in_records(folder: Path, chance: Random) -> None:
    """In what a shard says of its tensors."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        if chance.random() < 0.1:
            metadata["format"] = str(_other(metadata["format"], chance))
        return change_json(records, chance)

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_frames(folder: Path, chance: Random) -> None:
    """In zstd frames."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        key = chance.choice(sorted(blobs))
        blobs[key] = np.frombuffer(change_bytes(blobs[key].tobytes(), chance), np.uint8)
        if chance.random() < 0.2:
            blobs[chance.choice((key + "0", "x", "0.99"))] = blobs.pop(key)
        return records

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_payloads(folder: Path, chance: Random) -> None:
    """In what is in the frames, and each tensor's checksum fits."""

    def change(records: list[dict[str, Any]], blobs: dict[str, np.ndarray], metadata: dict[str, str]) -> Any:
        position = chance.choice([index for index in range(len(records)) if f"{index}.0" in blobs])
        record, key = records[position], f"{position}.0"
        payload = zstandard.ZstdDecompressor().decompress(blobs[key].tobytes())
        changed = change_bytes(payload, chance)
        if chance.random() < 0.7:  # else it is refused for its size
            changed = (changed + payload[len(changed) :])[: len(payload)]
        blobs[key] = np.frombuffer(zstandard.ZstdCompressor().compress(changed), np.uint8)
        raw = np.frombuffer(changed, np.uint8)
        if record["codec"] == "planes.zstd/1" and len(changed) == len(payload):
            size = {"float32": 4, "bfloat16": 2, "int64": 8}[record["dtype"]]
            raw = np.empty(len(changed), np.uint8)
            join_planes(np.frombuffer(changed, np.uint8), size, raw)
        record["checksum"] = blake(raw.tobytes())
        return records

    forge(chance.choice(shards(folder)), change)
    relink(folder)


def in_model(folder: Path, chance: Random) -> None:
    """In the tensors of a model folder, whose manifest fits."""
    path = folder / TENSORS
    path.write_bytes(change_bytes(path.read_bytes(), chance))
    manifest = folder / MANIFEST
    fields = json.loads(manifest.read_text())
    fields["bytes"], fields["sha256"] = path.stat().st_size, sha256(path.read_bytes()).hexdigest()
    manifest.write_text(seal(fields, lambda text: sha256(text).hexdigest()))


def in_folder(folder: Path, chance: Random) -> None:
    """Files are missing, exchanged, empty, links or folders."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    path, other = chance.choice(files), chance.choice(files)
    match chance.randrange(5):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(other.read_bytes())
        case 2:
            path.write_bytes(b"")
        case 3:
            path.unlink()
            path.symlink_to(other if other != path else "nowhere")
        case _:
            path.unlink()
            path.mkdir()


CANNOT_CHANGE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError),
    *(zstandard.ZstdError, SafetensorError),
)
BLIND = (in_bytes, in_folder)
"""Nothing is sealed again after these."""

CONTAINER_CHANGES = (in_bytes, in_records, in_frames, in_payloads, in_payloads, in_folder)
CHECKPOINT_CHANGES = (in_bytes, in_manifest, in_records, in_frames, in_payloads, in_payloads, in_folder)
MODEL_CHANGES = (in_bytes, in_manifest, in_model, in_model, in_folder)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.qins"))


def forge(shard: Path, change: Callable[[list[dict[str, Any]], dict[str, np.ndarray], dict[str, str]], Any]) -> None:
    """Change a shard's records and blobs, and what the manifest beside it says of the file."""
    with safe_open(shard, "numpy") as container:
        blobs = {key: container.get_tensor(key) for key in list(container.keys())}
        metadata = dict(container.metadata())
    metadata["tensors"] = json.dumps(change(json.loads(metadata["tensors"]), blobs, metadata))
    metadata["checksum"] = blake(metadata["tensors"].encode())
    save_file(blobs, shard, metadata=metadata)
    path = shard.with_name(MANIFEST)
    if not path.exists():  # a file by itself
        return
    fields = json.loads(path.read_text())
    for entry in fields["shards"]:
        if entry["name"] == shard.name:
            entry["bytes"], entry["checksum"] = shard.stat().st_size, blake(shard.read_bytes())
    path.write_text(seal(fields, blake))


def relink(folder: Path) -> None:
    """Have every difference name its base as it is now, the lowest first."""
    for path in checkpoints_in(folder):
        manifest = path / MANIFEST
        try:
            fields = json.loads(manifest.read_text())
            below = path.parent / fields["base"]["folder"] / MANIFEST
            fields["base"]["checksum"] = blake(below.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            continue
        manifest.write_text(seal(fields, blake))


# ---------------------------------------------------------------------- the readers


def read(folder: Path) -> str | None:
    """All that reads such a folder: the digest of what is there, or None where it is refused. Raises what a reader raises,
    and AssertionError where readers do not agree."""
    files, found = shards(folder), checkpoints_in(folder)
    if not found and not files:
        model, _ = QINSModelLoader("none").load(folder)
        return digest(Captured(dict(model.state_dict())))
    if not found:
        inspect(files[0])
        return digest(Captured(read_container(files[0], limit=LIMIT)))
    newest = found[-1]
    list_checkpoints(folder)
    readers: tuple[Callable[[Path], object], ...] = (
        lambda path: load(path, limit=LIMIT),
        lambda path: verify(path, limit=LIMIT),
        lambda path: list(contents(path)[1]),
    )
    states: list[object] = []
    for reader in readers:
        try:
            states.append(reader(newest))
        except CheckpointError as error:
            _one_sentence(error)
            states.append(error)
    loaded, verified, _ = states
    if isinstance(loaded, CheckpointError) != isinstance(verified, CheckpointError):
        raise AssertionError("load and verify do not agree")
    if isinstance(loaded, CheckpointError):
        raise loaded
    assert isinstance(loaded, Captured)
    return digest(loaded)


def _one_sentence(error: CheckpointError) -> None:
    text = str(error)
    if "\n" in text or not 10 < len(text) < 2000:
        raise AssertionError(f"not one sentence: {text[:300]!r}")
    if "cannot be allocated" in text:  # though it was to take less than there is
        raise AssertionError(f"more memory than it may: {text[:300]!r}")


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises TooSlow in what takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one(sound: Path, scratch: Path, chance: Random, tally: Tally, seconds: float, wanted: str | None = None) -> str | None:
    """Change a copy of `sound`, whose digest is `wanted`, and have it read; what is wrong with the reader, or None."""
    folder = scratch / sound.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    by_kind = {"container": CONTAINER_CHANGES, "model": MODEL_CHANGES}
    changes = by_kind.get(sound.name.partition("-")[0], CHECKPOINT_CHANGES)
    done: list[Callable[[Path, Random], None]] = []
    for change in [chance.choice(changes) for _ in range(chance.choice((1, 1, 1, 2, 3)))]:
        try:
            change(folder, chance)
        except CANNOT_CHANGE:
            if not done:
                raise  # what is sound can be changed
            continue  # the change before it has left nothing to change like this
        done.append(change)
    tally.kinds[f"{sound.name}: {'+'.join(change.__name__.removeprefix('in_') for change in done)}"] += 1
    begun = time.monotonic()
    try:
        with patience(seconds):
            found = read(folder)
        tally.read += 1
        if wanted is not None and found != wanted and all(change in BLIND for change in done):
            return "it was changed, nothing was sealed again, and another state was read"
    except CheckpointError as error:
        tally.refused += 1
        try:
            _one_sentence(error)
        except AssertionError as finding:
            return str(finding)
        tally.sentences.add(_shape(str(error)))
    except (Exception, TooSlow):
        return traceback.format_exc()
    finally:
        tally.slowest = max(tally.slowest, time.monotonic() - begun)
    return None


def _shape(sentence: str) -> str:
    """Without what differs from input to input."""
    return "".join("#" if letter.isdigit() else letter for letter in sentence.partition(" is damaged: ")[2] or sentence)[
        :60
    ]


def fuzz(
    *,
    seed: int,
    inputs: int | None,
    seconds: float | None,
    memory: int,
    patient: float,
    keep: Path | None,
    show: bool = False,
) -> tuple[Tally, Mapping[str, int]]:
    """Until `inputs` were read, or `seconds` are over. The tally, and resident MiB after the first 500 and at the end."""
    chance, tally = Random(seed), Tally()
    process = psutil.Process()
    with TemporaryDirectory() as made, TemporaryDirectory() as scratch:
        corpus = make_corpus(Path(made))
        digests = {sound: read(sound) for sound in corpus}
        begun, first = time.monotonic(), 0
        with limited(memory), _bar(show) as bar:
            while (inputs is None or tally.inputs < inputs) and (seconds is None or time.monotonic() - begun < seconds):
                sound = chance.choice(corpus)
                faulthandler.dump_traceback_later(10 * patient, exit=True)  # what a signal does not interrupt
                finding = one(sound, Path(scratch), chance, tally, patient, digests[sound])
                faulthandler.cancel_dump_traceback_later()
                if finding is not None:
                    tally.findings.append(finding)
                    if keep is not None:
                        kept = keep / f"seed-{seed}-input-{tally.inputs}"
                        shutil.rmtree(kept, ignore_errors=True)
                        shutil.copytree(Path(scratch, sound.name), kept, symlinks=True)
                        (keep / f"{kept.name}.txt").write_text(finding)
                if tally.inputs == 500:
                    first = process.memory_info().rss
                bar(f"{tally.inputs} inputs, {tally.refused} refused, {tally.read} read, {len(tally.findings)} findings")
    last = process.memory_info().rss
    return tally, {"first": (first or last) >> 20, "last": last >> 20}


@contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """Inside `with` this process gets no more address space than it has and so much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _bar(show: bool) -> Iterator[Callable[[str], None]]:
    if not show:
        yield lambda text: None
        return
    with Progress(TimeElapsedColumn(), TextColumn("{task.description}"), transient=True) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="how long; or")
    parser.add_argument("--inputs", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="that a reader gets (1024)")
    parser.add_argument("--patience", type=float, default=20.0, metavar="SECONDS", help="that a reader gets (20)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where findings are kept (runs/fuzz)")
    parser.add_argument("--out", type=Path, help="the figures, as JSON")
    options = parser.parse_args(arguments)
    if (options.minutes is None) == (options.inputs is None):
        parser.error("write either --minutes or --inputs")
    options.keep.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    tally, resident = fuzz(
        seed=options.seed,
        inputs=options.inputs,
        seconds=None if options.minutes is None else 60 * options.minutes,
        memory=options.memory,
        patient=options.patience,
        keep=options.keep,
        show=sys.stderr.isatty(),
    )
    minutes = (time.monotonic() - begun) / 60
    print(f"{tally.inputs} inputs in {minutes:.1f} min: {tally.refused} refused, {tally.read} read all the same")
    print(f"{len(tally.sentences)} kinds of sentences; the slowest took {tally.slowest:.2f} s")
    print(f"resident: {resident['first']} MiB after 500 inputs, {resident['last']} MiB at the end")
    by_source = Counter[str]()
    for kind, number in tally.kinds.items():
        by_source[kind.partition(":")[0]] += number
    print(", ".join(f"{name} {number}" for name, number in sorted(by_source.items())))
    for finding in tally.findings[:5]:
        print(f"\n{finding}")
    print(f"{len(tally.findings)} findings{f', kept in {options.keep}' if tally.findings else ''}")
    if options.out is not None:
        figures = {"minutes": minutes, "inputs": tally.inputs, "refused": tally.refused, "read": tally.read}
        more = {"findings": len(tally.findings), "slowest": tally.slowest, "kinds": tally.kinds, **resident}
        options.out.write_text(json.dumps({**figures, **more}, indent=1) + "\n")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
