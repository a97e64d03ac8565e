"""Folders and tar shards in the layout of SA-1B: found, checked, written by TFDS, read back."""

from samjax.data.sa1b.source import Source, open_source

__all__ = ['Source', 'open_source']
