"""Weights in and out: what a file is, motion modules, base models, LoRA, embeddings, export."""
