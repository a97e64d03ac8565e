"""The evaluation of the paper: clicks, edges, proposals and instances, their metrics and reports."""
