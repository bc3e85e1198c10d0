"""vplan: what real vLLM will do with GPU memory, from a model's config.json.

The public interface is `planner.api`; this package imports nothing until asked.
"""

__version__ = "0.1.0"
