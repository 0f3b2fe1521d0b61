"""The live path. Floors: core (pure) < ports < adapters < pipeline < the door (`__main__`).

Importing any part of it turns off what libraries report to their makers (SECURITY.md). They look when they are imported
themselves, and our children inherit it; what a user has set says otherwise in vain, since Volcast promises it.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime: DNS, an upload, a device id and a queue of events below HOME
os.environ["DO_NOT_TRACK"] = "1"  # Evidently: an upload and a user id below HOME
