"""The transformer tokenizer."""
