"""The command `samjax`: one module for each of its commands."""
