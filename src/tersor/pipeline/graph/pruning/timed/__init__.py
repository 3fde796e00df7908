"""Networks timed side by side in the engine: what narrower layers and missing branches save there."""
