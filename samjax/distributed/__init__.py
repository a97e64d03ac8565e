"""Several devices and processes: start-up, mesh and sharding, and work that is mapped over them."""
