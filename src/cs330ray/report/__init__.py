"""What the ledger says, for people."""
