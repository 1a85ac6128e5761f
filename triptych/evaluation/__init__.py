"""Evaluators of models on data sets, and `evaluate` modules of the metrics they compute."""
