"""Checkpoints: written whole or not at all, on this disk and in a store."""
