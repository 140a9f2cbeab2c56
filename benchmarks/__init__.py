"""One command each: ``python -m benchmarks.NAME``. See README.md."""
