"""The record: one database with everything that is known of every study."""
