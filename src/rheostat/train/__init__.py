"""The training half: trace a model, nest its subnets, train them together. Needs torch; `run` never imports it."""
