"""A trial as a process of its own: what it is told, what it reports, how it ends (docs/guide/your-script.md)."""
