"""Arrow core: records, schema, replay, samplers, admission. It needs neither torch, Ray nor vLLM."""
