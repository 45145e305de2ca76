"""Random small networks and growth plans: what the property tests and bench/properties.py draw from."""
