"""Arrow core: records, schema, replay, admission. Needs neither torch, Ray nor vLLM."""
