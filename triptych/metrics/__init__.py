"""Metrics as `evaluate` modules: `evaluate.load("triptych/metrics/vqa_accuracy.py")`, or import the class."""
