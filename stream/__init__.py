"""The live path, in layers: core (pure) < ports < adapters < pipeline < the command line (`__main__`).

Importing any part of it turns off the telemetry of libraries (SECURITY.md). They read the variables when they are
imported, and child processes inherit them. A user's own values are overridden: Volcast promises that nothing is sent.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime: DNS, an upload, a device id and a queue of events below HOME
os.environ["DO_NOT_TRACK"] = "1"  # Evidently: an upload and a user id below HOME
