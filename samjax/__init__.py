"""samjax: Segment Anything in JAX, for training at scale, evaluation and checkpoint conversion."""
