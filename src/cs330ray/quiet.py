"""Settings that Ray and MLflow read when they are imported, or when Ray is started."""

import os
import secrets
import sys

# No telemetry, no loggers, snapshots or directories of Tune's own (the ledger holds all there is), no warning for a
# result that took long.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "true",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_THRESHOLD_S": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "0",
}


def quiet() -> None:
    """Set, where they are not set, the settings under which Ray and MLflow keep quiet and let nobody else in.

    Call it before either is imported, and only where this process is ours: a command, a study, a worker.
    """
    for name, value in {**_SETTINGS, **_authentication()}.items():
        os.environ.setdefault(name, value)


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names; None where Ray is to be started here, as `local` says too."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def _authentication() -> dict[str, str]:
    """What makes Ray ask for a token; nothing where Ray has been imported, since it reads this when imported.

    Ray listens on every interface: nobody may talk to a Ray of ours who has not its token. A cluster has its own, which
    Ray does not look for by itself where RAY_ADDRESS names one.
    """
    if "ray" in sys.modules:  # what is set now would hold for the processes that Ray starts, and not for this one
        return {}
    if cluster_address() is None:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    kept = os.path.expanduser("~/.ray/auth_token")  # noqa: PTH111 - which stays as it is where there is no home
    if "RAY_AUTH_TOKEN_PATH" in os.environ or os.path.exists(kept):  # noqa: PTH110
        return {"RAY_AUTH_MODE": "token"}
    return {}
