"""The trials of a search as Optuna's tables store them, and as a ledger holds them in memory."""
