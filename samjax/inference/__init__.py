"""Masks for images: a model from any checkpoint, prompts, and automatic mask generation."""
