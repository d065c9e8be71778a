"""The trials of a search: as Optuna's tables store them, as a ledger holds them in memory, and their fronts."""
