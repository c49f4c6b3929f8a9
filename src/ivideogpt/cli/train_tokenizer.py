"""`ivideogpt train tokenizer`: a tokenizer from recorded episodes."""

from __future__ import annotations

import shlex
from pathlib import Path

from ivideogpt.cli.options import Json
from ivideogpt.cli.training_progress import finish_training, show_training
from ivideogpt.training.config import TokenizerTrainingConfig

_OF_DATA = ("step_size", "split_seed", "camera_key", "action_key", "action_shift")


class Options(TokenizerTrainingConfig):
    """Train a tokenizer on episodes: real frames in, tokens and frames out. Can be killed and resumed at any time.

    SIGTERM and Ctrl-C finish the step under way and save; a second one ends at once.
    """

    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Train, showing progress."""
    from ivideogpt.training.run import train_tokenizer

    config = TokenizerTrainingConfig(**options.model_dump(exclude={"as_json"}))
    figures = show_training("training the tokenizer", train_tokenizer, config, _notice(config))
    argv = ["ivideogpt", "train", "transformer", "--data", str(config.data), "--tokenizer", str(config.out)]
    argv += ["--out", str(_beside(config.out)), "--steps", str(config.steps)]
    argv += ["--batch-size", str(config.batch_size), *_same(config, *_OF_DATA)]
    next_step = shlex.join(argv) + _states(config)
    finish_training(figures, config, next_step, options.as_json)


def _same(config: TokenizerTrainingConfig, *names: str) -> list[str]:
    """Options that say of the data what this training was told of them."""
    given = {name: getattr(config, name) for name in names}
    told = {name: value for name, value in given.items() if value != type(config).model_fields[name].default}
    return [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _beside(run: Path) -> Path:
    """Where the transformer's run may lie."""
    name = "transformer" if run.absolute().name != "transformer" else "transformer-2"
    return run.with_name(name) if run.name else Path("..", name)


def _notice(config: TokenizerTrainingConfig) -> str:
    """What stands in for the perceptual loss, where there is none."""
    if config.vgg16_weights is not None:
        return ""
    missing = "training without the perceptual loss: no VGG16 weights were given (--vgg16-weights, --lpips-heads)."
    weights = config.loss_weights
    if not any(weights):
        return f"{missing} What is left of the paper's losses blurs; --recipe nano puts others in its place."
    return (
        f"{missing} In its place, pixels that move weigh up to {weights.motion:g} more (--motion-weight), those of a "
        f"rare colour up to {weights.rarity:g} more (--rarity-weight), the squared error counts {weights.mse:g} "
        f"times (--mse-weight), and static patches are drawn to one code with weight {weights.static:g} "
        "(--static-weight)."
    )


def _states(config: TokenizerTrainingConfig) -> str:
    """The options that let the transformer learn the same states."""
    if not config.states:
        return ""
    key = "" if config.state_key == "state" else f" --state-key {shlex.quote(config.state_key)}"
    angles = "" if config.state_angles is None else f" --state-angles {' '.join(map(str, config.state_angles))}"
    return f" --states{key}{angles}"
