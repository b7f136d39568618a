"""One command for each figure: `python -m benchmarks.NAME`. Results are kept in results/."""
