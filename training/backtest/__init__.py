"""`volcast backtest`: decisions over history, their execution, benchmarks, figures and report."""
