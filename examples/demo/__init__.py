"""What `make demo` runs: `python -m examples.demo`."""
