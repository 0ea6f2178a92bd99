"""Writes the Python side of the `.proto` sources: `python proto/generate.py` (or `make proto`).

The result is committed, so that a user needs no compiler for protocol buffers; a test regenerates it and compares.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
GENERATED = SOURCES / "generated"


def generate(target: Path) -> list[Path]:
    """Compile every source into `target`: `*_pb2.py`, `*_pb2.pyi` and, for files with services, `*_pb2_grpc.py`.

    Returns the written files, sorted. Files in `target` whose source is gone are removed.
    Raises RuntimeError when protoc refuses a source (it has printed why).
    """
    sources = sorted(SOURCES.glob("quantarion/**/*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    target.mkdir(parents=True, exist_ok=True)
    for stale in generated_files(target):
        stale.unlink()
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    includes = [f"-I{SOURCES}", f"-I{well_known}"]
    names = [str(source.relative_to(SOURCES)) for source in sources]
    if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
        raise RuntimeError("protoc refused a source; its message stands above")
    for stub in target.rglob("*_pb2_grpc.py"):
        if "add_" not in stub.read_text():  # protoc writes an empty module for a file without services
            stub.unlink()
    return generated_files(target)


def generated_files(target: Path) -> list[Path]:
    """What the generator owns below `target`, sorted."""
    return sorted(path for path in target.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))


if __name__ == "__main__":
    for written in generate(GENERATED):
        sys.stdout.write(f"{written.relative_to(SOURCES.parent)}\n")
