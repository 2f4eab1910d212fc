"""Coverage-guided fuzzing of the router's data plane: `make fuzz`."""
