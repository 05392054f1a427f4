"""The tokenizer of ordered tokens without a grid."""
