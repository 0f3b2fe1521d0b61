"""Messages: their schemas and the code that fills them, revisions, outcomes and live scores."""
