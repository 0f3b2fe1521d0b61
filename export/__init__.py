"""Turns a Keras run into one ONNX bundle and checks it against the run. `models/` holds the bundle that is shipped."""
