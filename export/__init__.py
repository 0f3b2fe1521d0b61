"""A Keras run becomes one ONNX bundle, checked against the run it came from. `models/` holds the shipped one."""
