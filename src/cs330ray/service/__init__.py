"""The service: one truth (the ledger), one mirror (MLflow), and Ray Tune between a study and its trials.

Reading order: messages, listener, ask, queue, prune, recorder, workers, machines, tune, session, run; estimate and thin
aside.
"""

import os
import secrets
import sys
from pathlib import Path

# Before Ray and MLflow are imported: no telemetry, no loggers, snapshots or directories of Tune's own (the ledger holds
# all there is), no warning for a result that took long.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_THRESHOLD_S": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "0",
}
# Ray listens on every interface: nobody may talk to a Ray of ours who has not its token. A cluster has its own, which
# Ray does not look for by itself where RAY_ADDRESS names one. Ray reads this when imported.
if "ray" in sys.modules:
    pass  # too late: what is set now would hold for the processes that Ray starts, and not for this one
elif not os.environ.get("RAY_ADDRESS"):
    _ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
elif "RAY_AUTH_TOKEN_PATH" in os.environ or (Path.home() / ".ray" / "auth_token").exists():
    _ENVIRONMENT |= {"RAY_AUTH_MODE": "token"}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
