"""How well a model follows Toybox prompts, decided from the pixels of its clips."""
