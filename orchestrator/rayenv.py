"""The environment that Ray is imported in, and the connection to a cluster that runs already."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.errors import ExitCode, UserError

logger = logging.getLogger("quantarion.ray")

CONNECT_SECONDS = 15.0

_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray leaves the choice of GPUs to the ranks
    "SPT_NOENV": "1",  # else Ray's process titles overwrite the environment that doctor reads
}


@dataclass(frozen=True)
class Connection:
    """The driver's place in a cluster."""

    address: str  # host:port of the cluster's GCS
    namespace: str
    node_id: str  # of the node the driver is connected to, in hex


def namespace(job: str) -> str:
    """The Ray namespace of a job; its actors' names are unique within it."""
    return f"quantarion-{job}"


def prepare(*, embedded: bool) -> None:
    """Set Ray's environment for this process and its children. Call it before Ray is imported.

    An embedded cluster gets a token of its own: Ray listens on all interfaces. For a cluster that runs already, the
    environment decides; without a word in it, a token is used where one lies at Ray's usual place.
    """
    if embedded and "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError("Ray was imported before rayenv.prepare; it reads RAY_AUTH_MODE once")
    os.environ.update(_QUIET)
    if embedded:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token(os.environ) else "disabled")
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "10")  # of 1 s each, while it asks the GCS


def import_ray() -> ModuleType:
    """Ray, made quiet.

    Raises:
        UserError: exit code 6; Ray is not installed or cannot be loaded.
    """
    try:
        import ray
        import ray._private.worker as ray_worker
    except ImportError as error:
        raise UserError(
            f"Ray cannot be loaded ({error}); install it into this environment with: pip install 'ray[default]'",
            ExitCode.RAY,
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints the last lines of a dead raylet's log on the driver's terminal, and has no setting against it.
    ray_worker.print_to_stdstream = _to_log
    return ray


def cluster_address(address: str | None, environment: Mapping[str, str] | None = None) -> str | None:
    """The cluster to use: `--address`, else the one that `ray job submit` or RAY_ADDRESS names; None: embedded."""
    environment = os.environ if environment is None else environment
    if address:
        return address
    return environment.get("RAY_ADDRESS") or ("auto" if environment.get("RAY_JOB_ID") else None)


def connect(
    address: str, namespace: str, *, node_address: str | None = None, timeout: float = CONNECT_SECONDS
) -> Connection:
    """Connect this process, as a driver, to the Ray cluster at `address` (`host:port` of its GCS, or `auto`).

    `node_address` is the IP address of the node to connect to where one machine carries several. Seconds: `timeout`.

    Raises:
        UserError: exit code 6; Ray is missing, the address is not one, nothing there answers as Ray in time, or Ray
            refuses (another version, a wrong token).
    """
    deadline = time.monotonic() + timeout
    prepare(embedded=False)  # changes nothing where the environment is set already
    ray = import_ray()
    gcs = _resolve(address)
    _probe(gcs, address, deadline)
    extra: dict[str, Any] = {"_node_ip_address": node_address} if node_address else {}
    try:
        ray.init(
            address=gcs,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **extra,
        )
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"The Ray cluster at {address} refuses this driver ({one_line(error)}); use the same versions of Ray and "
            "Python as the cluster, and its token if it has one",
            ExitCode.RAY,
        ) from error
    return Connection(gcs, namespace, ray.get_runtime_context().get_node_id())


def disconnect() -> None:
    """Leave the cluster; nothing happens where this process is in none."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def _has_token(environment: Mapping[str, str]) -> bool:
    named = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or Path("~/.ray/auth_token").expanduser().is_file()


def _resolve(address: str) -> str:
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address(address)
        except (ConnectionError, ValueError):
            found = None
        if found is None:
            raise UserError(
                "No Ray cluster is known on this machine (address 'auto'); write --address HOST:PORT of its head node",
                ExitCode.RAY,
            )
        return str(found)
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"The Ray address '{address}' is not HOST:PORT of a head node; write for example --address 10.0.0.1:6379, "
            "or unset RAY_ADDRESS to start Ray in here",
            ExitCode.RAY,
        )
    return address


def _probe(gcs: str, address: str, deadline: float) -> None:
    """Ask the GCS who it is, in bounded time: Ray itself would ask for minutes and print each refusal."""
    import grpc

    host, _, port = gcs.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), max(0.1, deadline - time.monotonic())).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error.strerror or error}); start one with 'ray start --head', or "
            "write the address of one that runs",
            ExitCode.RAY,
        ) from None
    try:
        _ask_cluster_id(gcs, max(0.1, deadline - time.monotonic()))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(
                f"The Ray cluster at {address} asks for another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to "
                "the file with the cluster's token",
                ExitCode.RAY,
            ) from None
        raise UserError(
            f"What listens at {address} does not answer as Ray; write HOST:PORT of the head node's GCS "
            "('ray start' prints it, 6379 by default)",
            ExitCode.RAY,
        ) from None


def _ask_cluster_id(gcs: str, timeout: float) -> None:
    import grpc
    from ray._private.authentication import grpc_authentication_client_interceptor as authentication
    from ray.exceptions import AuthenticationError

    interceptor = authentication.SyncAuthenticationMetadataClientInterceptor()
    with grpc.insecure_channel(gcs, options=[("grpc.enable_http_proxy", 0)]) as plain:
        ask = grpc.intercept_channel(plain, interceptor).unary_unary(_CLUSTER_ID, _as_is, _as_is)
        try:
            ask(b"", timeout=timeout)
        except AuthenticationError:
            raise UserError(
                "RAY_AUTH_MODE is token, but no token is found; set RAY_AUTH_TOKEN_PATH to the file with the cluster's "
                "token",
                ExitCode.RAY,
            ) from None


def _as_is(message: bytes) -> bytes:
    return message


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    for line in data.get("lines", ()):
        logger.debug("%s: %s", data.get("pid", "ray"), line)


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 240 characters, without the hints and tracebacks that Ray adds."""
    text = str(error).split("Traceback")[0].split("\n\n")[0]
    return " ".join(text.split())[:240].rstrip(".:") or type(error).__name__
