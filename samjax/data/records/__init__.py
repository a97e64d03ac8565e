"""Data sets prepared as ArrayRecord: written by a TFDS builder, read back as `Example`s."""
