"""The exchange's REST API and its bulk archive, over httpx."""
