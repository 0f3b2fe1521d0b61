"""The models that are fitted: the network, its linear base and log-HAR."""
