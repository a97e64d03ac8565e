"""Sets of images with masks as ArrayRecord: written by a TFDS builder, read back as `Example`s."""
