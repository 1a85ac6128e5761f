"""What the Accelerate scripts in `examples/` share: data, tokenizer, optimisation, evaluation."""
