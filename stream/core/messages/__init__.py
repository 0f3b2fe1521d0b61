"""What is published: the schemas, what fills them, revisions, outcomes and live scores."""
