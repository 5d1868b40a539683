"""What a training run is told: YAML in, one frozen `Config` out."""

from .reading import RECIPES, load_config, recipes
from .sections import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    Published,
    TrainingConfig,
)

__all__ = [
    "RECIPES",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Published",
    "TrainingConfig",
    "load_config",
    "recipes",
]
