"""The model folder of the published Mobile-O iOS app: four Core ML packages, and ``llm/`` for MLX."""
