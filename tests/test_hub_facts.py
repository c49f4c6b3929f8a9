"""Facts on the data stay with a model, and can be written into a saved one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ivideogpt import VideoTransformer, WorldModel, hub
from ivideogpt.config import DataFacts
from ivideogpt.errors import CheckpointError, ConfigError

FACTS = DataFacts(step_size=2, frame_rate=5, camera_key="front", action_names=("x",), action_mean=(0.5,))


@pytest.mark.parametrize("layout", ["native", "official"])
def test_facts_on_the_data_stay_with_a_model(
    layout: hub.Layout, make_tokenizer: Any, make_transformer: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(widths=(32, 32), norm_groups=32, patch_size=4)
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, action_dim=2, data=FACTS))
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "model", layout=layout))
    assert again.facts == again.for_inference("float32").facts == FACTS


@pytest.mark.parametrize("layout", ["native", "official"])
def test_facts_can_be_written_into_a_saved_model(
    layout: hub.Layout, make_tokenizer: Any, make_transformer: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(widths=(32, 32), norm_groups=32, patch_size=4)
    transformer = make_transformer(layout=tokenizer.layout, action_dim=2)
    folder = WorldModel(tokenizer, transformer).save_pretrained(tmp_path / "model", layout=layout)
    assert WorldModel.from_pretrained(folder).facts == DataFacts()
    hub.write_facts(folder, FACTS)
    assert VideoTransformer.from_pretrained(folder).config == transformer.config.model_copy(update={"data": FACTS})
    with pytest.raises(ConfigError, match="action_dim is 2, but the facts on the data say 3 components"):
        hub.write_facts(folder, DataFacts(action_names=("x", "y", "z")))
    assert WorldModel.from_pretrained(folder).facts == FACTS


def test_facts_need_a_transformer(make_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    alone = hub.Checkpoint(tokenizer=(tokenizer.config, tokenizer.state_dict()))
    for folder in (hub.save(tmp_path / "tokenizer", alone), tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="holds no transformer whose data could have facts"):
            hub.write_facts(folder, FACTS)
