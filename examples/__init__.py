"""Programs that run as they stand: see README.md."""
