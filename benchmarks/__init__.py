"""``python -m benchmarks core`` measures every record against its peers; ``report`` makes tables and plots of it."""
