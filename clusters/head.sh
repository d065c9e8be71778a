#!/usr/bin/env bash
# What the head runs beside Ray: MLflow's server on its loopback, and the two databases, made where they are missing.
# It reads ~/.cs330ray/cluster.env and, through libpq, the PGPASSFILE that it names; to call it again changes nothing.
set -euo pipefail
. ~/.cs330ray/cluster.env

~/.cs330ray/venv/bin/python - <<'PYTHON'
import os

import sqlalchemy as sa

for name in ("CS330RAY_LEDGER", "MLFLOW_BACKEND_STORE_URI"):
    url = sa.make_url(os.environ[name])
    if not url.drivername.startswith("postgresql"):
        continue
    server = url.set(drivername="postgresql+psycopg", database="postgres")
    with sa.create_engine(server, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 10}).connect() as at:
        if url.database not in set(at.scalars(sa.text("select datname from pg_database"))):
            at.execute(sa.text(f'create database "{url.database}"'))
            print(f"made the database {url.database} on {url.host}")
PYTHON

answers() { curl --fail --silent --output /dev/null http://127.0.0.1:5000/health; }

if ! answers; then
  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
    setsid nohup ~/.cs330ray/venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 1 >~/.cs330ray/mlflow.log 2>&1 </dev/null &
fi
for _ in $(seq 120); do
  answers && exit 0
  sleep 1
done
echo "MLflow's server does not answer on 127.0.0.1:5000; see ~/.cs330ray/mlflow.log" >&2
exit 1
