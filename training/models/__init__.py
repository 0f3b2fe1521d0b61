"""What is fitted: the network, its linear base and log-HAR."""
