"""`ivideogpt train transformer`: a transformer on the tokens of a trained tokenizer."""

from __future__ import annotations

import shlex

from ivideogpt.cli.options import Json
from ivideogpt.cli.training_progress import finish_training, show_training
from ivideogpt.training.config import TransformerTrainingConfig


class Options(TransformerTrainingConfig):
    """Train a transformer to continue a tokenizer's tokens, with actions where the episodes have them.

    Can be killed and resumed at any time. SIGTERM and Ctrl-C finish the step under way and save; a second one ends at
    once.
    """

    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Train, showing progress."""
    from ivideogpt.data.store import is_store, stored_name
    from ivideogpt.training.episodes import held_out_episodes
    from ivideogpt.training.run import train_transformer

    config = TransformerTrainingConfig(**options.model_dump(exclude={"as_json"}))
    figures = show_training("training the transformer", train_transformer, config)
    argv = ["ivideogpt", "predict", "--model", str(config.out)]
    held_out = held_out_episodes(config.out)
    if held_out:
        one = held_out[0]
        argv += ["--episode", stored_name(config.data, one) if is_store(config.data) else str(config.data / one)]
    next_step = shlex.join(argv)
    finish_training(figures, config, next_step, options.as_json)
