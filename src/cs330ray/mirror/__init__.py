"""MLflow shown what the ledger holds."""
