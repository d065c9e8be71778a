"""Data: what is learned from, verified and packed once."""
