"""One module for each workload; `benchmarks.catalogue` lists them."""
