"""What zbot costs and how fast it answers, measured on the machine at hand: `python -m benchmarks`."""
