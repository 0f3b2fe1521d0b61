"""The HTTP port: metrics, health, API and the page."""
