"""`volcast backtest`: decisions over history, their execution, benchmarks, measures, figures and report."""
