"""The report of a period: drift and forecast quality as HTML and JSON."""
