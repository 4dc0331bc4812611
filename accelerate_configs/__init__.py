"""How each sharding strategy is told to accelerate: sharding only, one YAML a strategy."""
