"""`volcast evaluate`: walk-forward and single periods, and the log of looks at the test year."""
