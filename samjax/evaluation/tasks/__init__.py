"""The tasks of `samjax eval`: clicks on one or many data sets, edges, proposals, instances."""
