"""`volcast evaluate`: walk-forward and single periods, and the ledger of scorings on the test year."""
