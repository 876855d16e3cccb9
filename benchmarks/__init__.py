"""``python -m benchmarks core`` measures every record against its peers, ``regression`` fits of logistic regressions;
``report`` makes tables and plots of both."""
