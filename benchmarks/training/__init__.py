"""One configuration of training, measured in fresh processes: what the throughput and scaling suites are made of."""
