-- What scored the shard: cpu, or the GPU's name and UUID; null for older shards.
ALTER TABLE nightscore.shard ADD COLUMN device text;
