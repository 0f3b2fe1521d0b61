"""One outside library each, nothing clever: a port's shape on one side, the library on the other."""
