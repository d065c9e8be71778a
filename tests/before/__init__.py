"""What version 0.1.0 left behind: a home and exports that every later version must read. See README.md."""
