"""The exchange's websocket."""
