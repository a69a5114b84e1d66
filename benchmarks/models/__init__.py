"""How good the models are and what training costs: the programs compare and profiles."""
